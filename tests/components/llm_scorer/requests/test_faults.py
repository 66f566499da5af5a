"""The whole job against a server that does everything wrong, killed again and again."""

import base64
import collections
import contextlib
import gzip
import json
import multiprocessing.process
import os
import pathlib
import random
import re
import signal
import sqlite3
import time
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pytest

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.plan import planned_contexts
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.requests.handler import HOPELESS_AFTER
from sllmr.components.llm_scorer.results import ScoringLedger, read_ledger
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import read_scores
from tests.components.llm_scorer.fault_server import FLAWED, GOOD, HOPELESS, PASSING, PASSING_ATTEMPTS, Faults
from tests.components.llm_scorer.forks import FORKS
from tests.components.llm_scorer.market import market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, chat_response, scores_of
from tests.pipeline.flink_cluster import running_flink

KEY = "test-key-Zq81Wm42Lp97Xt65"
CATALOG = market_items(200)
CONCURRENCY = 12


def make_job(root: pathlib.Path, base_url: str, contexts: int, beam_args: tuple[str, ...] = ()) -> Workspace:
    config = LlmConfig.model_validate(
        {
            "model": "gpt-4o-mini",
            "base_url": base_url,
            "api_key_env": "STUB_KEY",
            "concurrency": CONCURRENCY,
            "timeout_s": 2,
            "max_retries": PASSING_ATTEMPTS,
            "max_failure_rate": 1,
            "budget": {"pairs": 6 * contexts},
            "candidates": {"per_context": 6, "negatives_per_target": 2, "popularity_pool": 60},
        }
    )
    return Workspace(
        config=config,
        catalog_directory=str(root / "catalog"),
        cache_directory=str(root / "cache"),
        work_directory=str(root / "work"),
        output_directory=str(root / "scores"),
        make_pipeline=PlanHere(beam_args),
    )


class PlanHere:
    """Pipelines whose workers are processes; but not the first, which plans: each worker imports TensorFlow anew."""

    def __init__(self, beam_args: tuple[str, ...]):
        self._beam_args = beam_args
        self._made = 0

    def __call__(self) -> beam.Pipeline:
        self._made += 1
        return beam.Pipeline(argv=[] if self._made == 1 else list(self._beam_args))


def run_job(job: Workspace, rows: list[bytes], log: str) -> None:
    """Runs in a process group of its own, with everything it says in `log`."""
    os.setsid()
    os.environ["STUB_KEY"] = KEY
    os.environ["OPENAI_LOG"] = "debug"
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    score(job, beam.Create(rows))


def start(root: pathlib.Path, job: Workspace, rows: list[bytes]) -> multiprocessing.process.BaseProcess:
    for part in ("work", "scores"):
        (root / part).mkdir(exist_ok=True)
    process = FORKS.Process(target=run_job, args=(job, rows, str(root / "job.log")))
    process.start()
    return process


def kill(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


WITHOUT_SCORE = ("other items", "out of range", "refused", "truncated", "no JSON")
"""Of FLAWED: answers that score no candidate. A next run asks for them again."""


def paid_twice(faults: Faults) -> int:
    """Answers with a score that were given more than once."""
    return sum(times - 1 for content, times in faults.given.items() if faults.kind(content) not in WITHOUT_SCORE)


def run_and_kill(
    root, stub: StubServer, faults: Faults, job: Workspace, rows, *, kills: int, contexts: int
) -> ScoringLedger:
    """Kills the job `kills` times, at seeded numbers of answers, and lets it end; returns its ledger."""
    moments = sorted(random.Random(7).sample(range(contexts // 10, contexts * 9 // 10), kills))
    for moment in moments:
        process = start(root, job, rows)
        while faults.given.total() < moment:
            assert process.is_alive(), (root / "job.log").read_text()[-3000:]
            with stub.changed:
                stub.changed.wait(1)
        kill(process)
    process = start(root, job, rows)
    process.join()
    assert process.exitcode == 0, (root / "job.log").read_text()[-3000:]
    return read_ledger(root / "scores")


def written_outcomes(root: pathlib.Path) -> dict[tuple[str, str], float | str]:
    """Score or reason by context and item; each pair once."""
    outcomes: dict[tuple[str, str], float | str] = {}
    for record in read_scores(str(root / "scores")):
        for item_id, value in zip(record.item_ids, record.llm_scores, strict=True):
            assert outcomes.setdefault((record.context_id, item_id), value) is value
    for path in (root / "scores").glob("failures-*.jsonl.gz"):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            failure = json.loads(line)
            if failure["item_id"]:
                pair = failure["context_id"], failure["item_id"]
                assert outcomes.setdefault(pair, failure["reason"]) is failure["reason"]
    return outcomes


def numbered_titles(body: dict) -> list[tuple[int, str]]:
    """The candidates as the prompt itself numbers them."""
    lines = re.findall(r"^(\d+)\. (.*):", body["messages"][-1]["content"], re.MULTILINE)
    return [(int(number), title) for number, title in lines]


def true_outcomes(job: Workspace, faults: Faults) -> tuple[dict[tuple[str, str], float | str], int]:
    """What must become of each pair, by the server's own account of its answers; and how much more it answered."""
    strategy = create_strategy(job.config.resolve())
    titles = {item.title: item_id for item_id, item in CATALOG.items()}
    outcomes: dict[tuple[str, str], float | str] = {}
    unknown_items = 0
    for context in planned_contexts(job):
        (request,) = strategy.requests(context, CATALOG)
        truth = faults.truth(request.body)
        unknown_items += faults.unknown_items(request.body)
        for n, title in numbered_titles(request.body):
            score = truth[n]
            outcomes[context.context_id, titles[title]] = score if isinstance(score, str) else float(np.float32(score))
    return outcomes, unknown_items


def check_accounts(root: pathlib.Path, job: Workspace, faults: Faults, book: ScoringLedger, contexts: int) -> None:
    expected, unknown_items = true_outcomes(job, faults)
    assert len(expected) == 6 * contexts
    # No score but from a good answer, and that very score; every other pair with the reason that is true of it.
    assert written_outcomes(root) == expected
    reasons = collections.Counter(outcome for outcome in expected.values() if isinstance(outcome, str))
    assert book.failures == dict(reasons)
    assert book.scored + reasons.total() == book.requested == len(expected)
    assert book.unknown_items_in_responses == unknown_items > 0
    calls = book.requests
    assert calls.planned == contexts == calls.sent + calls.cached + calls.failed
    assert book.tokens.prompt == 1000 * calls.sent


def check_secrets(root: pathlib.Path) -> None:
    """Neither the key nor a user id in any byte that was written, packed or not."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert {"job.log", "responses.sqlite", "ledger.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        content += gzip.decompress(content) if path.suffix == ".gz" else b""
        for secret in (b"Wm42", b"user-", base64.b64encode(KEY.encode())[4:12]):
            assert secret not in content, path


@pytest.mark.slow
def test_kill_and_faults_cost_no_score_no_reason_and_no_second_payment(stub, tmp_path):
    contexts, kills = 240, 3
    faults = Faults(seed=11)
    stub.always = faults
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    job = make_job(tmp_path, stub.base_url, contexts)
    book = run_and_kill(tmp_path, stub, faults, job, market_rows(60, 8, 200), kills=kills, contexts=contexts)
    check_accounts(tmp_path, job, faults, book, contexts)
    check_secrets(tmp_path)
    # Answered calls are paid for. Those on their way at a kill may be asked once more.
    assert paid_twice(faults) <= CONCURRENCY * kills
    assert book.throttled.fewest_in_flight < CONCURRENCY
    assert {*(name for name, _, _ in PASSING), *FLAWED, GOOD, HOPELESS} == set(faults.hits)


def slowly(handler, body) -> None:
    time.sleep(0.7)
    handler.send_json(200, chat_response(scores_of(body)))


def stored_responses(root: pathlib.Path) -> int:
    with contextlib.closing(sqlite3.connect(root / "cache" / "responses.sqlite")) as connection:
        return connection.execute("SELECT COUNT(*) FROM responses").fetchone()[0]


@pytest.fixture
def two_workers(request, tmp_path_factory) -> Iterator[tuple[str, ...]]:
    if request.param == "flink":
        with running_flink(tmp_path_factory.mktemp("flink")) as cluster:
            yield *cluster.args, "--sdk_worker_parallelism=2", "--beam_plugins=sllmr.components"
    else:
        yield "--direct_running_mode=multi_processing", "--direct_num_workers=2"


@pytest.mark.parametrize(
    "two_workers",
    [pytest.param("processes", marks=pytest.mark.slow), pytest.param("flink", marks=pytest.mark.flink)],
    indirect=True,
)
def test_worker_processes_stop_within_two_seconds_of_the_driver_and_store_what_was_in_flight(
    two_workers, stub, tmp_path
):
    stub.always = slowly
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    job = make_job(tmp_path, stub.base_url, 240, beam_args=two_workers)
    process = start(tmp_path, job, market_rows(60, 8, 200))
    assert process.pid is not None
    stub.wait_until(lambda: len(stub.received) >= 2 * CONCURRENCY or not process.is_alive(), timeout=300)
    # The driver alone: nobody tells its workers.
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    at_kill = len(stub.received)
    time.sleep(2)
    sent = len(stub.received)
    time.sleep(2)
    assert len(stub.received) == sent <= at_kill + 2 * 2 * CONCURRENCY < 240, (tmp_path / "job.log").read_text()[-3000:]
    # What was in flight was paid for.
    assert stored_responses(tmp_path) == sent >= 2 * CONCURRENCY


def truncated(handler, body) -> None:
    time.sleep(0.05)
    response = chat_response([])
    response["choices"][0] |= {"finish_reason": "length", "message": {"content": '{"scores": [{"item"'}}
    handler.send_json(200, response)


def no_quota(handler, body) -> None:
    handler.send_json(402, {"error": {"message": "you are out of credits"}})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "most_sent", "words"),
    [
        (truncated, HOPELESS_AFTER + 2 * CONCURRENCY, "raise llm.max_output_tokens"),
        (no_quota, 2 * CONCURRENCY, "you are out of credits"),
    ],
    ids=["truncated", "no quota"],
)
def test_worker_processes_stop_early_together(stub, tmp_path, reply, most_sent, words):
    stub.always = reply
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    job = make_job(tmp_path, stub.base_url, 240, beam_args=workers)
    process = start(tmp_path, job, market_rows(60, 8, 200))
    process.join()
    log = (tmp_path / "job.log").read_text()
    assert process.exitcode == 1, log[-3000:]
    assert words in log[log.rindex("LlmError") :]
    assert len(stub.received) <= most_sent < 240


@pytest.mark.slow
def test_two_worker_processes_share_cache_claims_and_cap_through_a_kill(stub, tmp_path):
    contexts = 60
    faults = Faults(seed=13)
    stub.always = faults
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    workers = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    job = make_job(tmp_path, stub.base_url, contexts, beam_args=workers)
    book = run_and_kill(tmp_path, stub, faults, job, market_rows(20, 6, 200), kills=1, contexts=contexts)
    check_accounts(tmp_path, job, faults, book, contexts)
    check_secrets(tmp_path)
    assert paid_twice(faults) <= 2 * CONCURRENCY

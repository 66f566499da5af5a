"""The Batch API's way into the cache, against a server of our own that expires, fails, forgets, and is cut off."""

import dataclasses
import os
import pathlib
import pickle
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pytest

from components.llm_scorer import exchange
from components.llm_scorer.batch import NOT_ANSWERED, BatchJob, check_batch
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import LlmRequest
from components.llm_scorer.strategies import create_strategy
from components.llm_scorer.tokens import expected_usage
from components.scores import ScoreRecord, read_scores
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.stub_batch_server import (
    StubBatchServer,
    answered,
    expired,
    failed_with,
    running_batch_stub,
)
from tests.components.llm_scorer.stub_server import chat_response, scores_of
from tests.components.llm_scorer.test_job import CANDIDATES, job

KEY = "test-key-Zq81Wm42Lp97Xt65"
# By the usage that the stub tells with each answer, at half of gpt-4o-mini's price.
ONE_CALL_USD = (800 * 0.15 + 200 * 0.075 + 100 * 0.60) / 1e6
ONE_BATCH_CALL_USD = ONE_CALL_USD / 2


@pytest.fixture
def stub() -> Iterator[StubBatchServer]:
    with running_batch_stub() as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)


def settings(stub: StubBatchServer, batch: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    return {
        "model": "gpt-4o-mini",
        "base_url": stub.base_url,
        "api_key_env": "STUB_KEY",
        "max_retries": 2,
        "batch": {"poll_s": 0.01, **(batch or {})},
        **values,
    }


def config(stub: StubBatchServer, **values: Any) -> LlmConfig:
    return LlmConfig.model_validate(settings(stub, **values)).resolve()


def plan(configured: LlmConfig, count: int) -> list[LlmRequest]:
    strategy = create_strategy(configured)
    contexts = [context(name=f"c{n}", items=(f"i{n}", f"i{n + 1}"), history=("i55",)) for n in range(count)]
    return [request for c in contexts for request in strategy.requests(c, market_items())]


def train_rows() -> beam.PTransform:
    return beam.Create(market_rows())


def batch_job(configured: LlmConfig, directory: pathlib.Path, requests: list[LlmRequest]) -> BatchJob:
    return BatchJob(configured, str(directory), lambda: iter(requests))


def run(configured: LlmConfig, directory: pathlib.Path, requests: list[LlmRequest], **options: Any) -> dict[str, Any]:
    work = batch_job(configured, directory, requests)
    try:
        return work.run(**{"wait": True, **options})
    finally:
        work.close()


def cached(directory: pathlib.Path, requests: list[LlmRequest]) -> list[LlmRequest]:
    cache = ResponseCache(str(directory))
    try:
        return [request for request in requests if cache.get(request.key) is not None]
    finally:
        cache.close()


def times_handed_over(stub: StubBatchServer) -> Counter[str]:
    return Counter(line["custom_id"] for batch in stub.batches for line in batch.lines)


def untimed(directory: pathlib.Path) -> set[ScoreRecord]:
    return {dataclasses.replace(record, scored_at=0) for record in read_scores(str(directory))}


@pytest.mark.parametrize("strategy", ["listwise", "embedding"])
def test_the_batch_path_gives_the_live_paths_records_from_the_live_paths_bodies_at_half_the_price(
    stub, tmp_path, strategy
):
    configured = settings(stub, strategy=strategy, candidates=CANDIDATES, budget={"pairs": 60})
    live = job(tmp_path / "live", "one", configured).run(train_rows())
    asked_live = [*stub.live]

    (tmp_path / "batch").mkdir()
    scoring = job(tmp_path / "batch", "one", configured)
    report = scoring.batch_job(train_rows()).run(wait=True)
    posted = stub.received.count("POST /v1/chat/completions") + stub.received.count("POST /v1/embeddings")
    assert posted == live["calls"]["sent"]
    book = scoring.run(train_rows())

    lines = [line for batch in stub.batches for line in batch.lines]
    assert len(lines) == live["calls"]["sent"] == report["answered_by_batch"] == book["calls"]["planned"]
    assert book["calls"]["sent"] == 0
    if strategy == "listwise":
        assert sorted(map(repr, (line["body"] for line in lines))) == sorted(map(repr, asked_live))
    assert untimed(tmp_path / "batch" / "one" / "scores") == untimed(tmp_path / "live" / "one" / "scores")
    assert report["cost_usd"] == pytest.approx(live["cost_usd"] / 2)
    assert book["cost_of_cached_answers_usd"] == pytest.approx(live["cost_usd"] / 2)
    assert report["tokens"] == live["tokens"]


@pytest.mark.parametrize(
    ("limits", "sizes"), [({"requests_per_file": 3}, [3, 3, 1]), ({"bytes_per_file": 1}, [1] * 7), ({}, [7])]
)
def test_files_keep_to_the_limits_and_every_request_is_in_one(stub, tmp_path, limits, sizes):
    configured = config(stub, batch=limits)
    requests = plan(configured, 7)
    report = run(configured, tmp_path, requests)
    assert [len(batch.lines) for batch in stub.batches] == sizes
    assert times_handed_over(stub) == {request.key: 1 for request in requests}
    assert (report["requests"], report["answered"], report["under_way"]) == (7, 7, 0)
    assert os.listdir(tmp_path / "batches") == []
    # Another run finds all answers.
    before = len(stub.received)
    assert run(configured, tmp_path, requests)["answered_by_batch"] == 7
    assert len(stub.received) == before


def test_no_wait_returns_and_the_next_run_picks_up_what_is_ready(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 4)
    stub.looks = 2
    reports = [run(configured, tmp_path, requests, wait=False) for _ in range(4)]
    assert [report["under_way"] for report in reports] == [4, 4, 0, 0]
    assert [report["answered"] for report in reports] == [0, 0, 4, 4]
    assert reports[0]["batches_under_way"] == ["batch-0"]
    # Set aside is the dearest outcome, at half the price: more than what it then cost.
    assert reports[0]["set_aside_usd"] > 4 * ONE_BATCH_CALL_USD
    assert reports[2]["cost_usd"] == pytest.approx(4 * ONE_BATCH_CALL_USD)
    assert len(stub.batches) == 1


def test_what_a_batch_answered_before_it_expired_is_kept_and_the_rest_handed_over_again(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 6)
    late = {request.key for request in requests[:2]}
    forgotten = requests[2].key

    def outcome(line, attempt):
        if attempt == 1 and line["custom_id"] == forgotten:
            return None
        return expired(line) if attempt == 1 and line["custom_id"] in late else answered(line)

    stub.outcome = outcome
    stub.end_status = lambda number: "completed" if number else "expired"
    report = run(configured, tmp_path, requests)
    assert times_handed_over(stub) == {r.key: 2 if r.key in {*late, forgotten} else 1 for r in requests}
    assert (report["answered"], report["left"]) == (6, {})
    assert report["cost_usd"] == pytest.approx(6 * ONE_BATCH_CALL_USD)


def test_failed_requests_are_counted_by_reason_and_only_passing_failures_are_tried_again_and_not_for_ever(
    stub, tmp_path
):
    configured = config(stub)
    requests = plan(configured, 6)
    bad, busy, broken, late, odd, _ = [request.key for request in requests]
    always = {
        bad: failed_with(400),
        busy: failed_with(429),
        broken: failed_with(500),
        late: expired,
        odd: lambda line: answered(line, {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}),
    }
    stub.outcome = lambda line, attempt: always.get(line["custom_id"], answered)(line)
    report = run(configured, tmp_path, requests)
    tries = 1 + configured.max_retries
    assert times_handed_over(stub) == {bad: 1, busy: tries, broken: tries, late: tries, odd: 1, requests[5].key: 1}
    assert report["left"] == {
        exchange.BAD_REQUEST: 1,
        exchange.RATE_LIMITED: 1,
        exchange.SERVER_ERROR: 1,
        NOT_ANSWERED: 1,
        exchange.INVALID_RESPONSE: 1,
    }
    assert report["answered"] == 1
    # The answer that cannot be used was billed all the same, and nothing of its prompt was cached.
    odd_usd = (1000 * 0.15 + 100 * 0.60) / 1e6 / 2
    assert report["cost_usd"] == pytest.approx(ONE_BATCH_CALL_USD + odd_usd)
    batches = len(stub.batches)
    assert run(configured, tmp_path, requests)["left"] == report["left"]
    assert len(stub.batches) == batches


def test_a_refused_file_is_a_sentence_and_its_requests_wait_for_the_next_run(stub, tmp_path):
    configured = config(stub, batch={"requests_per_file": 2})
    requests = plan(configured, 4)
    stub.end_status = lambda number: "completed" if number else "failed"
    stub.failed_errors = [{"code": "invalid_json_line", "line": 2, "message": f"not JSON, says Bearer {KEY}"}]
    report = run(configured, tmp_path, requests)
    assert (
        "refused the batch batch-0 as a whole, 2 requests, invalid_json_line in line 2: not JSON" in report["refusal"]
    )
    assert "Wm42" not in report["refusal"]
    assert (report["answered"], report["not_handed_over"]) == (2, 2)
    assert run(configured, tmp_path, requests)["answered"] == 4
    assert times_handed_over(stub) == {r.key: 2 if r in requests[:2] else 1 for r in requests}


def test_a_full_queue_names_the_setting_that_avoids_it(stub, tmp_path):
    stub.end_status = lambda number: "failed"
    stub.failed_errors = [{"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached"}]
    configured = config(stub)
    report = run(configured, tmp_path, plan(configured, 2))
    assert "set llm.batch.max_enqueued_tokens below the account's limit" in report["refusal"]


def test_never_more_tokens_are_enqueued_than_the_limit(stub, tmp_path):
    requests = plan(config(stub), 8)
    one = max(expected_usage(request, config(stub)).prompt for request in requests)
    configured = config(stub, batch={"max_enqueued_tokens": 3 * one})
    enqueued: list[int] = []

    def look(name: str) -> None:
        if name == "POST /v1/batches":
            enqueued.append(sum(len(batch.lines) for batch in stub.batches if batch.status == "in_progress"))

    stub.after = look
    assert run(configured, tmp_path, requests)["answered"] == 8
    assert max(enqueued) == 3
    limited = config(stub, batch={"max_enqueued_tokens": 1}, seed=1)
    with pytest.raises(LlmError, match=r"must have room for a request, got 1 for about \d+ tokens"):
        run(limited, tmp_path, plan(limited, 2))


@pytest.mark.parametrize("cap", ["money", "tokens"])
def test_the_cap_holds_at_the_batch_price_and_unspent_reserve_is_used_in_a_next_batch(stub, tmp_path, cap):
    budget = {"max_cost_usd": 12.5 * ONE_BATCH_CALL_USD} if cap == "money" else {"max_tokens": 12 * 1100 + 500}
    configured = config(stub, budget=budget)
    requests = plan(configured, 30)
    report = run(configured, tmp_path, requests)
    # What is set aside for a request is dearer than the request, so the last ones stop a little early.
    assert 8 <= report["answered"] <= 12
    assert len(stub.batches) > 1
    assert report["not_handed_over"] == 30 - report["answered"]
    assert report["cost_usd"] == pytest.approx(report["answered"] * ONE_BATCH_CALL_USD)
    assert (report["under_way"], report["set_aside_usd"]) == (0, 0)
    assert run(config(stub), tmp_path, requests)["answered"] == 30
    assert set(times_handed_over(stub).values()) == {1}


def test_an_answer_lost_on_the_way_does_not_create_a_batch_twice(stub, tmp_path):
    lost = iter([True, False])

    def cut(name: str) -> None:
        if name == "POST /v1/batches" and next(lost):
            raise ConnectionError

    # Carried out, then cut off before the answer; the batch is on the second page of the list.
    stub.after = cut
    stub.page = 1
    configured = config(stub, batch={"requests_per_file": 2})
    requests = plan(configured, 4)
    assert run(configured, tmp_path, requests)["answered"] == 4
    assert times_handed_over(stub) == {request.key: 1 for request in requests}
    assert stub.received.count("GET /v1/batches") == 1


def test_a_creation_that_never_arrived_is_sent_again_once_the_list_does_not_have_it(stub, tmp_path):
    lost = iter([True, False])

    def cut(name: str) -> None:
        if name == "POST /v1/batches" and next(lost):
            raise ConnectionError

    stub.before = cut
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2))["answered"] == 2
    assert len(stub.batches) == 1


def test_a_live_run_asks_nothing_that_is_with_the_batch_api(stub, tmp_path):
    configured = settings(stub, candidates=CANDIDATES, budget={"pairs": 60})
    scoring = job(tmp_path, "one", configured)
    scoring.batch_job(train_rows()).run(wait=False)
    with pytest.raises(LlmError, match=r"10 of 10 calls are with the Batch API.*sllmr batch --cancel"):
        scoring.run(train_rows())
    assert stub.live == []
    size = scoring.forecast(train_rows())[-1].size
    assert (size.under_way, size.to_send, size.cost_nano_usd) == (10, 0, 0)


def test_a_cancelled_batch_leaves_what_it_answered_and_frees_the_rest(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 4)
    kept = requests[0].key
    stub.looks = 1
    stub.outcome = lambda line, attempt: answered(line) if line["custom_id"] == kept else expired(line)
    run(configured, tmp_path, requests, wait=False)
    work = batch_job(configured, tmp_path, requests)
    report = work.cancel()
    work.close()
    assert (report["answered"], report["under_way"], report["not_handed_over"]) == (1, 0, 3)
    assert [request.key for request in cached(tmp_path, requests)] == [kept]
    stub.outcome = lambda line, attempt: answered(line)
    assert run(configured, tmp_path, requests)["answered"] == 4
    assert times_handed_over(stub)[kept] == 1


def test_a_batch_that_the_endpoint_does_not_know_is_only_given_up_on_the_persons_word(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 2)
    run(configured, tmp_path, requests, wait=False)
    elsewhere, stub.batches = stub.batches, []
    for _ in range(2):
        with pytest.raises(LlmError, match=r"does not know the batch batch-0; set the key.*or give it up with"):
            run(configured, tmp_path, requests)
    work = batch_job(configured, tmp_path, requests)
    assert work.cancel()["not_handed_over"] == 2
    work.close()
    assert run(configured, tmp_path, requests)["answered"] == 2
    assert len(elsewhere) == len(stub.batches) == 1


def test_requests_under_way_at_another_endpoint_are_not_handed_over_here(stub, tmp_path):
    configured = config(stub)
    run(configured, tmp_path, plan(configured, 2), wait=False)
    with running_batch_stub() as other:
        moved = config(other)
        with pytest.raises(LlmError, match=rf"with the Batch API at {stub.base_url}; set llm.base_url to it"):
            run(moved, tmp_path, plan(moved, 3))
        assert other.batches == []


def test_one_process_at_a_time_works_on_the_batches(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 2)
    seen: list[str] = []

    def try_another(name: str) -> None:
        if name == "POST /v1/files":
            with pytest.raises(LlmError, match="one process at a time") as caught:
                run(configured, tmp_path, requests)
            seen.append(str(caught.value))

    stub.before = try_another
    run(configured, tmp_path, requests)
    assert len(seen) == 1


def test_neither_the_key_nor_anything_beside_the_answers_gets_from_a_bad_server_into_a_file(stub, tmp_path, caplog):
    caplog.set_level("INFO")
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    separators = "\u2028\x85"

    def outcome(line, attempt):
        number = requests.index(line["custom_id"])
        if number == 0:
            return {**answered(line), "response": {"status_code": 400, "body": {"error": f"Bearer {KEY}"}}}
        body = chat_response(scores_of(line["body"]))
        body["choices"][0]["message"]["note"] = KEY + separators
        return {**answered(line, body), "custom_id": "somebody-elses" if number == 1 else line["custom_id"]}

    configured = config(stub, max_retries=0)
    planned = plan(configured, 5)
    requests = [request.key for request in planned]
    stub.outcome = outcome
    stub.spoil = lambda content: content.replace(KEY.encode(), escaped.encode()) + b"no json\n[1]\n\n"
    report = run(configured, tmp_path, planned)
    assert report["left"] == {exchange.BAD_REQUEST: 1, NOT_ANSWERED: 1}
    assert report["answered"] == 3
    seen = [caplog.text, repr(report)]
    seen += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(seen) > 3
    for text in seen:
        assert "Wm42" not in text
    assert any("[redacted]" in text for text in seen)


def test_an_endpoint_without_a_batch_api_says_so(stub, tmp_path):
    stub.missing = "POST /v1/files"
    configured = config(stub)
    with pytest.raises(LlmError, match="has no Batch API; run sllmr score instead"):
        run(configured, tmp_path, plan(configured, 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the bundled model runs on this machine.*set llm.model"),
        (
            {"base_url": "http://127.0.0.1:9/v1"},
            "forces given tokens.*set llm.strategy to listwise, yes_no or embedding",
        ),
        ({"strategy": "replay", "replay_table": "t.csv"}, "the scores come from a file"),
    ],
)
def test_what_the_batch_api_cannot_ask_is_refused_with_the_fix(values, message):
    strategy = {"strategy": "listwise"} if not values else {}
    with pytest.raises(LlmError, match=message):
        check_batch(LlmConfig.model_validate({**strategy, **values}).resolve())


ZYGOTE = """
import os, pickle, signal, sys
import openai, httpx2  # the slow part, once
from components.llm_scorer.batch import BatchJob
from components.llm_scorer.batch_state import BatchState
from components.llm_scorer.cache import ResponseCache
with open(sys.argv[1], "rb") as file:
    configured, directory, requests = pickle.load(file)

def dying(write, moment):
    def die(*args, **kwargs):
        if moment == "after":
            write(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return die

for line in sys.stdin:
    where, moment = line.split()
    process = os.fork()
    if process:
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)
        continue
    owner = ResponseCache if where == "put_all" else BatchState
    if where != "nowhere":
        setattr(owner, where, dying(getattr(owner, where), moment))
    try:
        report = BatchJob(configured, directory, lambda: iter(requests)).run(wait=True)
        os._exit(0 if report["answered"] == len(requests) else 1)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(2)
"""


class Zygote:
    """Starts processes that run the job, quickly, and tells how they ended."""

    def __init__(self, directory: pathlib.Path, stub: StubBatchServer):
        configured = config(stub, batch={"requests_per_file": 2})
        self.requests = plan(configured, 5)
        (directory / "job.pickle").write_bytes(pickle.dumps((configured, str(directory / "cache"), self.requests)))
        command = [sys.executable, "-c", ZYGOTE, str(directory / "job.pickle")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.running = 0

    def run(self, where: str = "nowhere", moment: str = "-") -> int:
        """The wait status of a run that dies at the given write."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{where} {moment}\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return int(self.process.stdout.readline())


@pytest.fixture
def zygote(stub: StubBatchServer, tmp_path: pathlib.Path) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path, stub)
    yield zygote
    assert zygote.process.stdin is not None
    zygote.process.stdin.close()
    zygote.process.wait()


def check_nothing_was_asked_twice(zygote: Zygote, stub: StubBatchServer, directory: pathlib.Path) -> None:
    assert zygote.run() == 0
    assert times_handed_over(stub) == {request.key: 1 for request in zygote.requests}
    assert cached(directory / "cache", zygote.requests) == zygote.requests


def test_a_process_killed_at_any_request_hands_nothing_over_twice(stub, tmp_path, zygote):
    due: list[tuple[str, str]] = []

    def kill_if_due(name: str, moment: str) -> None:
        if due and due[0] == (name, moment):
            due.clear()
            # The request that comes first may come before the pid was read: it is the zygote's only child.
            children = pathlib.Path(f"/proc/{zygote.process.pid}/task/{zygote.process.pid}/children").read_text()
            os.kill(int(children), signal.SIGKILL)
            raise ConnectionError

    stub.before = lambda name: kill_if_due(name, "before")
    stub.after = lambda name: kill_if_due(name, "after")
    for name in (
        "POST /v1/files",
        "POST /v1/batches",
        "GET /v1/batches",
        "GET /v1/batches/ID",
        "GET /v1/files/ID/content",
    ):
        for moment in ("before", "after"):
            if name == "GET /v1/batches":
                # Asked only after a creation whose end is unknown.
                due[:] = [("POST /v1/batches", "after")]
                assert zygote.run() == signal.SIGKILL
            due[:] = [(name, moment)]
            assert zygote.run() == signal.SIGKILL, (name, moment)
    check_nothing_was_asked_twice(zygote, stub, tmp_path)


def test_a_process_killed_between_its_own_writes_hands_nothing_over_twice(stub, tmp_path, zygote):
    for write in ("add", "update", "put_all", "finish"):
        for moment in ("before", "after"):
            assert zygote.run(write, moment) == signal.SIGKILL, (write, moment)
    check_nothing_was_asked_twice(zygote, stub, tmp_path)

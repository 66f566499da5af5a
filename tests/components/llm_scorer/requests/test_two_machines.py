"""Two scoring jobs of one plan with nothing in common but PostgreSQL and the endpoint, as on two machines."""

import collections
import json
import os
import pathlib
import signal
import time
import traceback

import apache_beam as beam
import pytest

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.scoring import score_contexts
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.messages import BUDGET_EXHAUSTED
from sllmr.components.llm_scorer.requests.ledger import release_reservations, reservations_by_run
from sllmr.components.llm_scorer.requests.rate_limit import REQUESTS
from sllmr.components.llm_scorer.results import ScoringLedger, read_ledger
from sllmr.components.llm_scorer.store import leases, processes
from tests.components.llm_scorer.forks import FORKS
from tests.components.llm_scorer.market import market_items
from tests.components.llm_scorer.postgresql_server import PASSWORD
from tests.components.llm_scorer.requests.test_handler import ONE_CALL_USD, contexts
from tests.components.llm_scorer.stub_server import StubHandler, StubServer, chat_response, scores_of

CONTEXTS = 60
CONCURRENCY = 4
INTERVAL_S = 0.1
LEASE_S = 6.0
DEAREST_USD = 0.0015
"""More than a request can cost by what is reserved for it."""


class Machine:
    """A folder for the cache and all else; the environment has the passwords."""

    def __init__(self, root: pathlib.Path, name: str, store: str, stub: StubServer):
        self._root = root / name
        self._name = name
        self._store = store
        self._stub = stub
        write_catalog(str(self._root / "catalog"), market_items().values())

    def start(self, job: str, max_cost_usd: float):
        for part in ("work", "scores"):
            (self._root / job / part).mkdir(parents=True)
        config = LlmConfig.model_validate(
            {
                "model": "gpt-4o-mini",
                "base_url": self._stub.base_url,
                "api_key_env": "STUB_KEY",
                "concurrency": CONCURRENCY,
                "max_failure_rate": 1,
                "budget": {"pairs": 2 * CONTEXTS, "max_cost_usd": max_cost_usd},
                "limits": {"requests_per_minute": round(60 / INTERVAL_S)},
            }
        )
        workspace = Workspace(
            config=config,
            catalog_directory=str(self._root / "catalog"),
            cache_directory=str(self._root / "cache"),
            store_url=self._store,
            work_directory=str(self._root / job / "work"),
            output_directory=str(self._root / job / "scores"),
            make_pipeline=beam.Pipeline,
        )
        process = FORKS.Process(target=run, args=(workspace, self._name, str(self._root / f"{job}.log")))
        process.start()
        return process

    def book(self, job: str, process) -> ScoringLedger:
        process.join()
        assert process.exitcode == 0, (self._root / f"{job}.log").read_text()[-3000:]
        return read_ledger(self._root / job / "scores")


def run(workspace: Workspace, name: str, log: str) -> None:
    os.environ |= {"PGPASSWORD": PASSWORD, "STUB_KEY": name}
    leases.LEASE_S, leases.BEAT_S = LEASE_S, 0.5
    processes._machine = lambda: f"machine {name}"
    with open(log, "w", encoding="utf-8") as file:
        try:
            # From both ends: in one order, the second would mostly wait for what the first has in flight.
            score_contexts(workspace, contexts(CONTEXTS)[:: 1 if name == "one" else -1])
        except BaseException:
            traceback.print_exc(file=file)
            raise


class Endpoint:
    """Keeps what it receives, and from whom."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []

    def __call__(self, handler: StubHandler, body: dict) -> None:
        machine, content = handler.headers["Authorization"].removeprefix("Bearer "), json.dumps(body["messages"])
        self.requests.append((machine, content))
        time.sleep(0.3)  # in flight, when one is killed
        handler.send_json(200, chat_response(scores_of(body)))

    def sent_by(self, machine: str) -> list[str]:
        return [content for by, content in self.requests if by == machine]


@pytest.mark.slow
def test_two_machines_pay_for_nothing_twice_and_keep_to_budget_and_limit_through_a_kill(
    stub, tmp_path, postgresql, shared_store
):
    endpoint = Endpoint()
    stub.always = endpoint
    one, two = (Machine(tmp_path, name, shared_store, stub) for name in ("one", "two"))
    cap = 40 * ONE_CALL_USD
    started = time.time()
    first, second = one.start("first", cap), two.start("first", cap)
    stub.wait_until(lambda: len(endpoint.sent_by("one")) >= 6 and len(endpoint.sent_by("two")) >= 6, 120)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    at_kill = set(endpoint.sent_by("one"))
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        turns = connection.execute("SELECT value / 1e6 FROM counters WHERE name = %s", (REQUESTS,)).fetchall()
    # One queue: whoever takes a turn in it waits for those of all others.
    assert len(turns) == 1
    assert float(turns[0][0]) >= started + len(endpoint.requests) * INTERVAL_S
    again = one.start("again", cap)
    books = [one.book("again", again), two.book("first", second)]

    def sent_twice() -> set[str]:
        counts = collections.Counter(content for _, content in endpoint.requests)
        assert max(counts.values()) <= 2
        return {content for content, count in counts.items() if count == 2}

    # Every request that the endpoint received is on its bill.
    assert 10 < len(endpoint.requests) <= 40
    assert len(sent_twice()) <= CONCURRENCY
    assert sent_twice() <= at_kill
    # As much of the budget was spent as reservations leave: one request did not fit.
    reserved = sum(run.nano_usd for run in reservations_by_run(shared_store)) / 1e9
    assert len(endpoint.requests) * ONE_CALL_USD + reserved > cap - DEAREST_USD
    assert all(book.failures.keys() == {BUDGET_EXHAUSTED} for book in books)

    # With a higher cap, one machine completes the plan; it pays for what nobody has paid for.
    book = two.book("higher", two.start("higher", 1.0))
    assert book.scored == 2 * CONTEXTS
    assert len(sent_twice()) <= CONCURRENCY
    assert sent_twice() <= at_kill
    assert len(endpoint.requests) == CONTEXTS + len(sent_twice())
    assert book.requests.cached + book.requests.sent == CONTEXTS

    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (CONTEXTS,)
    assert not list(tmp_path.rglob("*.sqlite"))
    assert release_reservations(shared_store)

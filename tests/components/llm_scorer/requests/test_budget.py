"""The cap in tokens; the one in money is in test_handler.py and test_job.py, both by batch in test_batch.py."""

import json

import apache_beam as beam
import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.cost.estimate import estimate
from sllmr.components.llm_scorer.jobs.plan import planned_contexts
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.ledger import (
    Reservations,
    RunLedger,
    release_reservations,
    reservations_by_run,
)
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.forks import FORKS
from tests.components.llm_scorer.market import market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, chat_response, scores_of
from tests.components.llm_scorer.test_job import stub_settings, workspace

# The stub bills each call so.
TOKENS = 1000 + 100


@pytest.mark.slow
def test_the_cap_in_tokens_counts_earlier_runs_and_a_higher_one_goes_on_from_there(stub, tmp_path, caplog):
    # Aside for a call are as many as its bytes and the longest answer: more than it then takes.
    capped = stub_settings(stub, budget={"pairs": 60, "max_tokens": 6 * TOKENS})
    first = score(workspace(tmp_path, "one", capped), beam.Create(market_rows()))
    calls = first.requests.sent
    assert 2 <= calls <= 6
    assert first.failures == {messages.BUDGET_EXHAUSTED: 6 * (10 - calls)}
    assert f"as llm.budget.max_tokens={6 * TOKENS} would have been passed; raise it and run again" in caplog.text

    again = score(workspace(tmp_path, "two", capped), beam.Create(market_rows()))
    assert calls + again.requests.sent <= 6
    assert again.requests.cached == calls

    higher = stub_settings(stub, budget={"pairs": 60, "max_tokens": 100 * TOKENS})
    assert score(workspace(tmp_path, "three", higher), beam.Create(market_rows())).scored == 60
    assert len(stub.received) == 10


def without_usage(handler, body) -> None:
    response = chat_response(scores_of(body))
    del response["usage"]
    handler.send_json(200, response)


def with_zeros(handler, body) -> None:
    response = chat_response(scores_of(body))
    response["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    handler.send_json(200, response)


def most_tokens(stub: StubServer) -> list[int]:
    """The most tokens of each request that was received: a byte is a token at most, and the answer its limit."""
    return [
        len(json.dumps(body["messages"], ensure_ascii=False).encode()) + body["max_tokens"] for body in stub.received
    ]


@pytest.mark.slow
@pytest.mark.parametrize("reply", [without_usage, with_zeros])
def test_a_response_without_usage_is_booked_at_its_most_in_this_run_and_the_next(stub, tmp_path, caplog, reply):
    stub.always = reply
    cap = 4000
    settings = stub_settings(stub, budget={"pairs": 60, "max_tokens": cap})
    first = score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    sent = first.requests.sent
    assert 1 <= sent < 10
    assert cap >= first.tokens.prompt + first.tokens.completion >= sum(most_tokens(stub))
    assert first.responses_without_usage == sent
    assert f"{sent} responses reported no token counts (usage)" in caplog.text

    again = score(workspace(tmp_path, "two", settings), beam.Create(market_rows()))
    assert again.requests.sent == 0


def run_alone(scoring: Workspace, rows: list[bytes]) -> None:
    score(scoring, beam.Create(rows))


@pytest.mark.slow
@pytest.mark.parametrize("caps", [{"max_tokens": 20_000}, {}], ids=["capped", "uncapped"])
def test_what_was_in_flight_at_a_kill_counts_as_spent_in_later_runs(stub, tmp_path, caps):
    settings = stub_settings(stub, budget={"pairs": 60, **caps}, concurrency=2)
    planned = workspace(tmp_path, "killed", settings)
    stub.gate.clear()
    stub.free_answers = 1
    process = FORKS.Process(target=run_alone, args=(planned, market_rows()))
    process.start()
    # The thread that was answered has stored it before it sends again.
    stub.wait_until(lambda: len(stub.received) == 3)
    process.kill()
    process.join()
    stub.gate.set()
    lost = most_tokens(stub)[1:]

    config = planned.config.resolve()
    size = estimate(
        planned_contexts(planned),
        market_items(),
        create_strategy(config),
        config,
        ResponseCache(planned.cache_directory),
    )
    assert size.cached == 1
    assert size.unsettled == 2
    assert size.prior_tokens >= TOKENS + sum(lost)
    assert "2 requests of earlier runs ended without a response and may be on the bill" in str(size)

    # A cap that the response and the two lost requests fill leaves room for no more.
    full = stub_settings(stub, budget={"pairs": 60, "max_tokens": TOKENS + sum(lost) + 100})
    book = score(workspace(tmp_path, "next", full), beam.Create(market_rows()))
    assert (book.requests.sent, book.requests.cached) == (0, 1)
    (released,) = release_reservations(planned.cache_directory)
    assert (released.requests, released.is_running) == (2, False)
    assert score(workspace(tmp_path, "released", full), beam.Create(market_rows())).requests.sent > 0


def test_reservations_of_a_run_under_way_are_not_released(store):
    run = RunLedger(store, "run")
    amounts = {ledger.RESERVED_NANO_USD: 500, ledger.RESERVED_TOKENS: 7}
    with run.driven():
        assert run.reserve("a", amounts, {}) == ledger.ROOM
        assert release_reservations(store) == []
        assert reservations_by_run(store) == [Reservations("run", True, 1, 500, 7)]
    assert release_reservations(store) == [Reservations("run", False, 1, 500, 7)]
    assert reservations_by_run(store) == []


@pytest.mark.slow
def test_a_request_without_room_waits_for_those_in_flight(stub, tmp_path):
    # One reservation fills the cap, and each response leaves room for the next: none is refused.
    settings = stub_settings(stub, budget={"pairs": 60, "max_tokens": 10 * TOKENS + 1500}, concurrency=8)
    book = score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    assert book.scored == 60
    assert book.requests.refused_by_budget == 0

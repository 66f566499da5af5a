import collections
import concurrent.futures
import dataclasses
import json
import pickle
import threading
import time
from collections.abc import Sequence

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.test_pipeline import TestPipeline as BeamPipeline
from apache_beam.testing.util import assert_that

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Answer, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.congestion import THROTTLED
from sllmr.components.llm_scorer.requests.handler import HOPELESS_AFTER, AskAhead, LlmHandler, RunEnded, Session
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.requests.progress import progress_line
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.llm_scorer.strategies.outcome import Outcome
from sllmr.components.scores import ScoreRecord
from tests.components.llm_scorer.forks import FORKS
from tests.components.llm_scorer.market import context, market_items
from tests.components.llm_scorer.stub_server import (
    StubServer,
    chat_response,
    cutting_body,
    echoing_key,
    failing,
    scores_of,
)

CATALOG = market_items()
ONE_CALL_USD = (800 * 0.15 + 200 * 0.075 + 100 * 0.60) / 1e6


def config(stub: StubServer, **values) -> LlmConfig:
    settings = {
        "model": "gpt-4o-mini",
        "base_url": stub.base_url,
        "api_key_env": "NO_SUCH_KEY",
        "max_retries": 0,
    }
    return LlmConfig.model_validate({**settings, "concurrency": 2, **values}).resolve()


def contexts(count: int) -> list[Context]:
    return [
        context(name=f"c{n}", items=(f"i{n % 50}", f"i{n % 50 + 1}"), history=(f"i{52 + n // 50}",))
        for n in range(count)
    ]


class AnswersAlone:
    """Asks as configured, and keeps the answers as they came."""

    def __init__(self, settings: LlmConfig):
        self._strategy = create_strategy(settings)

    def requests(self, asked: Context) -> Sequence[LlmRequest]:
        return self._strategy.requests(asked, CATALOG)

    def read(self, asked: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> list[Answer]:
        return list(answers)

    def failure(self, request: LlmRequest, response: dict) -> Failure | None:
        return self._strategy.failure(request, response)


def session(settings: LlmConfig, base_url: str, directory: str, run: str = "run") -> Session[list[Answer]]:
    return Session(settings, base_url, directory, run, AnswersAlone(settings))


def reasons(answered: list[list[Answer]]) -> collections.Counter:
    return collections.Counter(answer.reason for answers in answered for answer in answers)


@pytest.mark.slow
def test_run_inference_scores_every_context_and_the_handler_can_be_pickled(stub, tmp_path):
    settings = config(stub)
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    made = LlmHandler(settings, stub.base_url, str(tmp_path), "run", str(tmp_path / "catalog"))
    handler = pickle.loads(pickle.dumps(made))

    def check(outcomes: list[Outcome]) -> None:
        records = [ScoreRecord.parse(outcome.record) for outcome in outcomes if outcome.record]
        assert {record.context_id for record in records} == {f"c{n}" for n in range(9)}
        assert all(len(record.llm_scores) == 2 for record in records)
        assert not any(outcome.failures for outcome in outcomes)

    with BeamPipeline() as pipeline:
        assert_that(pipeline | beam.Create(contexts(9)) | RunInference(handler), check)
    assert len(stub.received) == 9


def test_requests_are_made_and_answers_read_while_other_calls_are_under_way(stub, tmp_path):
    settings = config(stub)
    both_ask, both_read = (threading.Barrier(2, timeout=10) for _ in range(2))

    class TwoAtOnce(AnswersAlone):
        def requests(self, asked: Context) -> Sequence[LlmRequest]:
            both_ask.wait()  # would break if one context were asked about after the other
            return super().requests(asked)

        def read(self, asked: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> list[Answer]:
            both_read.wait()
            return super().read(asked, requests, answers)

    asking = Session(settings, stub.base_url, str(tmp_path), "run", TwoAtOnce(settings))
    assert reasons(asking.score_all(contexts(4))) == {"": 4}


def wait_for_calls(stub: StubServer, calls: int) -> None:
    deadline = time.monotonic() + 10
    while len(stub.received) < calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pairs_are_counted_while_others_of_their_batch_and_of_their_context_are_in_flight(stub, tmp_path):
    class OneRequestEach(AnswersAlone):
        def requests(self, asked: Context) -> Sequence[LlmRequest]:
            alone = [dataclasses.replace(asked, candidates=(each,)) for each in asked.candidates]
            return [request for part in alone for request in super(OneRequestEach, self).requests(part)]

    settings = config(stub, concurrency=1)
    asking = Session(settings, stub.base_url, str(tmp_path), "run", OneRequestEach(settings))
    counters = RunLedger(str(tmp_path), "run")
    stub.free_answers = 3
    stub.gate.clear()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        try:
            batch = threads.submit(asking.score_all, contexts(7)[::2])  # without a common item
            stub.wait_until(lambda: len(stub.received) == 4, timeout=10)
            line = progress_line(counters.totals(), pairs=8, to_send=8, concurrency=1, seconds=1)
            assert line.startswith("llm: 3/8 pairs, 3/8 requests")
            assert not batch.done()
        finally:
            stub.gate.set()
        batch.result(timeout=10)
    assert counters.totals()[ledger.PAIRS_DONE] == 8


def test_what_was_begun_is_asked_before_its_batch_comes_and_only_once(stub, tmp_path):
    asked = contexts(6)
    asking = session(config(stub), stub.base_url, str(tmp_path))
    for begun in asked[2:]:
        asking.begin(begun)
    wait_for_calls(stub, 4)
    assert len(stub.received) == 4
    first, second = asking.score_all(asked[:3]), asking.score_all(asked[3:])
    assert len(stub.received) == 6
    again = session(config(stub), stub.base_url, str(tmp_path), "again").score_all(asked)
    assert [answers[0].response for answers in again] == [answers[0].response for answers in first + second]


def test_an_error_in_what_was_begun_ends_the_batch_before_it_and_all_else(stub, tmp_path):
    settings = config(stub, concurrency=1)
    bad_is_read = threading.Event()

    class OneUnreadable(AnswersAlone):
        def read(self, asked: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> list[Answer]:
            if asked.context_id == "c0":
                bad_is_read.set()
                raise KeyError(asked.context_id)
            return super().read(asked, requests, answers)

    asked = contexts(20)
    asking = Session(settings, stub.base_url, str(tmp_path), "run", OneUnreadable(settings))
    asking.begin(asked[0])
    assert bad_is_read.wait(timeout=10)
    for later in asked[2:]:
        asking.begin(later)
    with pytest.raises(KeyError, match="c0"):
        asking.score_all(asked[1:2])
    assert len(stub.received) == 1
    # The session itself is as good as new.
    assert reasons(asking.score_all(asked[1:3])) == {"": 2}


@pytest.mark.slow
def test_asking_ahead_hands_every_context_on_in_order_and_the_calls_are_shared_with_run_inference(stub, tmp_path):
    settings = config(stub)
    write_catalog(str(tmp_path / "catalog"), CATALOG.values())
    handler = LlmHandler(settings, stub.base_url, str(tmp_path), "run", str(tmp_path / "catalog"))
    ahead = handler.contexts_ahead
    asked = contexts(50)
    step = AskAhead(handler)
    step.setup()
    step.start_bundle()
    # More than are begun ahead, so that some are handed on before the end of the bundle; contexts recur from the cache.
    many = [dataclasses.replace(asked[n % 50], context_id=f"n{n}") for n in range(ahead + 10)]
    handed_on = [context for each in many for context in step.process(each)]
    assert handed_on == many[:10]
    wait_for_calls(stub, 10)  # RunInference has not had one of them yet
    rest = [windowed.value for windowed in step.finish_bundle()]
    assert handed_on + rest == many
    outcomes = handler.request(rest, handler.create_client())
    assert [ScoreRecord.parse(o.record).context_id for o in outcomes if o.record] == [c.context_id for c in rest]
    assert len(stub.received) == len({json.dumps(body) for body in stub.received})
    # Pairs of requests that are sent count at once, also those of contexts that went on before, for another to take up.
    assert RunLedger(str(tmp_path), "run").totals()[ledger.PAIRS_DONE] == 2 * len(many)


def test_an_answer_that_cannot_be_read_ends_the_job(stub, tmp_path):
    settings = config(stub)

    class Unreadable(AnswersAlone):
        def read(self, asked: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> list[Answer]:
            raise KeyError(asked.context_id)

    with pytest.raises(KeyError):
        Session(settings, stub.base_url, str(tmp_path), "run", Unreadable(settings)).score_all(contexts(4))


def test_an_answer_that_is_known_is_not_asked_for_again(stub, tmp_path):
    settings = config(stub)
    asked = contexts(5)
    first = session(settings, stub.base_url, str(tmp_path), "one").score_all(asked)
    second = session(settings, stub.base_url, str(tmp_path), "two").score_all(asked)
    assert len(stub.received) == 5
    assert [answers[0].response for answers in first] == [answers[0].response for answers in second]
    assert all(answers[0].cached for answers in second)
    totals = RunLedger(str(tmp_path), "two").totals()
    assert totals == {ledger.REQUESTS_CACHED: 5, ledger.PAIRS_CACHED: 10, ledger.PAIRS_DONE: 10}


def test_usage_and_cost_are_what_the_server_counted(stub, tmp_path):
    settings = config(stub)
    session(settings, stub.base_url, str(tmp_path)).score_all(contexts(4))
    totals = RunLedger(str(tmp_path), "run").totals()
    assert totals[ledger.PROMPT_TOKENS] == 4 * 1000
    assert totals[ledger.CACHED_PROMPT_TOKENS] == 4 * 200
    assert totals[ledger.COMPLETION_TOKENS] == 4 * 100
    assert totals[ledger.NANO_USD] / 1e9 == pytest.approx(4 * ONE_CALL_USD)
    assert totals.get(ledger.RESERVED_NANO_USD, 0) == 0


def test_one_failure_leaves_the_others_alone_and_is_not_cached(stub, tmp_path):
    settings = config(stub, concurrency=1)
    asked = contexts(4)
    stub.replies = [failing(500, {"message": "oops"})]
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(asked)
    assert reasons(answered) == {messages.SERVER_ERROR: 1, "": 3}
    again = session(settings, stub.base_url, str(tmp_path), "again").score_all(asked)
    assert reasons(again) == {"": 4}
    assert len(stub.received) == 5


# Asked for by the server, so that the tests need not wait for the back-off.
AT_ONCE = {"retry-after-ms": "1"}


@pytest.mark.slow
def test_what_fails_in_passing_is_asked_again(stub, tmp_path):
    settings = config(stub, concurrency=1, max_retries=4)
    stub.replies = [
        failing(429, {"message": "slow down"}, AT_ONCE),
        failing(500, {"message": "oops"}, AT_ONCE),
        cutting_body,
        lambda handler, body: handler.send_bytes(200, b"<html>busy</html>"),
    ]
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(1))
    assert reasons(answered) == {"": 1}
    assert len(stub.received) == 5
    totals = RunLedger(str(tmp_path), "run").totals()
    assert (totals[ledger.REQUESTS_SENT], totals[ledger.REQUESTS_RETRIED], totals.get(ledger.REQUESTS_FAILED)) == (
        1,
        4,
        None,
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_repeats_are_bounded_and_end_in_a_reason(stub, tmp_path, status):
    settings = config(stub, max_retries=2)
    stub.always = failing(status, {"message": "again"}, AT_ONCE)
    ((answer,),) = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(1))
    assert answer.reason == (messages.RATE_LIMITED if status == 429 else messages.SERVER_ERROR)
    assert len(stub.received) == 3


def test_a_bad_request_is_not_repeated(stub, tmp_path):
    settings = config(stub, max_retries=5)
    stub.always = failing(400, {"message": "the schema is wrong"})
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(1))
    assert reasons(answered) == {messages.BAD_REQUEST: 1}
    assert len(stub.received) == 1


def test_what_one_call_is_asked_to_wait_holds_back_the_others(stub, tmp_path):
    settings = config(stub, concurrency=4, max_retries=1)
    arrivals = []

    def remember(handler, body) -> None:
        arrivals.append(time.monotonic())
        handler.send_json(200, chat_response(scores_of(body)))

    stub.replies = [failing(429, {"message": "slow down"}, {"Retry-After": "1"})]
    asking = session(settings, stub.base_url, str(tmp_path))
    # The first call alone, so that nothing is in flight when it has to wait.
    first = threading.Thread(target=asking.score_all, args=(contexts(1),))
    first.start()
    stub.wait_until(lambda: len(stub.received) == 1)
    told = time.monotonic()
    stub.always = remember
    while not RunLedger(str(tmp_path), "run").totals().get(THROTTLED):
        time.sleep(0.001)
    asking.score_all(contexts(6)[1:])
    first.join()
    assert len(arrivals) == 6
    # A little less than a second, as it began when the client read the answer.
    assert min(arrivals) - told > 0.9


def test_a_request_that_many_contexts_need_at_once_is_sent_once(stub, tmp_path):
    settings = config(stub, concurrency=8)
    (asked,) = contexts(1)
    stub.gate.clear()
    sessions = [session(settings, stub.base_url, str(tmp_path), run) for run in ("one", "two")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answered = [pool.submit(asking.score_all, [asked] * 8) for asking in sessions]
        stub.wait_until(lambda: len(stub.received) == 1)
        stub.gate.set()
        responses = [answers[0].response for future in answered for answers in future.result()]
    assert len(stub.received) == 1
    assert responses == [responses[0]] * 16
    assert responses[0] is not None


@pytest.mark.slow
def test_money_for_an_answer_that_was_lost_stays_set_aside_and_the_cap_holds_whatever_was_billed(stub, tmp_path):
    settings = config(stub, concurrency=1, budget={"max_cost_usd": 0.0005}, max_retries=3)
    stub.always = cutting_body
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(3))
    totals = RunLedger(str(tmp_path), "run").totals()
    (request,) = create_strategy(settings).requests(contexts(1)[0], CATALOG)
    dearest = (request.prompt_bytes * 0.15 + request.max_tokens * 0.60) / 1e6
    assert reasons(answered) == {messages.BUDGET_EXHAUSTED: 3}
    assert len(stub.received) == 2
    assert 2 * dearest < totals[ledger.RESERVED_NANO_USD] / 1e9 <= 0.0005 < 3 * dearest


def test_the_cap_is_never_passed_and_what_was_paid_for_is_kept(stub, tmp_path):
    # What is set aside for a call is dearer than the call: the last ones stop a little early.
    settings = config(stub, budget={"max_cost_usd": 0.002})
    asked = contexts(40)
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(asked)
    spent = RunLedger(str(tmp_path), "run").totals()[ledger.NANO_USD] / 1e9
    counted = reasons(answered)
    assert 0 < counted[""] == len(stub.received) < 40
    assert counted[messages.BUDGET_EXHAUSTED] == 40 - counted[""]
    assert 0.002 - 5 * ONE_CALL_USD < spent <= 0.002


def test_a_refused_key_stops_all_threads_with_one_sentence(stub, tmp_path):
    settings = config(stub)
    stub.always = echoing_key(401)
    with pytest.raises(LlmError, match="refuses the key"):
        session(settings, stub.base_url, str(tmp_path)).score_all(contexts(50))
    assert len(stub.received) <= 2


def test_an_endpoint_that_never_answers_ends_the_job_early(stub, tmp_path):
    settings = config(stub)
    stub.always = failing(500, {"message": "down for today"})
    with pytest.raises(LlmError, match=r"all failed, the last with server_error: HTTP 500: .*down for today"):
        session(settings, stub.base_url, str(tmp_path)).score_all(contexts(60))
    assert len(stub.received) < HOPELESS_AFTER + 4


def test_a_run_that_was_ended_sends_nothing_more(stub, tmp_path):
    settings = config(stub)
    asked = contexts(4)
    session(settings, stub.base_url, str(tmp_path)).score_all(asked[:2])
    RunLedger(str(tmp_path), "run").end()
    asking = session(settings, stub.base_url, str(tmp_path))
    assert reasons(asking.score_all(asked[:2])) == {"": 2}
    with pytest.raises(RunEnded):
        asking.score_all(asked)
    assert len(stub.received) == 2


def score(settings: LlmConfig, base_url: str, directory: str, asked: list[Context]) -> None:
    answered = session(settings, base_url, directory).score_all(asked)
    assert reasons(answered) == {"": len(asked)}


@pytest.mark.slow
def test_a_process_killed_midway_asks_nothing_again_that_was_answered(stub, tmp_path):
    settings = config(stub)
    arguments = settings, stub.base_url, str(tmp_path / "cache"), contexts(20)

    stub.free_answers = 6
    stub.gate.clear()
    process = FORKS.Process(target=score, args=arguments)
    process.start()
    # Two calls wait at the gate, so both threads have stored all that they were answered before.
    stub.wait_until(lambda: len(stub.received) == 8)
    process.kill()
    process.join()
    answered = [json.dumps(body) for body in stub.answered]
    assert len(answered) == 6

    stub.gate.set()
    before = len(stub.received)
    process = FORKS.Process(target=score, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    asked_later = [json.dumps(body) for body in stub.received[before:]]
    assert len(asked_later) == 20 - 6
    assert not set(asked_later) & set(answered)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"finish_reason": "length"}, r"truncated: .*first response.*finish_reason.*raise llm\.max_output_tokens"),
        ({"message": {"content": "```junk"}}, r"invalid_json: .*first response.*```junk.*set an llm\.model"),
    ],
)
def test_twenty_responses_without_a_score_end_the_job_with_the_first_of_them(stub, tmp_path, choice, words):
    stub.always = lambda handler, body: handler.send_json(200, chat_response(scores_of(body), **choice))
    with pytest.raises(LlmError, match=words):
        session(config(stub), stub.base_url, str(tmp_path)).score_all(contexts(60))
    assert len(stub.received) < HOPELESS_AFTER + 4
    assert "first response" in RunLedger(str(tmp_path), "run").end_reason


def test_an_endpoint_that_stops_answering_in_mid_run_ends_the_job(stub, tmp_path):
    asking = session(config(stub), stub.base_url, str(tmp_path))
    assert reasons(asking.score_all(contexts(30)[:5])) == {"": 5}
    stub.always = failing(502, {"message": "bad gateway today"})
    with pytest.raises(LlmError, match=r"20 calls in a row failed .*bad gateway today"):
        asking.score_all(contexts(90)[5:])
    assert len(stub.received) < 5 + HOPELESS_AFTER + 4

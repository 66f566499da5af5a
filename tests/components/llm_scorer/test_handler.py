import collections
import json
import os
import pickle
import signal
import subprocess
import sys

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that

from components.llm_scorer import exchange, ledger
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import AnsweredGroup, RequestGroup
from components.llm_scorer.handler import HOPELESS_AFTER, LlmHandler, RunEnded, Session
from components.llm_scorer.ledger import RunLedger
from components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items
from tests.components.llm_scorer.stub_server import StubServer, echoing_key, failing

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


def groups(settings: LlmConfig, count: int) -> list[RequestGroup]:
    strategy = create_strategy(settings)
    contexts = [
        context(name=f"c{n}", items=(f"i{n % 50}", f"i{n % 50 + 1}"), history=(f"i{52 + n // 50}",))
        for n in range(count)
    ]
    return [RequestGroup(context=c, requests=strategy.requests(c, CATALOG)) for c in contexts]


def reasons(answered: list[AnsweredGroup]) -> collections.Counter:
    return collections.Counter(answer.reason for group in answered for answer in group.answers)


def test_run_inference_answers_every_group_and_the_handler_can_be_pickled(stub, tmp_path):
    settings = config(stub)
    handler = pickle.loads(pickle.dumps(LlmHandler(settings, stub.base_url, str(tmp_path), "run")))

    def check(answered: list[AnsweredGroup]) -> None:
        assert {g.context.context_id for g in answered} == {f"c{n}" for n in range(9)}
        assert reasons(answered) == {"": 9}

    with TestPipeline() as pipeline:
        assert_that(pipeline | beam.Create(groups(settings, 9)) | RunInference(handler), check)
    assert len(stub.received) == 9


def test_an_answer_that_is_known_is_not_asked_for_again(stub, tmp_path):
    settings = config(stub)
    asked = groups(settings, 5)
    first = Session(settings, stub.base_url, str(tmp_path), "one").answer_all(asked)
    second = Session(settings, stub.base_url, str(tmp_path), "two").answer_all(asked)
    assert len(stub.received) == 5
    assert [g.answers[0].response for g in first] == [g.answers[0].response for g in second]
    assert all(g.answers[0].cached for g in second)
    totals = RunLedger(str(tmp_path), "two").totals()
    assert totals == {ledger.CALLS_CACHED: 5, ledger.PAIRS_CACHED: 10, ledger.PAIRS_DONE: 10}


def test_usage_and_cost_are_what_the_server_counted(stub, tmp_path):
    settings = config(stub)
    Session(settings, stub.base_url, str(tmp_path), "run").answer_all(groups(settings, 4))
    totals = RunLedger(str(tmp_path), "run").totals()
    assert totals[ledger.PROMPT_TOKENS] == 4 * 1000
    assert totals[ledger.CACHED_PROMPT_TOKENS] == 4 * 200
    assert totals[ledger.COMPLETION_TOKENS] == 4 * 100
    assert totals[ledger.NANO_USD] / 1e9 == pytest.approx(4 * ONE_CALL_USD)
    assert totals.get(ledger.RESERVED_NANO_USD, 0) == 0


def test_one_failure_leaves_the_others_alone_and_is_not_cached(stub, tmp_path):
    settings = config(stub, concurrency=1)
    asked = groups(settings, 4)
    stub.replies = [failing(500, {"message": "oops"})]
    answered = Session(settings, stub.base_url, str(tmp_path), "run").answer_all(asked)
    assert reasons(answered) == {exchange.SERVER_ERROR: 1, "": 3}
    again = Session(settings, stub.base_url, str(tmp_path), "again").answer_all(asked)
    assert reasons(again) == {"": 4}
    assert len(stub.received) == 5


def test_the_cap_is_never_passed_and_what_was_paid_for_is_kept(stub, tmp_path):
    # What is set aside for a call is dearer than the call: the last ones stop a little early.
    settings = config(stub, budget={"max_cost_usd": 0.002})
    asked = groups(settings, 40)
    answered = Session(settings, stub.base_url, str(tmp_path), "run").answer_all(asked)
    spent = RunLedger(str(tmp_path), "run").totals()[ledger.NANO_USD] / 1e9
    counted = reasons(answered)
    assert 0 < counted[""] == len(stub.received) < 40
    assert counted[exchange.BUDGET_EXHAUSTED] == 40 - counted[""]
    assert 0.002 - 5 * ONE_CALL_USD < spent <= 0.002


def test_a_refused_key_stops_all_threads_with_one_sentence(stub, tmp_path):
    settings = config(stub)
    stub.always = echoing_key(401)
    with pytest.raises(LlmError, match="refuses the key"):
        Session(settings, stub.base_url, str(tmp_path), "run").answer_all(groups(settings, 50))
    assert len(stub.received) <= 2


def test_an_endpoint_that_never_answers_ends_the_job_early(stub, tmp_path):
    settings = config(stub)
    stub.always = failing(500, {"message": "down for today"})
    with pytest.raises(LlmError, match=r"all failed, the last with server_error: HTTP 500: .*down for today"):
        Session(settings, stub.base_url, str(tmp_path), "run").answer_all(groups(settings, 60))
    assert len(stub.received) < HOPELESS_AFTER + 4


def test_a_run_that_was_ended_sends_nothing_more(stub, tmp_path):
    settings = config(stub)
    asked = groups(settings, 4)
    Session(settings, stub.base_url, str(tmp_path), "run").answer_all(asked[:2])
    RunLedger(str(tmp_path), "run").end()
    session = Session(settings, stub.base_url, str(tmp_path), "run")
    assert reasons(session.answer_all(asked[:2])) == {"": 2}
    with pytest.raises(RunEnded):
        session.answer_all(asked)
    assert len(stub.received) == 2


SCORER = """
import json, pickle, sys
from components.llm_scorer.handler import Session
with open(sys.argv[1], "rb") as file:
    settings, base_url, directory, asked = pickle.load(file)
answered = Session(settings, base_url, directory, "run").answer_all(asked)
print(json.dumps(sum(1 for group in answered if not group.answers[0].reason)))
"""


def test_a_process_killed_midway_asks_nothing_again_that_was_answered(stub, tmp_path):
    settings = config(stub)
    job = tmp_path / "job.pickle"
    job.write_bytes(pickle.dumps((settings, stub.base_url, str(tmp_path / "cache"), groups(settings, 20))))
    command = [sys.executable, "-c", SCORER, str(job)]

    stub.free_answers = 6
    stub.gate.clear()
    process = subprocess.Popen(command)
    # Two calls wait at the gate, so both threads have stored all that they were answered before.
    stub.wait_until(lambda: len(stub.received) == 8)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    answered = [json.dumps(body) for body in stub.answered]
    assert len(answered) == 6

    stub.gate.set()
    before = len(stub.received)
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(finished.stdout) == 20
    asked_later = [json.dumps(body) for body in stub.received[before:]]
    assert len(asked_later) == 20 - 6
    assert not set(asked_later) & set(answered)

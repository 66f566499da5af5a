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

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.batch.job import NOT_ANSWERED, BatchJob, check_batch
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.tokens import expected_usage
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.batching import batch_job as batch_of_plan
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.messages import LlmRequest
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.results import BatchReport
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import ScoreRecord, read_scores
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.stub_batch_server import (
    StubBatchServer,
    answered,
    expired,
    failed_with,
    running_batch_stub,
)
from tests.components.llm_scorer.stub_server import chat_response, scores_of
from tests.components.llm_scorer.test_job import CANDIDATES, workspace

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
    return BatchJob(configured, str(directory), str(directory), lambda: iter(requests))


def run(configured: LlmConfig, directory: pathlib.Path, requests: list[LlmRequest], **options: Any) -> BatchReport:
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


@pytest.mark.slow
def test_the_batch_path_gives_the_live_paths_records_from_the_live_paths_bodies_at_half_the_price(stub, tmp_path):
    configured = settings(stub, strategy="listwise", candidates=CANDIDATES, budget={"pairs": 60})
    live = score(workspace(tmp_path / "live", "one", configured), train_rows())
    asked_live = [*stub.live]

    (tmp_path / "batch").mkdir()
    scoring = workspace(tmp_path / "batch", "one", configured)
    report = batch_of_plan(scoring, train_rows()).run(wait=True)
    posted = stub.received.count("POST /v1/chat/completions")
    assert posted == live.requests.sent
    book = score(scoring, train_rows())

    lines = [line for batch in stub.batches for line in batch.lines]
    assert len(lines) == live.requests.sent == report.answered_by_batch == book.requests.planned
    assert book.requests.sent == 0
    assert sorted(map(repr, (line["body"] for line in lines))) == sorted(map(repr, asked_live))
    assert untimed(tmp_path / "batch" / "one" / "scores") == untimed(tmp_path / "live" / "one" / "scores")
    assert report.cost_usd == pytest.approx(live.cost_usd / 2)
    assert book.cost_of_cached_responses_usd == pytest.approx(live.cost_usd / 2)
    assert report.tokens == live.tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "sizes"), [({"requests_per_file": 3}, [3, 3, 1]), ({"bytes_per_file": 1}, [1] * 7), ({}, [7])]
)
def test_files_keep_to_the_limits_and_every_request_is_in_one(stub, tmp_path, limits, sizes):
    configured = config(stub, batch=limits)
    requests = plan(configured, 7)
    report = run(configured, tmp_path, requests)
    assert [len(batch.lines) for batch in stub.batches] == sizes
    assert times_handed_over(stub) == {request.key: 1 for request in requests}
    assert (report.requests, report.answered, report.in_flight) == (7, 7, 0)
    assert os.listdir(tmp_path / "batches") == []
    # Another run finds all answers.
    before = len(stub.received)
    assert run(configured, tmp_path, requests).answered_by_batch == 7
    assert len(stub.received) == before


def test_no_wait_returns_and_the_next_run_picks_up_what_is_ready(stub, tmp_path):
    configured = config(stub)
    requests = plan(configured, 4)
    stub.looks = 2
    reports = [run(configured, tmp_path, requests, wait=False) for _ in range(4)]
    assert [report.in_flight for report in reports] == [4, 4, 0, 0]
    assert [report.answered for report in reports] == [0, 0, 4, 4]
    assert reports[0].batches_in_flight == ("batch-0",)
    # Set aside is the dearest outcome, at half the price: more than what it then cost.
    assert reports[0].reserved_usd > 4 * ONE_BATCH_CALL_USD
    assert reports[2].cost_usd == pytest.approx(4 * ONE_BATCH_CALL_USD)
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
    assert (report.answered, report.left) == (6, {})
    assert report.cost_usd == pytest.approx(6 * ONE_BATCH_CALL_USD)


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
    assert report.left == {
        messages.BAD_REQUEST: 1,
        messages.RATE_LIMITED: 1,
        messages.SERVER_ERROR: 1,
        NOT_ANSWERED: 1,
        messages.INVALID_RESPONSE: 1,
    }
    assert report.answered == 1
    # The answer that cannot be used was billed all the same, and nothing of its prompt was cached.
    odd_usd = (1000 * 0.15 + 100 * 0.60) / 1e6 / 2
    assert report.cost_usd == pytest.approx(ONE_BATCH_CALL_USD + odd_usd)
    batches = len(stub.batches)
    assert run(configured, tmp_path, requests).left == report.left
    assert len(stub.batches) == batches


def test_a_refused_file_is_a_sentence_and_its_requests_wait_for_the_next_run(stub, tmp_path):
    configured = config(stub, batch={"requests_per_file": 2})
    requests = plan(configured, 4)
    stub.end_status = lambda number: "completed" if number else "failed"
    stub.failed_errors = [{"code": "invalid_json_line", "line": 2, "message": f"not JSON, says Bearer {KEY}"}]
    report = run(configured, tmp_path, requests)
    assert "refused the batch batch-0 as a whole, 2 requests, invalid_json_line in line 2: not JSON" in report.refusal
    assert "Wm42" not in report.refusal
    assert (report.answered, report.not_submitted) == (2, 2)
    assert run(configured, tmp_path, requests).answered == 4
    assert times_handed_over(stub) == {r.key: 2 if r in requests[:2] else 1 for r in requests}


def test_a_full_queue_names_the_setting_that_avoids_it(stub, tmp_path):
    stub.end_status = lambda number: "failed"
    stub.failed_errors = [{"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached"}]
    configured = config(stub)
    report = run(configured, tmp_path, plan(configured, 2))
    assert "set llm.batch.max_enqueued_tokens below the account's limit" in report.refusal


def test_a_batch_is_created_once_its_file_is_processed(stub, tmp_path):
    states = [None, "uploaded", "uploaded", "processed"]
    stub.file_status = lambda asked: states[asked]
    asked: list[int] = []
    stub.before = lambda name: asked.append(stub.asked_for_file.total()) if name == "POST /v1/batches" else None
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2
    assert asked == [len(states)]


@pytest.mark.slow
@pytest.mark.parametrize("state", [None, "uploaded"])
def test_the_wait_for_a_file_is_bounded(stub, tmp_path, state):
    stub.file_status = lambda asked: state
    configured = config(stub, batch={"poll_s": 0.001})
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2


def test_a_file_that_the_endpoint_refuses_creates_no_batch(stub, tmp_path):
    stub.file_status = lambda asked: "error" if asked else "uploaded"
    configured = config(stub)
    with pytest.raises(LlmError, match=r"refused the file file-0 of a batch, status error: line 1: no JSON; mend"):
        run(configured, tmp_path, plan(configured, 2))
    assert stub.batches == []
    stub.file_status = lambda asked: "processed"
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "No such File object: file-0"),
        (400, "Cannot find file file-0, or organization org-1 does not have access to it."),
        (400, "The file file-0 does not exist"),
    ],
)
@pytest.mark.slow
def test_a_creation_that_does_not_find_the_fresh_file_is_retried_and_not_for_ever(stub, tmp_path, status, message):
    error = (status, {"code": "invalid_request", "message": message})
    stub.creation_error = lambda attempt: error if attempt < 2 else None
    configured = config(stub)
    requests = plan(configured, 2)
    assert run(configured, tmp_path, requests).answered == 2
    assert times_handed_over(stub) == {request.key: 1 for request in requests}

    stub.creation_error = lambda attempt: error
    other = config(stub, seed=1)
    with pytest.raises(LlmError, match="creates no batch"):
        run(other, tmp_path, plan(other, 2))
    # Refused is not in flight: the next run submits.
    stub.creation_error = lambda attempt: None
    assert run(other, tmp_path, plan(other, 2)).answered == 2


@pytest.mark.slow
def test_a_batch_that_fails_as_it_does_not_find_its_file_is_submitted_again_and_not_for_ever(stub, tmp_path):
    stub.failed_errors = [{"code": "invalid_request", "line": None, "message": "Cannot find file file-0."}]
    stub.end_status = lambda number: "completed" if number else "failed"
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2
    stub.end_status = lambda number: "failed"
    other = config(stub, seed=1)
    report = run(other, tmp_path, plan(other, 2))
    assert "Cannot find file file-0.; mend the cause" in report.refusal
    assert len(stub.batches) < 10


@pytest.mark.slow
@pytest.mark.parametrize("where", ["batch", "creation"])
def test_a_full_queue_waits_for_a_batch_in_flight_and_then_submits_again(stub, tmp_path, where):
    """The endpoint takes one batch at a time; each needs three looks."""
    told = {"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached for gpt-4o-mini"}
    stub.failed_errors = [told]
    stub.looks = 3

    def busy() -> bool:
        return any(batch.status == "in_progress" for batch in stub.batches)

    if where == "creation":
        stub.creation_error = lambda attempt: (429, told) if busy() else None
    else:
        stub.end_status = lambda number: (
            "failed" if any(b.status == "in_progress" for b in stub.batches[:number]) else "completed"
        )
    configured = config(stub, batch={"requests_per_file": 2})
    requests = plan(configured, 6)
    report = run(configured, tmp_path, requests)
    assert (report.answered, report.refusal) == (6, "")
    worked_on = [batch for batch in stub.batches if batch.status == "completed"]
    assert Counter(line["custom_id"] for b in worked_on for line in b.lines) == {r.key: 1 for r in requests}
    # Once the queue was full, one file is uploaded for each batch that ends.
    assert stub.received.count("POST /v1/files") == (5 if where == "batch" else 4)


@pytest.mark.slow
def test_a_queue_filled_by_another_plan_is_waited_for(stub, tmp_path):
    stub.failed_errors = [{"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached"}]
    stub.looks = 4
    other = config(stub, seed=1)
    run(other, tmp_path, plan(other, 2), wait=False)
    stub.end_status = lambda number: (
        "failed" if any(b.status == "in_progress" for b in stub.batches[:number]) else "completed"
    )
    configured = config(stub)
    report = run(configured, tmp_path, plan(configured, 2), wait=False)
    assert "full with batches of other plans" in report.refusal
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2
    # What the other plan was billed for is still there to be fetched.
    assert run(other, tmp_path, plan(other, 2)).answered == 2
    assert len([batch for batch in stub.batches if batch.status == "completed"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no id", "gone"])
def test_a_batch_whose_output_file_is_missing_is_not_submitted_again_without_the_persons_word(stub, tmp_path, how):
    configured = config(stub, batch={"requests_per_file": 2})
    requests = plan(configured, 4)

    def lose(name: str) -> None:
        if how == "gone" and stub.batches:
            stub.gone = {stub.batches[0].files.get("output_file_id") or "none yet"}

    stub.hides_output = lambda number: how == "no id" and number == 0
    stub.before = lose
    for _ in range(2):
        with pytest.raises(LlmError, match=r"batch-0 .* 2 requests .* may be billed, at most \$.*--cancel") as caught:
            run(configured, tmp_path, requests)
    # The other batch is fetched all the same.
    assert len(cached(tmp_path, requests)) == 2
    assert len(stub.batches) == 2
    at_most = float(str(caught.value).split("$")[1].split(";")[0])

    work = batch_job(configured, tmp_path, requests)
    report = work.cancel()
    work.close()
    assert (report.answered, report.in_flight, report.not_submitted) == (2, 0, 2)
    assert report.cost_usd == pytest.approx(2 * ONE_BATCH_CALL_USD + at_most, abs=1e-4)
    assert at_most > 0
    assert run(configured, tmp_path, requests).answered == 4
    assert times_handed_over(stub) == {r.key: 2 if r in requests[:2] else 1 for r in requests}


def test_an_output_file_that_appears_late_is_fetched(stub, tmp_path):
    asked: list[str] = []

    def appear(name: str) -> None:
        if stub.batches and (output := stub.batches[0].files.get("output_file_id")):
            asked.extend([name] if name == "GET /v1/files/ID/content" else [])
            stub.gone = {output} if len(asked) < 3 else set()

    stub.before = appear
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2
    assert (len(asked), len(stub.batches)) == (3, 1)


def test_a_batch_in_which_every_request_failed_has_no_output_file_and_that_is_fine(stub, tmp_path):
    stub.outcome = lambda line, attempt: expired(line) if attempt == 1 else answered(line)
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2


def test_never_more_tokens_are_enqueued_than_the_limit(stub, tmp_path):
    requests = plan(config(stub), 8)
    one = max(expected_usage(request, config(stub)).prompt for request in requests)
    configured = config(stub, batch={"max_enqueued_tokens": 3 * one})
    enqueued: list[int] = []

    def look(name: str) -> None:
        if name == "POST /v1/batches":
            enqueued.append(sum(len(batch.lines) for batch in stub.batches if batch.status == "in_progress"))

    stub.after = look
    assert run(configured, tmp_path, requests).answered == 8
    assert max(enqueued) == 3
    limited = config(stub, batch={"max_enqueued_tokens": 1}, seed=1)
    with pytest.raises(LlmError, match=r"must have room for a request, got 1 for about \d+ tokens"):
        run(limited, tmp_path, plan(limited, 2))


@pytest.mark.parametrize("cap", ["money", "tokens"])
@pytest.mark.slow
def test_the_cap_holds_at_the_batch_price_and_unspent_reserve_is_used_in_a_next_batch(stub, tmp_path, cap):
    budget = {"max_cost_usd": 12.5 * ONE_BATCH_CALL_USD} if cap == "money" else {"max_tokens": 12 * 1100 + 500}
    configured = config(stub, budget=budget)
    requests = plan(configured, 30)
    report = run(configured, tmp_path, requests)
    # What is set aside for a request is dearer than the request, so the last ones stop a little early.
    assert 8 <= report.answered <= 12
    assert len(stub.batches) > 1
    assert report.not_submitted == 30 - report.answered
    assert report.cost_usd == pytest.approx(report.answered * ONE_BATCH_CALL_USD)
    assert (report.in_flight, report.reserved_usd) == (0, 0)
    assert run(config(stub), tmp_path, requests).answered == 30
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
    assert run(configured, tmp_path, requests).answered == 4
    assert times_handed_over(stub) == {request.key: 1 for request in requests}
    assert stub.received.count("GET /v1/batches") == 1


def test_a_creation_that_never_arrived_is_sent_again_once_the_list_does_not_have_it(stub, tmp_path):
    lost = iter([True, False])

    def cut(name: str) -> None:
        if name == "POST /v1/batches" and next(lost):
            raise ConnectionError

    stub.before = cut
    configured = config(stub)
    assert run(configured, tmp_path, plan(configured, 2)).answered == 2
    assert len(stub.batches) == 1


@pytest.mark.slow
def test_a_live_run_asks_nothing_that_is_with_the_batch_api(stub, tmp_path):
    configured = settings(stub, candidates=CANDIDATES, budget={"pairs": 60})
    scoring = workspace(tmp_path, "one", configured)
    batch_of_plan(scoring, train_rows()).run(wait=False)
    with pytest.raises(LlmError, match=r"10 of 10 requests are with the Batch API.*sllmr batch --cancel"):
        score(scoring, train_rows())
    assert stub.live == []
    size = forecast_job(scoring, train_rows())[-1].size
    assert (size.in_flight, size.to_send, size.cost_nano_usd) == (10, 0, 0)


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
    assert (report.answered, report.in_flight, report.not_submitted) == (1, 0, 3)
    assert [request.key for request in cached(tmp_path, requests)] == [kept]
    stub.outcome = lambda line, attempt: answered(line)
    assert run(configured, tmp_path, requests).answered == 4
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
    assert work.cancel().not_submitted == 2
    work.close()
    assert run(configured, tmp_path, requests).answered == 2
    assert len(elsewhere) == len(stub.batches) == 1


def test_requests_under_way_at_another_endpoint_are_not_handed_over_here(stub, tmp_path):
    configured = config(stub, model_id="m")
    run(configured, tmp_path, plan(configured, 2), wait=False)
    with running_batch_stub() as other:
        moved = config(other, model_id="m")
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


class LosableLocks:
    """Locks as leases are: one that is held can be lost, and another process can take it.

    Attributes:
        lost: whether the last one that was taken is lost.
        is_taken: whether another process holds it.
        poll_s: as Locks says.
    """

    poll_s = 0.01

    def __init__(self) -> None:
        self.lost = self.is_taken = False

    def try_lock(self, key: str) -> "LosableLocks | None":
        self.lost = False
        return None if self.is_taken else self

    def is_locked(self, key: str) -> bool:
        return self.is_taken

    def is_held(self) -> bool:
        return not self.lost

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def losable(monkeypatch: pytest.MonkeyPatch) -> LosableLocks:
    locks = LosableLocks()
    monkeypatch.setattr("sllmr.components.llm_scorer.batch.job.open_locks", lambda store, name: locks)
    return locks


def lose_after(stub: StubBatchServer, losable: LosableLocks, request: str, *, to_another: bool = False) -> None:
    """Makes the lock be lost when the endpoint has carried out the first such request."""

    def after(name: str) -> None:
        if name == request and stub.received.count(request) == 1:
            losable.lost, losable.is_taken = True, to_another

    stub.after = after


def test_a_lock_that_was_lost_during_the_upload_submits_nothing(stub, tmp_path, losable):
    configured = config(stub)
    requests = plan(configured, 3)
    lose_after(stub, losable, "POST /v1/files")
    with pytest.raises(LlmError, match=r"suspended.*another one may work on the batches of .*; run again"):
        run(configured, tmp_path, requests)
    assert "POST /v1/batches" not in stub.received
    assert run(configured, tmp_path, requests).answered == 3
    assert set(times_handed_over(stub).values()) == {1}


def test_a_lock_that_was_lost_between_two_attempts_to_create_a_batch_creates_none(stub, tmp_path, losable):
    configured = config(stub)
    stub.creation_error = lambda attempt: (404, {"message": "No such File object"})
    lose_after(stub, losable, "POST /v1/batches")
    with pytest.raises(LlmError, match="run again"):
        run(configured, tmp_path, plan(configured, 3))
    assert stub.received.count("POST /v1/batches") == 1


def test_a_lock_that_was_lost_while_a_batch_was_awaited_is_taken_again(stub, tmp_path, losable):
    configured = config(stub)
    requests = plan(configured, 3)
    stub.looks = 3
    lose_after(stub, losable, "GET /v1/batches/ID")
    assert run(configured, tmp_path, requests).answered == 3
    assert set(times_handed_over(stub).values()) == {1}


def test_a_lock_that_another_process_took_while_a_batch_was_awaited_stops_the_command(stub, tmp_path, losable):
    configured = config(stub)
    requests = plan(configured, 3)
    stub.looks = 3
    lose_after(stub, losable, "GET /v1/batches/ID", to_another=True)
    with pytest.raises(LlmError, match="another one does; wait for it"):
        run(configured, tmp_path, requests)
    assert "GET /v1/files/ID/content" not in stub.received


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
    assert report.left == {messages.BAD_REQUEST: 1, NOT_ANSWERED: 1}
    assert report.answered == 3
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
            "forces given tokens.*set llm.strategy to listwise or yes_no",
        ),
        ({"strategy": "replay", "replay_table": "t.csv"}, "the scores come from item vectors or a table"),
    ],
)
def test_what_the_batch_api_cannot_ask_is_refused_with_the_fix(values, message):
    strategy = {"strategy": "listwise"} if not values else {}
    with pytest.raises(LlmError, match=message):
        check_batch(LlmConfig.model_validate({**strategy, **values}).resolve())


ZYGOTE = """
import os, pickle, signal, sys
import openai, httpx2  # the slow part, once
from sllmr.components.llm_scorer.batch.job import BatchJob
from sllmr.components.llm_scorer.batch.state import BatchState
from sllmr.components.llm_scorer.requests.cache import ResponseCache
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
        report = BatchJob(configured, directory, directory, lambda: iter(requests)).run(wait=True)
        os._exit(0 if report.answered == len(requests) else 1)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_process_killed_between_its_own_writes_hands_nothing_over_twice(stub, tmp_path, zygote):
    for write in ("add", "update", "put_all", "finish"):
        for moment in ("before", "after"):
            assert zygote.run(write, moment) == signal.SIGKILL, (write, moment)
    check_nothing_was_asked_twice(zygote, stub, tmp_path)

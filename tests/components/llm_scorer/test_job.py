"""The whole run, from rows to scores: with the real local LLM, and with the stub for faults and money."""

import dataclasses
import glob
import gzip
import itertools
import json
import pathlib

import apache_beam as beam
import pytest

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.results import read_ledger
from sllmr.components.scores import ROLES, TARGET, read_scores
from tests.components.llm_scorer.market import PAIR_YIELD, market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, chat_response, echoing_key, failing, scores_of

KEY = "test-key-Zq81Wm42Lp97Xt65"
CANDIDATES = {"per_context": 6, "negatives_per_target": 2, "popularity_pool": 20}


def workspace(root: pathlib.Path, name: str, settings: dict, **inputs) -> Workspace:
    catalog = root / "catalog"
    write_catalog(str(catalog), market_items().values())
    for part in ("work", "scores"):
        (root / name / part).mkdir(parents=True)
    return Workspace(
        config=LlmConfig.model_validate({"candidates": CANDIDATES, **settings}),
        catalog_directory=str(catalog),
        cache_directory=str(root / "cache"),
        work_directory=str(root / name / "work"),
        output_directory=str(root / name / "scores"),
        make_pipeline=beam.Pipeline,
        pair_yield=PAIR_YIELD,
        **inputs,
    )


def stub_settings(stub: StubServer, **values) -> dict:
    return {
        "model": "gpt-4o-mini",
        "base_url": stub.base_url,
        "api_key_env": "STUB_KEY",
        "max_retries": 0,
        "concurrency": 4,
        "budget": {"pairs": 60},
        **values,
    }


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)


@pytest.mark.slow
def test_the_real_local_llm_scores_a_small_market_and_a_second_run_asks_nothing(llm_url, tmp_path):
    settings = {"model": BUNDLED_MODEL, "base_url": llm_url, "budget": {"pairs": 18}, "concurrency": 4}
    book = score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    records = list(read_scores(str(tmp_path / "one" / "scores")))
    assert (book.requested, book.scored, book.failed) == (18, 18, 0)
    assert sum(len(r.item_ids) for r in records) == 18
    assert book.requests.sent == book.requests.planned
    assert book.tokens.completion > 0
    for record in records:
        assert set(record.roles) <= set(ROLES)
        assert (TARGET in record.roles) == bool(record.target_item_id)
        assert record.user_id == ""
        # The documented map keeps the order of the raw scores.
        by_raw = sorted(zip(record.raw_scores, record.llm_scores, strict=True))
        assert [score for _, score in by_raw] == sorted(record.llm_scores)

    # The endpoint is gone; everything is in the cache.
    settings["base_url"] = "http://127.0.0.1:9/v1"
    again = score(workspace(tmp_path, "two", settings), beam.Create(market_rows()))
    assert (again.requests.sent, again.cached, again.scored) == (0, 18, 18)
    repeated = {r.context_id: r for r in read_scores(str(tmp_path / "two" / "scores"))}
    assert repeated == {r.context_id: r for r in records}


@pytest.mark.slow
def test_the_real_local_llm_asked_listwise_ends_every_pair_scored_or_failed(llm_url, tmp_path):
    settings = {
        "model": BUNDLED_MODEL,
        "base_url": llm_url,
        "strategy": "listwise",
        "budget": {"pairs": 8},
        "candidates": {"per_context": 4, "negatives_per_target": 1},
        "max_output_tokens": 120,
        "max_failure_rate": 1,
        "concurrency": 2,
    }
    book = score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    assert book.scored + book.failed == book.requested == 8
    assert book.requests.sent == 2


@pytest.mark.slow
def test_every_pair_ends_scored_or_failed_and_the_ledger_adds_up(stub, tmp_path):
    def half_valid(handler, body):
        entries = scores_of(body)
        handler.send_json(200, chat_response([entries[0], entries[1], entries[1], {"item": 3, "score": -7}]))

    stub.replies = [half_valid, failing(500, {"message": "oops"})]
    book = score(workspace(tmp_path, "one", stub_settings(stub, max_failure_rate=0.5)), beam.Create(market_rows()))
    assert book.requested == 60
    assert book.failures == {
        messages.MISSING_ITEM: 3,
        messages.OUT_OF_RANGE: 1,
        messages.REPEATED_ITEM: 1,
        messages.SERVER_ERROR: 6,
    }
    assert book.scored == 60 - 11
    assert book.requests.model_dump() == {
        "planned": 10,
        "sent": 9,
        "cached": 0,
        "failed": 1,
        "refused_by_budget": 0,
        "retried": 0,
    }
    assert book.tokens.model_dump() == {"prompt": 9000, "cached_prompt": 1800, "completion": 900}
    assert book.cost_usd == pytest.approx(9 * (800 * 0.15 + 200 * 0.075 + 100 * 0.6) / 1e6)
    written = read_ledger(tmp_path / "one" / "scores")
    assert written == book
    failures = []
    for path in glob.glob(str(tmp_path / "one" / "scores" / "failures-*")):
        with gzip.open(path, "rt") as file:
            failures += [json.loads(line) for line in file]
    assert len(failures) == 11
    assert set(failures[0]) == {"context_id", "item_id", "reason", "detail"}


@pytest.mark.slow
def test_too_many_failures_fail_the_job_with_a_summary_and_keep_the_answers(stub, tmp_path):
    stub.replies = [failing(500, {"message": "oops"})] * 3
    with pytest.raises(LlmError, match=r"max_failure_rate=0\.1, got 18 of 60 \(30\.0%\): {'server_error': 18}"):
        score(workspace(tmp_path, "one", stub_settings(stub)), beam.Create(market_rows()))
    book = score(workspace(tmp_path, "two", stub_settings(stub)), beam.Create(market_rows()))
    assert (book.requests.sent, book.requests.cached, book.failed) == (3, 7, 0)


IN_WRONG_FORM = {
    "fenced": {"message": {"content": "Sure! ```no```", "refusal": None}},
    "error": {"finish_reason": "error"},
    "null": {"message": {"content": None, "refusal": None}},
    "truncated": {"finish_reason": "length"},
    "refusal": {"message": {"content": None, "refusal": "no"}},
}


@pytest.mark.slow
def test_a_response_without_a_score_is_a_receipt_and_its_request_is_queried_again(stub, tmp_path):
    one_call_usd = (800 * 0.15 + 200 * 0.075 + 100 * 0.6) / 1e6
    for n, choice in enumerate(IN_WRONG_FORM.values()):
        stub.always = lambda handler, body, choice=choice: handler.send_json(
            200, chat_response(scores_of(body), **choice)
        )
        book = score(
            workspace(tmp_path, f"bad {n}", stub_settings(stub, max_failure_rate=1)), beam.Create(market_rows())
        )
        assert (book.requests.sent, book.responses_without_score, book.scored) == (10, 10, 0)
        assert book.requests_queried_again == (10 if n else 0)
        assert book.cost_of_cached_responses_usd == pytest.approx(10 * n * one_call_usd)
    stub.always = None
    kept = dataclasses.replace(workspace(tmp_path, "kept", stub_settings(stub, max_failure_rate=1)), retry_failed=False)
    assert score(kept, beam.Create(market_rows())).requests.sent == 0
    size = forecast_job(workspace(tmp_path, "plan", stub_settings(stub)), beam.Create(market_rows()))[-1].size
    assert (size.failed_earlier, size.to_send, size.retry_nano_usd) == (10, 10, size.cost_nano_usd)
    book = score(workspace(tmp_path, "good", stub_settings(stub)), beam.Create(market_rows()))
    assert (book.requests.sent, book.scored) == (10, 60)
    book = score(workspace(tmp_path, "again", stub_settings(stub)), beam.Create(market_rows()))
    assert (book.requests.sent, book.scored) == (0, 60)
    # All five wrong responses to each request and the right one were paid for.
    assert book.cost_of_cached_responses_usd == pytest.approx(60 * one_call_usd)


@pytest.mark.slow
def test_the_cap_counts_earlier_runs_and_a_higher_one_goes_on_from_there(stub, tmp_path, caplog):
    # About four of the ten calls, as each may cost 0.0011 and does cost 0.000195.
    capped = stub_settings(stub, budget={"pairs": 60, "max_cost_usd": 0.0016})
    first = score(workspace(tmp_path, "one", capped), beam.Create(market_rows()))
    assert 0 < first.scored < 60
    assert first.failures == {messages.BUDGET_EXHAUSTED: 60 - first.scored}
    assert first.cost_usd <= 0.0016
    assert "as llm.budget.max_cost_usd=0.0016 would have been passed; raise it and run again" in caplog.text

    sent = len(stub.received)
    second = score(workspace(tmp_path, "two", capped), beam.Create(market_rows()))
    assert second.cost_usd + second.cost_of_cached_responses_usd <= 0.0016
    assert len(stub.received) - sent <= 1

    higher = stub_settings(stub, budget={"pairs": 60, "max_cost_usd": 1})
    third = score(workspace(tmp_path, "three", higher), beam.Create(market_rows()))
    assert third.scored == 60
    assert len(stub.received) == 10


@pytest.mark.slow
def test_neither_the_key_nor_a_user_id_is_in_anything_that_is_written(stub, tmp_path, capfd, caplog):
    caplog.set_level("INFO")
    stub.replies = [echoing_key(500), echoing_key(429), echoing_key(400)]
    score(workspace(tmp_path, "one", stub_settings(stub, max_failure_rate=0.9)), beam.Create(market_rows()))
    stub.always = echoing_key(401)
    with pytest.raises(LlmError, match="refuses the key") as caught:
        score(workspace(tmp_path, "two", stub_settings(stub, seed=2)), beam.Create(market_rows()))
    output = capfd.readouterr()
    seen = [output.out, output.err, caplog.text, repr(caught.value)]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            seen.append((gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1"))
    assert len(seen) > 10
    for text in seen:
        assert "Wm42" not in text
        assert "user-" not in text


def test_rows_that_leave_nothing_to_ask_are_one_sentence(stub, tmp_path):
    with pytest.raises(LlmError, match="there is nothing to query the LLM about"):
        score(workspace(tmp_path, "one", stub_settings(stub)), beam.Create([], reshuffle=False))


@pytest.mark.slow
def test_openai_without_a_key_stops_before_anything_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(LlmError, match="environment variable STUB_KEY is not set"):
        score(
            workspace(tmp_path, "one", {"model": "gpt-4o-mini", "api_key_env": "STUB_KEY"}), beam.Create(market_rows())
        )


@pytest.mark.slow
def test_a_rate_of_failures_that_cannot_come_under_the_limit_ends_the_job_early(stub, tmp_path):
    counter = itertools.count()

    def every_second(handler, body):
        choice = {"finish_reason": "length"} if next(counter) % 2 else {}
        handler.send_json(200, chat_response(scores_of(body), **choice))

    stub.always = every_second
    settings = stub_settings(stub, budget={"pairs": 360}, concurrency=2)
    with pytest.raises(LlmError, match=r"can no longer come under max_failure_rate=0\.1: \d+ of 360 have failed"):
        score(workspace(tmp_path, "one", settings), beam.Create(market_rows(20, 8)))
    assert len(stub.received) < 30

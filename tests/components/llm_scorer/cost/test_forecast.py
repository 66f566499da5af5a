import gzip
import json

import apache_beam as beam
import pytest

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import (
    LATENCY_S,
    LEARN_FROM,
    TOKENS_PER_S,
    Estimate,
    estimate,
    expected_seconds,
)
from sllmr.components.llm_scorer.endpoint.tokens import expected_usage
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL, LOCAL_MODELS
from sllmr.components.llm_scorer.messages import Usage
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, chat_response
from tests.components.llm_scorer.test_job import stub_settings, workspace


def of_size(calls: int, prompt: int = 0, completion: int = 0) -> Estimate:
    usage = Usage(prompt=prompt, completion=completion)
    return Estimate(
        contexts=1,
        pairs=1,
        calibration_contexts=0,
        requests=calls,
        cached=0,
        in_flight=0,
        usage=usage,
        cost_nano_usd=0,
        by_batch_nano_usd=0,
        prior_nano_usd=0,
        prior_tokens=0,
    )


def test_the_time_is_that_of_the_limit_that_binds():
    config = LlmConfig(model="m", concurrency=10).resolve()
    work = (100 * LATENCY_S + 3000 / TOKENS_PER_S) / 10
    assert expected_seconds(of_size(100, 500, 3000), config) == (pytest.approx(work), "llm.concurrency")
    by_requests = config.model_validate({**config.model_dump(), "limits": {"requests_per_minute": 20}})
    assert expected_seconds(of_size(100, 500, 3000), by_requests) == (300, "llm.limits.requests_per_minute")
    by_tokens = config.model_validate({**config.model_dump(), "limits": {"tokens_per_minute": 50}})
    assert expected_seconds(of_size(100, 500, 3000), by_tokens) == (4200, "llm.limits.tokens_per_minute")
    local = LlmConfig().resolve()
    expected = (900 + 30) / LOCAL_MODELS[BUNDLED_MODEL].tokens_per_cpu_s / local.local_server.threads
    assert expected_seconds(of_size(100, 900, 30), local) == (pytest.approx(expected), "llm.local_server.threads")
    larger = LlmConfig(model="qwen2.5-coder-1.5b-instruct-q4").resolve()
    assert expected_seconds(of_size(100, 900, 30), larger)[0] > 5 * expected


@pytest.mark.slow
def test_a_forecast_counts_what_the_run_then_asks_without_a_call(stub: StubServer, tmp_path):
    settings = stub_settings(stub)
    curve = forecast_job(workspace(tmp_path, "forecast", settings), beam.Create(market_rows(users=15)))
    assert stub.received == []
    book = score(workspace(tmp_path, "run", settings), beam.Create(market_rows(users=15)))
    whole = curve[-1]
    assert (whole.size.pairs, whole.size.calibration_contexts, whole.size.requests) == (
        60,
        book.calibration_contexts,
        book.requests.sent,
    )
    assert whole.size.cost_nano_usd / 1e9 == book.estimated_cost_usd

    contexts = [json.loads(line) for line in plan_lines(tmp_path / "forecast")]
    # Ten contexts of fifteen users; each has five positive rows, at positions 2 to 6: histories of 1 to 5 items.
    assert (whole.reached["users"].planned, whole.reached["users"].of) == (10, 15)
    assert (whole.reached["short histories"].of, whole.reached["long histories"].of) == (15 * 3, 15 * 2)
    short = sum(c["history_length"] <= 3 for c in contexts)
    assert (whole.reached["short histories"].planned, whole.reached["long histories"].planned) == (short, 10 - short)
    # The first fifth of the sixty items is the tail.
    asked = {candidate["item_id"] for c in contexts for candidate in c["candidates"]}
    tail = asked & {f"i{n}" for n in range(12)}
    assert (whole.reached["tail items"].planned, whole.reached["tail items"].of) == (len(tail), 12)
    assert (whole.reached["head items"].planned, whole.reached["head items"].of) == (len(asked - tail), 48)


def plan_lines(root):
    lines = []
    for path in (root / "work").glob("contexts-*"):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines += file
    return lines


@pytest.mark.slow
def test_the_curve_grows_by_tenths_and_takes_users_before_their_second_contexts(stub: StubServer, tmp_path):
    # Three users with ten contexts.
    curve = forecast_job(workspace(tmp_path, "one", stub_settings(stub)), beam.Create(market_rows(users=3)))
    assert [step.size.contexts for step in curve] == list(range(1, 11))
    assert [step.reached["users"].planned for step in curve] == [1, 2, 3] + [3] * 7
    costs = [step.size.cost_nano_usd for step in curve]
    assert costs == sorted(costs)
    assert costs[0] > 0


@pytest.mark.parametrize(("answers", "prompt", "completion"), [(LEARN_FROM, 1000, 100), (LEARN_FROM - 1, None, None)])
def test_enough_answers_at_hand_tell_how_many_tokens_the_others_take(tmp_path, answers, prompt, completion):
    config = LlmConfig(model="m", base_url="http://127.0.0.1:9/v1").resolve()
    strategy = create_strategy(config)
    cache = ResponseCache(str(tmp_path))
    contexts = [context(name=f"c{n}", items=(f"i{n}", f"i{n + 1}")) for n in range(answers + 1)]
    requests = [strategy.requests(c, market_items())[0] for c in contexts]
    for request in requests[:answers]:
        # As the endpoint counts: 1,000 and 100 tokens.
        cache.put(request.key, chat_response([{"item": 1, "score": 0.5}]))
    size = estimate(contexts, market_items(), strategy, config, cache)
    cache.close()
    expected = expected_usage(requests[-1], config)
    assert size.to_send == 1
    # The requests differ in a few letters only.
    assert size.usage.prompt == pytest.approx(prompt or expected.prompt, rel=0.02)
    assert size.usage.completion == (completion or expected.completion)
    # Of the stub's 1,000 prompt tokens its server had 200; nothing is known of it before it was asked.
    assert size.usage.cached_prompt == (round(size.usage.prompt / 5) if prompt else 0)
    assert size.prior_tokens == answers * 1100


@pytest.mark.slow
def test_answers_at_hand_cost_nothing_more(stub: StubServer, tmp_path):
    settings = stub_settings(stub)
    book = score(workspace(tmp_path, "run", settings), beam.Create(market_rows()))
    whole = forecast_job(workspace(tmp_path, "forecast", settings), beam.Create(market_rows()))[-1].size
    assert (whole.to_send, whole.cost_nano_usd) == (0, 0)
    assert whole.prior_nano_usd / 1e9 == pytest.approx(book.cost_usd)
    ResponseCache(str(tmp_path / "cache")).close()


@pytest.mark.slow
def test_a_plan_tells_the_price_by_the_batch_api(stub: StubServer, tmp_path):
    price = {"prompt": 3, "cached_prompt": 1, "completion": 5, "batch_discount": 0.4}
    settings = stub_settings(stub, price_per_million_tokens=price)
    size = forecast_job(workspace(tmp_path, "forecast", settings), beam.Create(market_rows()))[-1].size
    assert size.cost_nano_usd == size.usage.prompt * 3000 + size.usage.completion * 5000
    assert size.by_batch_nano_usd == pytest.approx(0.6 * size.cost_nano_usd)

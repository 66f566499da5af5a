"""How many pairs a plan holds that no person has given a number."""

import dataclasses
import math

import apache_beam as beam
import pytest

from sllmr.components.llm_scorer.config import LOCAL_MINUTES, LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimate, expected_seconds
from sllmr.components.llm_scorer.cost.pair_budget import bounded
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from tests.components.llm_scorer.cost.test_forecast import of_size
from tests.components.llm_scorer.market import PAIR_YIELD, market_items, market_rows
from tests.components.llm_scorer.test_job import CANDIDATES, stub_settings, workspace

POSITIVES = sum(item.train_count for item in market_items().values())
ENOUGH = next(n for n in range(1000) if PAIR_YIELD.preference_pairs(n) >= POSITIVES / 10)


@pytest.mark.slow
def test_the_plan_makes_a_preference_pair_per_ten_train_positives(stub, tmp_path):
    plan = workspace(tmp_path, "plan", stub_settings(stub, budget={}))
    whole = forecast_job(plan, beam.Create(market_rows()))[-1].size
    assert (whole.contexts, whole.pairs) == (ENOUGH, 6 * ENOUGH)
    assert stub.received == []


@pytest.mark.slow
def test_money_bounds_the_plan_and_what_was_scored_before_does_not_change_it(stub, tmp_path, caplog):
    def planned(name: str, **budget) -> Estimate:
        settings = stub_settings(stub, budget=budget)
        return forecast_job(workspace(tmp_path, name, settings), beam.Create(market_rows()))[-1].size

    cap = planned("free").cost_nano_usd / 2e9
    capped = planned("capped", max_cost_usd=cap)
    assert ENOUGH / 2 - 2 <= capped.contexts <= ENOUGH / 2 + 1
    assert capped.cost_nano_usd / 1e9 <= 1.05 * cap
    assert f"as llm.budget.max_cost_usd={cap:g} allows" in caplog.text
    # The same contexts, scored: the stub bills far more tokens than were expected, and nothing is left to send.
    run = workspace(tmp_path, "run", stub_settings(stub, budget={"pairs": capped.pairs}))
    score(run, beam.Create(market_rows()))
    again = planned("again", max_cost_usd=cap)
    assert (again.pairs, again.to_send) == (capped.pairs, 0)


@pytest.mark.slow
def test_time_bounds_a_local_model_and_no_endpoint(tmp_path, caplog):
    settings = {"model": "qwen2.5-coder-1.5b-instruct-q4", "budget": {"max_minutes": 1}}
    local = workspace(tmp_path, "plan", settings)
    whole = forecast_job(local, beam.Create(market_rows()))[-1].size
    seconds, _ = expected_seconds(whole, local.config.resolve())
    assert 0.5 * 60 < seconds < 1.1 * 60
    assert whole.contexts < ENOUGH
    assert "as llm.budget.max_minutes=1 allows; one preference pair per 10 train positives takes" in caplog.text
    assert LlmConfig().resolve().minutes_at_most == LOCAL_MINUTES
    assert LlmConfig(model="gpt-4o-mini").resolve().minutes_at_most is None


@pytest.mark.parametrize(
    ("budget", "pairs", "bound"),
    [
        ({}, 600, ""),
        ({"max_cost_usd": 2.0}, 198, "llm.budget.max_cost_usd=2"),  # a cent a pair; whole contexts of 6
        ({"max_tokens": 5_000}, 48, "llm.budget.max_tokens=5000"),  # 100 a pair
        ({"max_minutes": 3}, 36, "llm.budget.max_minutes=3"),  # 5 s a pair
        ({"max_tokens": 100_000, "max_minutes": 3}, 36, "llm.budget.max_minutes=3"),
        ({"max_tokens": 10}, 6, "llm.budget.max_tokens=10"),  # never less than a context
    ],
)
def test_the_tightest_bound_counts(budget, pairs, bound):
    config = LlmConfig.model_validate(
        {"model": "gpt-4o-mini", "budget": budget, "candidates": CANDIDATES, "limits": {"tokens_per_minute": 1200}}
    ).resolve()
    sample = dataclasses.replace(of_size(10, 5_900, 100), pairs=60, cost_nano_usd=600_000_000)
    found = bounded(600, sample, config)
    assert (found.pairs, found.enough, found.bound) == (pairs, 600, bound)


def test_a_number_that_a_person_sets_is_not_bounded_by_time():
    with pytest.raises(ValueError, match=r"remove llm\.budget\.max_minutes or llm\.budget\.pairs"):
        LlmConfig.model_validate({"budget": {"pairs": 600, "max_minutes": 1}})
    assert math.isclose(LlmConfig.model_validate({"budget": {"max_minutes": 1.5}}).resolve().minutes_at_most, 1.5)

"""Whether the pairs of a run are enough, in numbers and in words."""

import pytest

from sllmr.pipeline.config import Config
from sllmr.pipeline.enough_pairs import EnoughPairs, of_run


@pytest.fixture
def config(tmp_path) -> Config:
    for name in ("interactions", "items"):
        (tmp_path / f"{name}.csv").touch()
    tables = {name: str(tmp_path / f"{name}.csv") for name in ("interactions", "items")}
    return Config.model_validate({"data": tables, "llm": {"model": "gpt-4o-mini"}})


def test_a_run_says_which_budget_would_suffice_by_what_its_scores_made(config):
    # 1,001 positives want 101 preference pairs; 60 scored pairs made 20 of them, so 303 are needed: 31 contexts of ten.
    found = of_run(config, train_positives=1001, preference_pairs=20, scored_pairs=60, cost_usd=0.6, seconds=120.0)
    assert not found.enough
    assert found.sufficient_pairs == 310
    assert found.sentence() == (
        "20 preference pairs are fewer than one per 10 of the 1,001 train positives and may be too few to move the "
        f"model; llm.budget.pairs: 310 would suffice, for about ${0.6 * 310 / 60:.4f} in all, in "
        f"about {120 * 310 / 60 / 60:.0f} min"
    )


def test_scores_without_any_pair_are_counted_by_the_arithmetic(config):
    found = of_run(config, train_positives=1001, preference_pairs=0, scored_pairs=60, cost_usd=None, seconds=None)
    assert found.sufficient_pairs == config.pair_yield.enough_pairs(1001)
    assert found.sentence().endswith("would suffice, at a price that is not known")


def test_enough_pairs_are_not_talked_about(config):
    found = of_run(config, train_positives=1000, preference_pairs=100, scored_pairs=200, cost_usd=0, seconds=None)
    assert (found.enough, found.sentence()) == (True, "")


def test_a_table_with_too_few_scores_is_not_helped_by_a_budget():
    found = EnoughPairs(
        train_positives=100, preference_pairs=1, sufficient_pairs=90, cost_usd=0.0, seconds=None, replayed=True
    )
    assert found.sentence().endswith("llm.replay_table would need about 90 scores")

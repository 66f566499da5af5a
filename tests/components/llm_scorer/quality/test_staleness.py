import pytest

from sllmr.components.llm_scorer.quality.staleness import staleness, staleness_line, staleness_warning
from sllmr.components.llm_scorer.results import ScoreAge
from tests.components.llm_scorer.ledgers import make_ledger

NOW = 1_800_000_000
DAY = 86_400
BOOK = make_ledger(
    oldest_score=NOW - 40 * DAY,
    median_score=NOW - 10 * DAY,
    newest_score=NOW - DAY // 2,
    contexts=8,
    contexts_outdated=2,
)


def test_ages_are_in_days_and_the_outdated_fraction_is_of_all_contexts():
    assert staleness(BOOK, NOW) == ScoreAge(oldest_days=40, median_days=10, newest_days=0.5, outdated_fraction=0.25)


def test_a_clock_that_runs_behind_makes_no_negative_age():
    age = staleness(BOOK, NOW - 100 * DAY)
    assert age is not None
    assert (age.oldest_days, age.newest_days) == (0, 0)


def test_a_table_without_scores_has_no_age():
    assert staleness(make_ledger(oldest_score=None, median_score=None, newest_score=None), NOW) is None


@pytest.mark.parametrize(("limit", "warns"), [(None, False), (41, False), (40, False), (39, True)])
def test_only_scores_beyond_the_limit_warn_and_name_the_fix(limit, warns):
    age = staleness(BOOK, NOW)
    assert age is not None
    warning = staleness_warning(age, limit)
    assert (warning is not None) == warns
    if warning is not None:
        assert "llm.max_age_days=39 days old, got 40.0" in warning
        assert "sllmr rescore" in warning


def test_the_line_tells_all_of_it():
    age = staleness(BOOK, NOW)
    assert age is not None
    assert staleness_line(age) == (
        "scores: 0.5 to 40.0 days old, median 10.0; 25.0% of their users have new interactions"
    )

"""The verdict against plain computations and planted effects."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sllmr.components.llm_comparison.verdict import OVERALL, ScoredRows, VectorsVerdict, Verdict, choose, compare


def rows(users: int, gain: float, *, seed: int = 0, noise: float = 1.0) -> ScoredRows:
    """Four rows a user; both models see the label through the same noise, the one with the LLM better by `gain`."""
    source = np.random.default_rng(seed)
    labels = np.tile([1, 0, 1, 0], users)
    shared = source.normal(size=len(labels)) + 0.5 * labels
    tail = np.arange(len(labels)) % 4 < 2
    return ScoredRows(
        users=np.repeat([f"u{n}" for n in range(users)], 4),
        labels=labels,
        with_llm=shared + gain * labels + 0.3 * noise * source.normal(size=len(labels)),
        without_llm=shared + 0.3 * noise * source.normal(size=len(labels)),
        slices={OVERALL: np.ones(len(labels), bool), "tail": tail},
    )


def test_aucs_and_counts_are_those_of_scikit_learn_by_slice():
    test = rows(50, 0.3)
    found = compare(rows(50, 0.3, seed=1), test).slices["tail"]
    inside = test.slices["tail"]
    assert found.with_llm == pytest.approx(roc_auc_score(test.labels[inside], test.with_llm[inside]))
    assert found.without_llm == pytest.approx(roc_auc_score(test.labels[inside], test.without_llm[inside]))
    assert found.difference == pytest.approx(found.with_llm - found.without_llm)
    assert (found.users, found.examples) == (50, 100)


@pytest.mark.parametrize(
    ("gain", "answer", "with_llm"), [(0.8, "helps", True), (-0.8, "hurts", False), (0.0, "not_distinguishable", False)]
)
def test_a_planted_effect_is_called_by_its_name(gain: float, answer: str, with_llm: bool):
    found = compare(rows(300, gain, seed=1), rows(300, gain, seed=2))
    assert found.answer == answer
    assert found.choice.with_llm is with_llm


def test_the_choice_does_not_see_the_test_rows():
    valid = rows(300, 0.8, seed=1)
    found = compare(valid, rows(300, -0.8, seed=2))
    assert found.choice == choose(valid)
    assert (found.choice.with_llm, found.answer) == (True, "hurts")


def test_a_gain_of_less_than_one_standard_error_is_no_reason_to_take_the_model_with_the_llm():
    chosen = [choose(rows(40, 0.0, seed=seed)) for seed in range(40)]
    assert all(c.with_llm == (c.difference > c.standard_error) for c in chosen)
    assert {c.with_llm for c in chosen} == {True, False}


def test_users_needed_is_where_the_interval_would_leave_zero():
    found = next(
        f
        for seed in range(50)
        if (f := compare(rows(40, 0.1, seed=seed), rows(40, 0.1, seed=seed))).users_needed is not None
    )
    overall = found.slices[OVERALL]
    shrunk = (overall.upper - overall.difference) * np.sqrt(overall.users / found.users_needed)
    assert shrunk == pytest.approx(abs(overall.difference), rel=0.05)
    assert found.users_needed > overall.users


def test_a_slice_of_one_label_has_counts_and_no_auc():
    test = rows(20, 0.3)
    one_label = test._replace(slices={OVERALL: test.slices[OVERALL], "cold": test.labels == 1})
    found = compare(rows(20, 0.3), one_label).slices["cold"]
    assert (found.difference, found.lower, found.with_llm) == (None, None, None)
    assert (found.users, found.examples) == (20, 40)


def test_validation_rows_of_one_label_are_refused():
    valid = rows(20, 0.3)
    with pytest.raises(ValueError, match="needs validation rows of both labels"):
        choose(valid._replace(labels=np.ones_like(valid.labels)))


def test_the_verdict_on_vectors_says_the_same_numbers_and_that_its_model_is_not_pushed():
    found = compare(rows(300, 0.8, seed=1), rows(300, 0.8, seed=2))
    verdict = Verdict(**dict(found), cost_usd=0.0, seconds=90.0)
    overall = found.slices[OVERALL]
    numbers = f"AUC {overall.with_llm:.4f} with it and {overall.without_llm:.4f} without"
    assert verdict.sentence().startswith(f"The LLM helps: {numbers}")
    assert "The model with the LLM is taken" in verdict.sentence()
    of_vectors = VectorsVerdict(answer="helps", users_needed=None, slices=found.slices, seconds=90.0).sentence()
    assert of_vectors.startswith(f"Scoring by item vectors helps: {numbers}")
    assert "It cost $0.0000 and 1.5 minutes. That model is not pushed" in of_vectors
    assert "is taken" not in of_vectors

"""The shift between two rates of positives, by hand and on a simulated population."""

import math

import numpy as np
import pytest
from scipy.special import expit

from sllmr.models.errors import UserError
from sllmr.models.probability_error import calibration_gaps, logit_shift, weights_for


def test_the_shift_is_that_of_the_odds():
    # Half of the rows and one in a hundred: odds of 1 and of 1 to 99.
    assert logit_shift(0.5, 0.01) == pytest.approx(-math.log(99))
    # A score of .8 among as many positives as negatives has odds of 4, which become 4 to 99.
    assert expit(math.log(4) + logit_shift(0.5, 0.01)) == pytest.approx(4 / (4 + 99))
    assert logit_shift(1 / 3, 0.2) == pytest.approx(math.log((1 / 4) / (1 / 2)))
    assert logit_shift(0.3, 0.3) == 0.0


def test_bayes_rule_on_a_table_gives_the_same():
    # P(x | y) of a feature with three values; only the rate of y differs between rows and production.
    given_positive, given_negative = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])

    def posterior(rate: float) -> np.ndarray:
        joint = rate * given_positive, (1 - rate) * given_negative
        return joint[0] / (joint[0] + joint[1])

    in_rows = posterior(0.25)
    shifted = expit(np.log(in_rows / (1 - in_rows)) + logit_shift(0.25, 0.04))
    np.testing.assert_allclose(shifted, posterior(0.04), rtol=1e-12)


def test_scores_trained_on_sampled_negatives_are_probabilities_of_the_population_after_the_shift():
    random = np.random.default_rng(5)
    number, slope = 400_000, 1.5
    x = random.normal(size=number)
    population_logits = slope * x - 4.0
    labels = (random.random(number) < expit(population_logits)).astype(int)
    rate = labels.mean()
    # One negative for each positive. A model of these rows has the intercept of their rate.
    negatives = random.permutation(np.flatnonzero(labels == 0))[: labels.sum()]
    rows = np.concatenate([np.flatnonzero(labels == 1), negatives])
    of_rows = slope * x + (-4.0 + math.log((1 - rate) / rate))

    def error(logits: np.ndarray, of: np.ndarray, weights: np.ndarray) -> float:
        return float(np.average(calibration_gaps(labels[of], logits[of], weights), weights=weights))

    everyone = np.arange(number)
    shifted = of_rows + logit_shift(0.5, float(rate))
    assert error(of_rows, rows, np.ones(len(rows))) < 0.01  # calibrated among the rows
    assert error(of_rows, everyone, np.ones(number)) > 5 * rate  # and far off in the population
    assert error(shifted, everyone, np.ones(number)) < 0.05 * rate
    # What the Evaluator does: the sampled rows weighted to the rate.
    assert error(shifted, rows, weights_for(labels[rows], float(rate))) < 0.1 * rate
    np.testing.assert_array_equal(np.argsort(shifted[:1000]), np.argsort(of_rows[:1000]))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rows_of_one_label_are_refused(rate):
    with pytest.raises(UserError, match="must hold positives and negatives"):
        logit_shift(rate, 0.1)

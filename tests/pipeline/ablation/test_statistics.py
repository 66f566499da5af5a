"""Intervals against their coverage, fusion against its likelihood."""

import math

import numpy as np
import pytest
from scipy import optimize
from sklearn.metrics import roc_auc_score

from sllmr.pipeline.ablation.statistics import logistic_fusion, mean_and_standard_error, paired_interval


def test_standard_error_over_seeds_is_s_over_root_n():
    mean, error = mean_and_standard_error([0.80, 0.82, 0.81, 0.85])
    squares = [(value - 0.82) ** 2 for value in (0.80, 0.82, 0.81, 0.85)]
    assert mean == pytest.approx(0.82)
    assert error == pytest.approx(math.sqrt(sum(squares) / 3) / math.sqrt(4))


def test_one_seed_has_no_standard_error_and_no_seed_no_mean():
    assert mean_and_standard_error([0.8]) == (0.8, None)
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_standard_error([])


def test_the_intervals_half_width_joins_seeds_and_rows_in_quadrature():
    t_of_2 = 4.302652729911275  # of a printed table: 97.5% point of Student's t, 2 degrees of freedom
    interval = paired_interval([0.001, 0.002, 0.006], [0.0008, 0.0010, 0.0012])
    seeds = t_of_2 * math.sqrt((0.002**2 + 0.001**2 + 0.003**2) / 2) / math.sqrt(3)
    rows = 1.959963984540054 * 0.0010
    assert interval.mean == pytest.approx(0.003)
    assert interval.upper - interval.mean == pytest.approx(math.sqrt(seeds**2 + rows**2))
    assert interval.mean - interval.lower == pytest.approx(math.sqrt(seeds**2 + rows**2))
    assert interval.seeds == 3


def test_with_one_seed_the_interval_is_that_of_the_rows():
    interval = paired_interval([0.004], [0.001])
    assert (interval.lower, interval.upper) == pytest.approx((0.004 - 0.00196, 0.004 + 0.00196), abs=1e-6)
    assert interval.seeds == 1


@pytest.mark.parametrize(("seed_noise", "row_noise"), [(1.0, 0.05), (0.05, 1.0), (0.7, 0.7)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seed_noise, row_noise):
    generator = np.random.default_rng(7)
    covered, trials = 0, 1500
    for _ in range(trials):
        # The rows' error is drawn once: all seeds are judged on the same rows.
        differences = 0.3 + generator.normal(0, row_noise) + generator.normal(0, seed_noise, 3)
        interval = paired_interval(differences.tolist(), [row_noise] * 3)
        covered += interval.lower <= 0.3 <= interval.upper
    assert 0.935 <= covered / trials <= 0.99


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.01, "gain"), (-0.01, "loss"), (0.001, "not told apart"), (-0.001, "not told apart")]
)
def test_a_verdict_needs_the_whole_interval_on_one_side(difference, verdict):
    assert paired_interval([difference], [0.001]).verdict == verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.2], [0.1]), "got 2 differences and 1 standard errors"),
        (([0.1], [-0.1]), "at least 0"),
        (([0.1], [0.1], 95), r"level must be in \(0, 1\), got 95"),
        (([], []), "at least one value"),
    ],
)
def test_an_interval_of_broken_parts_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(*arguments)


def test_fusion_maximises_the_likelihood_on_the_scores_own_scales():
    generator = np.random.default_rng(8)
    logits, llm = generator.normal(0, 3, 800), 0.4 + 0.02 * generator.normal(size=800)
    labels = (generator.random(800) < 1 / (1 + np.exp(-(0.8 * logits + 30 * (llm - 0.4))))).astype(int)

    def negative_log_likelihood(weights):
        margin = weights[0] * logits + weights[1] * (llm - 0.4) / 0.02 + weights[2]
        return np.logaddexp(0, -(2 * labels - 1) * margin).sum()

    a, b, c = logistic_fusion(labels, logits, llm)
    best = optimize.minimize(negative_log_likelihood, np.zeros(3), method="BFGS").x
    assert (a, b * 0.02, c + b * 0.4) == pytest.approx((best[0], best[1], best[2]), abs=1e-3)


def test_a_fused_score_beats_both_of_its_parts():
    generator = np.random.default_rng(9)
    labels = np.arange(2000) % 2
    logits, llm = labels + generator.normal(0, 1, 2000), labels + generator.normal(0, 2, 2000)
    a, b, c = logistic_fusion(labels[:1000], logits[:1000], llm[:1000])
    fused = roc_auc_score(labels[1000:], a * logits[1000:] + b * llm[1000:] + c)
    assert fused > roc_auc_score(labels[1000:], logits[1000:])
    assert fused > roc_auc_score(labels[1000:], llm[1000:])


@pytest.mark.parametrize(
    ("labels", "logits", "llm", "message"),
    [
        ([0, 1, 0], [1.0, 2, 3], [0.1, 0.2], r"one value a label, got shapes \(3,\) and \(2,\)"),
        ([0, 1, 0], [1.0, 2, 3], [0.1, math.nan, 0.2], "got 1 rows that are not"),
        ([1, 1, 1], [1.0, 2, 3], [0.1, 0.3, 0.2], "both 0 and 1"),
        ([0, 1, 0], [1.0, 2, 3], [0.5, 0.5, 0.5], "must each vary"),
        ([0, 0, 1, 1], [1.0, 2, 3, 4], [0.1, 0.3, 0.2, 0.4], "parted without error"),
    ],
)
def test_fusion_refuses_rows_without_finite_weights(labels, logits, llm, message):
    with pytest.raises(ValueError, match=message):
        logistic_fusion(labels, logits, llm)

"""DeLong against plain loops and a bootstrap, intervals against their coverage, fusion against its likelihood."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize
from sklearn.metrics import roc_auc_score

from pipeline.ablation.statistics import delong, logistic_fusion, mean_and_standard_error, paired_interval


def scored_rows(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the scores of two scorers that agree in part; rounded, so that some tie."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(rows) < 0.4).astype(int)
    shared = generator.normal(0, 1, rows) + labels
    scores = np.stack([shared + generator.normal(0, 0.5, rows), shared + generator.normal(0, 1.0, rows)])
    return labels, scores.round(1)


def psi(positive: float, negative: float) -> float:
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def delong_by_loops(labels, scores) -> np.ndarray:
    """The covariance by DeLong's own definition, one positive and one negative at a time."""
    positives = [i for i, label in enumerate(labels) if label == 1]
    negatives = [i for i, label in enumerate(labels) if label == 0]
    m, n, k = len(positives), len(negatives), len(scores)
    v10 = [[sum(psi(s[i], s[j]) for j in negatives) / n for i in positives] for s in scores]
    v01 = [[sum(psi(s[i], s[j]) for i in positives) / m for j in negatives] for s in scores]
    auc = [sum(components) / m for components in v10]
    covariance = np.zeros((k, k))
    for r, s in itertools.product(range(k), repeat=2):
        s10 = sum((v10[r][i] - auc[r]) * (v10[s][i] - auc[s]) for i in range(m)) / (m - 1)
        s01 = sum((v01[r][j] - auc[r]) * (v01[s][j] - auc[s]) for j in range(n)) / (n - 1)
        covariance[r, s] = s10 / m + s01 / n
    return covariance


def test_delongs_aucs_are_scikit_learns_with_ties():
    labels, scores = scored_rows(500, seed=1)
    assert len(set(scores[0])) < 500
    aucs, _ = delong(labels, scores)
    assert aucs == pytest.approx([roc_auc_score(labels, row) for row in scores], abs=1e-12)


def test_delongs_covariance_is_that_of_its_definition():
    labels, scores = scored_rows(60, seed=2)
    scores = np.concatenate([scores, -scores[:1]])
    _, covariance = delong(labels, scores)
    assert covariance == pytest.approx(delong_by_loops(labels, scores), abs=1e-14)


def test_delongs_variance_of_one_scorer_is_a_matrix_too():
    labels, scores = scored_rows(60, seed=3)
    _, covariance = delong(labels, scores[:1])
    assert covariance == pytest.approx(delong_by_loops(labels, scores[:1]), abs=1e-14)


def test_delongs_standard_error_of_a_difference_is_a_bootstraps():
    labels, scores = scored_rows(300, seed=4)
    _, covariance = delong(labels, scores)
    generator = np.random.default_rng(5)
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    differences = []
    for _ in range(400):
        rows = np.concatenate(
            [generator.choice(positives, len(positives)), generator.choice(negatives, len(negatives))]
        )
        differences.append(roc_auc_score(labels[rows], scores[0][rows]) - roc_auc_score(labels[rows], scores[1][rows]))
    contrast = np.array([1, -1])
    assert math.sqrt(contrast @ covariance @ contrast) == pytest.approx(np.std(differences), rel=0.12)


def test_a_scorer_does_not_differ_from_a_monotone_transform_of_itself():
    labels, scores = scored_rows(100, seed=6)
    aucs, covariance = delong(labels, np.stack([scores[0], np.exp(scores[0])]))
    assert aucs[0] == aucs[1]
    assert covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 2, 1], [[1.0, 2, 3, 4]], "hold 0 and 1 only"),
        ([0, 1, 0, 1], [1.0, 2, 3, 4], r"shape \[scorers, rows\].* got \(4,\) for 4 labels"),
        ([0, 1, 0, 1], [[1.0, 2, 3]], r"got \(1, 3\) for 4 labels"),
        ([0, 1, 0, 1], [[1.0, math.nan, 3, math.inf]], "got 2 that are not"),
        ([0, 0, 0, 1], [[1.0, 2, 3, 4]], "two positives and two negatives, got 1 and 3"),
    ],
)
def test_delong_refuses_what_has_no_variance(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        delong(labels, scores)


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
    logits, teacher = generator.normal(0, 3, 800), 0.4 + 0.02 * generator.normal(size=800)
    labels = (generator.random(800) < 1 / (1 + np.exp(-(0.8 * logits + 30 * (teacher - 0.4))))).astype(int)

    def negative_log_likelihood(weights):
        margin = weights[0] * logits + weights[1] * (teacher - 0.4) / 0.02 + weights[2]
        return np.logaddexp(0, -(2 * labels - 1) * margin).sum()

    a, b, c = logistic_fusion(labels, logits, teacher)
    best = optimize.minimize(negative_log_likelihood, np.zeros(3), method="BFGS").x
    assert (a, b * 0.02, c + b * 0.4) == pytest.approx((best[0], best[1], best[2]), abs=1e-3)


def test_a_fused_score_beats_both_of_its_parts():
    generator = np.random.default_rng(9)
    labels = np.arange(2000) % 2
    logits, teacher = labels + generator.normal(0, 1, 2000), labels + generator.normal(0, 2, 2000)
    a, b, c = logistic_fusion(labels[:1000], logits[:1000], teacher[:1000])
    fused = roc_auc_score(labels[1000:], a * logits[1000:] + b * teacher[1000:] + c)
    assert fused > roc_auc_score(labels[1000:], logits[1000:])
    assert fused > roc_auc_score(labels[1000:], teacher[1000:])


@pytest.mark.parametrize(
    ("labels", "logits", "teacher", "message"),
    [
        ([0, 1, 0], [1.0, 2, 3], [0.1, 0.2], r"one value a label, got shapes \(3,\) and \(2,\)"),
        ([0, 1, 0], [1.0, 2, 3], [0.1, math.nan, 0.2], "got 1 rows that are not"),
        ([1, 1, 1], [1.0, 2, 3], [0.1, 0.3, 0.2], "both 0 and 1"),
        ([0, 1, 0], [1.0, 2, 3], [0.5, 0.5, 0.5], "must each vary"),
        ([0, 0, 1, 1], [1.0, 2, 3, 4], [0.1, 0.3, 0.2, 0.4], "parted without error"),
    ],
)
def test_fusion_refuses_rows_without_finite_weights(labels, logits, teacher, message):
    with pytest.raises(ValueError, match=message):
        logistic_fusion(labels, logits, teacher)

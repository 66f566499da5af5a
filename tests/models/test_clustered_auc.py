"""AUCs and their user-clustered covariance against plain loops, a bootstrap of users, and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sllmr.models.clustered_auc import clustered_auc, compare_auc, estimate_auc


def sample(generator, users: int, rows: int = 4, user_effect: float = 1.0) -> tuple[np.ndarray, ...]:
    """user, label and the scores of two scorers, [users * rows]; the rows of a user share an effect on each score."""
    user = np.repeat(np.arange(users), rows)
    label = generator.integers(0, 2, users * rows)
    shared = user_effect * generator.normal(size=users)[user] + generator.normal(size=users * rows)
    own = [user_effect * generator.normal(size=users)[user] + generator.normal(size=users * rows) for _ in range(2)]
    return user, label, label * 1.0 + shared + 0.6 * own[0], label * 0.7 + shared + 0.6 * own[1]


def pairs_in_order(labels, scores) -> float:
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    return float(np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs]))


def test_both_aucs_are_the_fraction_of_pairs_in_order():
    user, label, a, b = sample(np.random.default_rng(0), users=20)
    a = a.round()  # with ties
    result = compare_auc(user, label, a, b)
    assert result.auc_a == pytest.approx(pairs_in_order(label, a), abs=1e-12)
    assert result.auc_b == pytest.approx(pairs_in_order(label, b), abs=1e-12)
    assert result.difference == pytest.approx(result.auc_a - result.auc_b)
    assert (result.examples, result.positives, result.users) == (80, label.sum(), 20)


def test_the_order_of_the_rows_and_the_scale_of_the_scores_change_nothing():
    generator = np.random.default_rng(1)
    user, label, a, b = sample(generator, users=50)
    before = compare_auc(user, label, a, b)
    order = generator.permutation(len(user))
    names = np.array([f"user {i}" for i in user])
    after = compare_auc(names[order], label[order], 7 * a[order] - 3, b[order] - 30)
    assert tuple(after) == pytest.approx(tuple(before), abs=1e-12)


def test_the_covariance_is_that_of_obuchowskis_sums():
    user, label, a, b = sample(np.random.default_rng(2), users=12, rows=3)
    scores = [a, b]
    m, n = int((label == 1).sum()), int((label == 0).sum())
    auc = [pairs_in_order(label, s) for s in scores]

    def sums(r: int, u: int) -> tuple[float, float]:
        s = scores[r]
        above = [np.mean(s[label == 0] < s[i]) - auc[r] for i in np.flatnonzero((user == u) & (label == 1))]
        below = [np.mean(s[label == 1] > s[i]) - auc[r] for i in np.flatnonzero((user == u) & (label == 0))]
        return sum(above), sum(below)

    with_positives, with_negatives = len(set(user[label == 1])), len(set(user[label == 0]))
    expected = np.zeros((2, 2))
    for r, s in itertools.product(range(2), repeat=2):
        x, y = [sums(r, u) for u in range(12)], [sums(s, u) for u in range(12)]
        s10 = with_positives / (with_positives - 1) / m * sum(p[0] * q[0] for p, q in zip(x, y, strict=True))
        s01 = with_negatives / (with_negatives - 1) / n * sum(p[1] * q[1] for p, q in zip(x, y, strict=True))
        s11 = 12 / 11 * sum(p[0] * q[1] + p[1] * q[0] for p, q in zip(x, y, strict=True))
        expected[r, s] = s10 / m + s01 / n + s11 / (m * n)
    _, covariance = clustered_auc(user, label, scores)
    assert covariance == pytest.approx(expected, abs=1e-14)
    assert estimate_auc(user, label, b).standard_error ** 2 == pytest.approx(expected[1, 1])
    of_difference = expected[0, 0] + expected[1, 1] - expected[0, 1] - expected[1, 0]
    assert compare_auc(user, label, a, b).standard_error ** 2 == pytest.approx(of_difference)


def delong_by_loops(labels, scores) -> np.ndarray:
    """The covariance by DeLong's own definition, one positive and one negative at a time."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    above = np.array([[[(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for j in negatives] for i in positives] for s in scores])
    return np.cov(above.mean(axis=2)) / len(positives) + np.cov(above.mean(axis=1)) / len(negatives)


def test_with_one_row_a_user_the_covariance_is_delongs():
    user, label, a, b = sample(np.random.default_rng(12), users=60, rows=1)
    scores = np.stack([a.round(1), b.round(1), -a.round(1)])  # with ties
    _, covariance = clustered_auc(user, label, scores)
    assert covariance == pytest.approx(delong_by_loops(label, scores), abs=1e-14)


@pytest.mark.slow
def test_the_standard_errors_are_those_of_a_bootstrap_of_users():
    user, label, a, b = sample(np.random.default_rng(3), users=300)
    generator = np.random.default_rng(4)
    aucs = []
    for _ in range(400):
        rows = (generator.integers(0, 300, 300)[:, None] * 4 + np.arange(4)).ravel()
        aucs.append([roc_auc_score(label[rows], a[rows]), roc_auc_score(label[rows], b[rows])])
    single, both = estimate_auc(user, label, a), compare_auc(user, label, a, b)
    spread = np.array(aucs)
    assert single.standard_error == pytest.approx(spread[:, 0].std(), rel=0.12)
    assert both.standard_error == pytest.approx((spread[:, 0] - spread[:, 1]).std(), rel=0.12)


@pytest.mark.slow
@pytest.mark.parametrize(("users", "user_effect"), [(15, 1.0), (60, 0.0), (60, 2.0), (200, 1.0)])
def test_intervals_of_95_percent_cover_the_truth_in_90_to_98_of_100_samples(users, user_effect):
    truth = sample(np.random.default_rng(5), users=100_000, user_effect=user_effect)
    auc_a, auc_b = (roc_auc_score(truth[1], scores) for scores in truth[2:])
    generator = np.random.default_rng(6)
    covered = np.zeros(2)
    for _ in range(500):
        user, label, a, b = sample(generator, users=users, user_effect=user_effect)
        single, both = estimate_auc(user, label, a), compare_auc(user, label, a, b)
        assert 0 <= single.lower <= single.auc <= single.upper <= 1
        covered += [single.lower <= auc_a <= single.upper, both.lower <= auc_a - auc_b <= both.upper]
    assert (covered / 500 >= 0.90).all(), covered / 500
    assert (covered / 500 <= 0.98).all(), covered / 500


def test_intervals_over_rows_would_be_too_narrow_where_users_repeat():
    """Each user's rows 10 times over hold no more information; a variance over rows believes that they do."""
    user, label, a, b = sample(np.random.default_rng(7), users=100)
    once = compare_auc(user, label, a, b)
    repeated = compare_auc(*(np.tile(column, 10) for column in (user, label, a, b)))
    by_rows = compare_auc(np.arange(4000), *(np.tile(column, 10) for column in (label, a, b)))
    assert repeated.standard_error == pytest.approx(once.standard_error, rel=1e-9)
    assert by_rows.standard_error < once.standard_error / 2


def test_the_interval_of_a_difference_on_two_users_stays_within_what_a_difference_can_be():
    result = compare_auc([1, 1, 2, 2, 3], [1, 0, 1, 0, 1], [3.0, 1, 2, 4, 5], [1.0, 2, 3, 2, 1])
    assert result.standard_error > 0.2
    assert (result.lower, result.upper) == (-1, 1)


def test_two_users_with_each_label_are_enough_for_an_interval_by_students_t_on_the_logit_scale():
    users, labels, scores = [1, 1, 1, 2, 2, 2], [1, 0, 0, 1, 0, 0], [3.0, 1, 4, 5, 2, 0]
    result = estimate_auc(users, labels, scores)

    assert result.auc == 7 / 8
    half = 12.7062 * result.standard_error / (7 / 8 * 1 / 8)  # .975 quantile of Student's t at one degree of freedom
    ends = [1 / (1 + math.exp(-(math.log(7) + sign * half))) for sign in (-1, 1)]
    assert (result.lower, result.upper) == pytest.approx(ends, rel=1e-4)


def test_equal_scorers_differ_by_nothing():
    user, label, a, _ = sample(np.random.default_rng(8), users=30)
    result = compare_auc(user, label, a, 2 * a + 1)
    assert (result.difference, result.lower, result.upper) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("labels", [[], [1, 1, 1], [0, 0]])
def test_rows_without_both_labels_have_counts_and_no_auc(labels):
    users, scores = list(range(len(labels))), [0.5] * len(labels)
    sizes = (len(labels), sum(labels), len(labels))
    assert estimate_auc(users, labels, scores) == (None, None, None, None, *sizes)
    assert compare_auc(users, labels, scores, scores) == (None,) * 6 + sizes


def test_one_user_has_an_auc_and_no_interval():
    assert estimate_auc(["u"] * 3, [1, 0, 0], [3.0, 1, 4]) == (0.5, None, None, None, 3, 1, 1)
    assert compare_auc(["u"] * 2, [1, 0], [3.0, 1], [1.0, 3]) == (1.0, 0.0, 1.0, None, None, None, 2, 1, 1)


@pytest.mark.parametrize("counts", [(5, 5), (2, 5), (5, 2)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_order_is_as_certain_as_the_users_of_the_rarer_label_make_it(counts, sign):
    with_positive, with_negative = counts
    users = [*range(with_positive), *range(with_negative)]
    labels = np.array([1] * with_positive + [0] * with_negative)
    result = estimate_auc(users, labels, sign * labels)
    bound = 0.025 ** (1 / min(counts))
    assert (result.lower, result.upper) == pytest.approx((bound, 1) if sign == 1 else (0, 1 - bound))


@pytest.mark.parametrize("labels", [[1, 0, 0, 0], [1, 1, 1, 0]])
def test_one_user_with_either_label_is_too_few_for_an_interval(labels):
    users, scores = ["u", "v", "w", "x"], [4.0, 3.0, 2.0, 1.0]
    assert estimate_auc(users, labels, scores)[:4] == (1.0, None, None, None)
    assert compare_auc(users, labels, scores, scores)[3:6] == (None, None, None)
    with pytest.raises(ValueError, match=r"at least two users with a positive and two with a negative, got \d and \d"):
        clustered_auc(users, labels, [scores])


@pytest.mark.parametrize(
    ("users", "labels", "scores", "message"),
    [
        (["u"], [1, 0], [0.1, 0.2], r"one id a label, got shape \(1,\)"),
        (["u", "v"], [1, 2], [0.1, 0.2], "0 and 1 only"),
        (["u", "v"], [1, 0], [0.1, math.nan], "finite, got 1 that"),
        (["u", "v"], [1, 0], [0.1], "one column a label"),
    ],
)
def test_what_cannot_be_measured_is_refused(users, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        estimate_auc(users, labels, scores)

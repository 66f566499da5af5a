"""Every metric against a plain loop or scikit-learn; intervals against a bootstrap of users and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from sllmr.models.metric_names import METRICS, RANKING_METRICS
from sllmr.models.metrics import Rows
from sllmr.models.user_ranking import TOP, rank_by_user


def sample(generator, users: int, rows: int = 12, effect: float = 1.0) -> tuple[np.ndarray, ...]:
    """user, label and logits of two scorers; a user's rows share an effect, and some logits tie."""
    user = np.repeat(np.arange(users), rows)
    label = (generator.random(users * rows) < 0.3).astype(int)
    shared = effect * generator.normal(size=users)[user] + generator.normal(size=users * rows)
    return user, label, np.round(label + shared, 1), np.round(0.6 * label + shared, 1)


def of_users(user, label, score):
    for name in np.unique(user):
        mine = user == name
        yield label[mine], score[mine]


def test_the_per_user_auc_is_scikit_learns_averaged_over_users_with_both_labels():
    user, label, score, _ = sample(np.random.default_rng(0), users=30, rows=4)
    expected = [roc_auc_score(y, s) for y, s in of_users(user, label, score) if 0 < y.sum() < len(y)]
    found = Rows(user, label, {"a": score}).estimate("per_user_auc", "a")
    assert found.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.users == len(expected) < 30


def test_the_ndcg_is_scikit_learns_averaged_over_users_with_both_labels():
    user, label, score, _ = sample(np.random.default_rng(1), users=30, rows=15)
    expected = [ndcg_score([y], [s], k=10) for y, s in of_users(user, label, score) if 0 < y.sum() < len(y)]
    assert Rows(user, label, {"a": score}).estimate("ndcg_at_10", "a").value == pytest.approx(np.mean(expected))


def test_the_hit_rate_is_the_chance_of_a_positive_in_the_top_10_over_users_with_more_rows():
    generator = np.random.default_rng(2)
    user = np.concatenate([np.repeat(np.arange(40), 14), np.repeat([40, 41], 10)])  # the last two always hit
    label = (generator.random(len(user)) < 0.07).astype(int)
    score = generator.integers(0, 4, len(user)).astype(float)

    def hit(y, s) -> float:
        """By drawing the order of ties many times."""
        keys = np.stack([generator.permutation(len(y)) for _ in range(4000)])
        order = np.lexsort((keys, np.broadcast_to(-s, keys.shape)))
        return float((y[order[:, :TOP]].sum(axis=1) > 0).mean())

    expected = [hit(y, s) for y, s in of_users(user, label, score) if 0 < y.sum() < len(y) and len(y) > TOP]
    assert any(0.2 < chance < 0.98 for chance in expected)
    found = Rows(user, label, {"a": score}).estimate("hit_rate_at_10", "a")
    assert found.value == pytest.approx(np.mean(expected), abs=0.01)
    assert found.users == len(expected)


def test_ten_candidates_or_fewer_have_no_hit_rate():
    user, label, score, _ = sample(np.random.default_rng(3), users=5, rows=TOP)
    assert Rows(user, label, {"a": score}).estimate("hit_rate_at_10", "a") == (None, None, None, 0)


def test_the_log_loss_is_scikit_learns_and_finite_for_any_logit():
    user, label, score, _ = sample(np.random.default_rng(4), users=30)
    expected = log_loss(label, 1 / (1 + np.exp(-score)))
    assert Rows(user, label, {"a": score}).estimate("log_loss", "a").value == pytest.approx(expected, abs=1e-12)
    far = Rows([1, 2], [1, 0], {"a": np.array([-800.0, -800.0])}).estimate("log_loss", "a")
    assert far.value == pytest.approx(400)


def test_a_positive_rate_weights_the_rows_as_scikit_learn_does():
    user, label, score, _ = sample(np.random.default_rng(5), users=50)
    weights = np.where(label == 1, 0.02 / label.mean(), 0.98 / (1 - label.mean()))
    expected = log_loss(label, 1 / (1 + np.exp(-score)), sample_weight=weights)
    found = Rows(user, label, {"a": score}, positive_rate=0.02).estimate("log_loss", "a")
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_the_calibration_error_is_that_of_ten_bins_of_equal_size():
    generator = np.random.default_rng(6)
    logits = generator.normal(size=500)
    label = (generator.random(500) < 1 / (1 + np.exp(-logits - 0.5))).astype(int)
    order = np.argsort(logits)
    bins = order.reshape(10, 50)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = np.mean([abs(probabilities[b].mean() - label[b].mean()) for b in bins])
    found = Rows(np.arange(500) // 5, label, {"a": logits}).estimate("calibration_error", "a")
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_a_logit_that_is_right_about_the_weighted_rate_is_calibrated_and_the_unshifted_one_is_not():
    generator = np.random.default_rng(7)
    logits = generator.normal(-3, 1, size=400_000)
    label = (generator.random(400_000) < 1 / (1 + np.exp(-logits))).astype(int)
    rate = label.mean()
    kept = (label == 1) | (generator.random(400_000) < rate / (1 - rate))  # as many negatives as positives
    shifted = logits[kept] - math.log(rate / (1 - rate))  # what training on these rows gives
    rows = Rows(np.arange(kept.sum()), label[kept], {"served": logits[kept], "raw": shifted}, positive_rate=rate)
    assert rows.estimate("calibration_error", "served").value < 0.005
    assert rows.estimate("calibration_error", "raw").value > 0.2


@pytest.mark.parametrize("metric", METRICS[1:])
@pytest.mark.slow
def test_intervals_of_a_value_and_of_a_change_are_those_of_a_bootstrap_of_users(metric):
    user, label, a, b = sample(np.random.default_rng(8), users=250)
    b = b + 1.0  # so that no bin of the calibration error changes its sign
    a = a + 1.0
    generator = np.random.default_rng(9)
    values, changes = [], []
    for _ in range(200):
        rows = (generator.integers(0, 250, 250)[:, None] * 12 + np.arange(12)).ravel()
        drawn = Rows(np.repeat(np.arange(250), 12), label[rows], {"a": a[rows], "b": b[rows]})
        values.append(drawn.estimate(metric, "a").value)
        changes.append(drawn.compare(metric, "a", "b").difference)
    rows = Rows(user, label, {"a": a, "b": b})
    found, change = rows.estimate(metric, "a"), rows.compare(metric, "a", "b")
    assert found.lower <= found.value <= found.upper
    assert change.difference == pytest.approx(found.value - rows.estimate(metric, "b").value)
    if metric == "hit_rate_at_10":  # nearly 1 for every user: intervals of a few thousandths
        assert found.upper - found.lower < 0.02
        return
    assert (found.upper - found.lower) / 3.94 == pytest.approx(np.std(values), rel=0.2)
    assert (change.upper - change.lower) / 3.94 == pytest.approx(np.std(changes), rel=0.25)


@pytest.mark.parametrize("metric", ["per_user_auc", "ndcg_at_10", "log_loss"])
@pytest.mark.slow
def test_intervals_of_95_percent_cover_the_truth_in_90_to_98_of_100_samples(metric):
    whole = sample(np.random.default_rng(10), users=20_000)
    truth = Rows(*whole[:2], {"a": whole[2], "b": whole[3]})
    value, difference = truth.estimate(metric, "a").value, truth.compare(metric, "a", "b").difference
    generator = np.random.default_rng(11)
    covered = np.zeros(2)
    for _ in range(300):
        user, label, a, b = sample(generator, users=40)
        rows = Rows(user, label, {"a": a, "b": b})
        found, change = rows.estimate(metric, "a"), rows.compare(metric, "a", "b")
        covered += [found.lower <= value <= found.upper, change.lower <= difference <= change.upper]
    assert (covered / 300 >= 0.90).all(), covered / 300
    assert (covered / 300 <= 0.98).all(), covered / 300


@pytest.mark.parametrize("metric", RANKING_METRICS)
def test_the_scale_of_the_scores_and_the_order_of_the_rows_change_no_ranking_metric(metric):
    generator = np.random.default_rng(12)
    user, label, a, _ = sample(generator, users=20)
    order = generator.permutation(len(user))
    moved = Rows(user[order], label[order], {"a": 3 * a[order] - 40})
    assert moved.estimate(metric, "a") == pytest.approx(Rows(user, label, {"a": a}).estimate(metric, "a"), abs=1e-12)


@pytest.mark.parametrize(("metric", "label"), list(itertools.product(METRICS, [0, 1])))
def test_rows_of_one_label_have_no_metric(metric, label):
    rows = Rows(np.repeat([1, 2, 3], 12), np.full(36, label), {"a": np.arange(36.0), "b": np.zeros(36)})
    assert rows.estimate(metric, "a") == (None, None, None, 0)
    assert rows.compare(metric, "a", "b") == (None, None, None)


def test_users_who_all_get_a_perfect_order_are_not_certain():
    user, label = np.repeat(np.arange(5), 2), np.tile([1, 0], 5)
    found = Rows(user, label, {"a": label * 1.0}).estimate("per_user_auc", "a")
    assert (found.value, found.lower, found.upper) == pytest.approx((1.0, 0.025 ** (1 / 5), 1.0))


def test_a_constant_score_gets_what_chance_gets():
    found = rank_by_user(np.zeros(20), np.arange(20) < 1, np.ones(20))
    assert (found.auc[0], found.hit[0]) == pytest.approx((0.5, 0.5))

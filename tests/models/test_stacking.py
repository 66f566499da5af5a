"""The blend against a general solver, planted truths and the fit that ignores its bounds."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

from sllmr.models.reliability import calibration_error
from sllmr.models.stacking import Blend, _fit, _recalibration, fit_calibrated_blend, interactions


def drawn(number: int, llm: float, seed: int):
    """Rows, two a user, with signals in [.2, 1], of a positive of probability sigmoid(s + llm y - .3)."""
    source = np.random.default_rng(seed)
    signals = source.uniform(0.2, 1.0, (number, 2))
    s, y = source.normal(size=(2, number))
    probability = 1 / (1 + np.exp(-(s + llm * y - 0.3)))
    return signals, s, y, (source.uniform(size=number) < probability).astype(int), np.arange(number) // 2


def oracle(signals, s, y, chosen) -> np.ndarray:
    """The constrained optimum by SLSQP, with the bounds as they are meant: a and b at the corners of the signals."""
    columns, targets = [], []
    for n in range(len(s)):
        z = [1.0, signals[n, 0], signals[n, 1], signals[n, 0] * signals[n, 1]]
        columns.append([*(s[n] * v for v in z), *(y[n] * v for v in z), *z])
        targets.append(chosen[n])
    x, t = np.array(columns), np.array(targets)
    low, high = signals.min(axis=0), signals.max(axis=0)
    corners = np.array([[1, i, j, i * j] for i in (low[0], high[0]) for j in (low[1], high[1])])
    zeros = np.zeros((4, 4))
    bounds = np.block([[corners, zeros, zeros], [zeros, corners, zeros]])

    def objective(w: np.ndarray) -> float:
        free = np.delete(w, 8)
        return float(np.mean(np.logaddexp(0, x @ w) - t * (x @ w)) + 0.5 * np.sum(free**2) / len(t))

    return scipy.optimize.minimize(
        objective,
        np.zeros(12),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: bounds @ w, "jac": lambda w: bounds},
        options={"maxiter": 500, "ftol": 1e-12},
    ).x


def test_the_logit_is_that_of_a_plain_loop():
    source = np.random.default_rng(7)
    model, llm, base = source.normal(size=(3, 4))
    signals, (s, y) = source.uniform(size=(20, 2)), source.normal(size=(2, 20))
    expected = []
    for n in range(20):
        z = [1.0, signals[n, 0], signals[n, 1], signals[n, 0] * signals[n, 1]]
        a, b, c = (sum(w * v for w, v in zip(weights, z, strict=True)) for weights in (model, llm, base))
        expected.append(a * s[n] + b * y[n] + c)

    np.testing.assert_allclose(Blend(model, llm, base, None).logit(interactions(signals), s, y), expected)


@pytest.mark.parametrize("scale", [-1.0, 1.0, 3.0])
def test_the_recalibration_is_the_optimum_with_a_pull_towards_1_and_0(scale):
    source = np.random.default_rng(8)
    f = source.normal(size=50)
    positive = (source.uniform(size=50) < 1 / (1 + np.exp(-scale * f - 0.8))).astype(int)

    def objective(w: np.ndarray) -> float:
        g = [w[0] * x + w[1] for x in f]
        return (
            sum(np.log1p(np.exp(x)) - p * x for x, p in zip(g, positive, strict=True))
            + ((w[0] - 1) ** 2 + w[1] ** 2) / 2
        )

    expected = scipy.optimize.minimize(objective, [1.0, 0.0], method="Nelder-Mead", bounds=[(0, None), (None, None)]).x
    np.testing.assert_allclose(_recalibration(f, positive), expected, atol=1e-3)
    assert (expected[0] == 0) == (scale < 0)


@pytest.mark.parametrize("llm", [0.5, 0.0, -0.5])
def test_the_fit_is_the_optimum_of_the_penalized_likelihood_within_the_bounds(llm):
    signals, s, y, chosen, _ = drawn(400, llm, seed=1)
    blend = _fit(signals, s, y, chosen)

    expected = oracle(signals, s, y, chosen)
    np.testing.assert_allclose(np.concatenate([blend.model, blend.llm, blend.base]), expected, atol=5e-3)


@pytest.mark.parametrize("number_of_signals", [1, 2, 3])
@pytest.mark.parametrize("llm", [0.3, -1.0])
def test_neither_weight_is_negative_anywhere_between_the_signals_of_the_fit(number_of_signals, llm):
    source = np.random.default_rng(2)
    _, s, y, chosen, users = drawn(600, llm, seed=2)
    signals = source.uniform(0.2, 1.0, (600, number_of_signals))
    chosen = np.where(signals[:, 0] > 0.6, 1 - chosen, chosen)  # the base model is contrary there
    blend = fit_calibrated_blend(signals, s, y, chosen, users)

    z = interactions(source.uniform(signals.min(axis=0), signals.max(axis=0), (5000, number_of_signals)))
    assert (z @ blend.model).min() > -1e-9
    assert (z @ blend.llm).min() > -1e-9


def unbounded_then_clipped(signals, s, y, chosen):
    """What a fit gives that ignores the bounds until it is used."""
    z = interactions(signals)
    columns = np.concatenate([z * s[:, None], z * y[:, None], z[:, 1:]], axis=1)
    fit = LogisticRegression(C=1.0, max_iter=1000).fit(columns, chosen)
    a, b, c = fit.coef_[0, :4], fit.coef_[0, 4:8], np.concatenate([fit.intercept_, fit.coef_[0, 8:]])
    return lambda x, s, y: np.maximum(x @ a, 0) * s + np.maximum(x @ b, 0) * y + x @ c


@pytest.mark.parametrize("llm", [0.1, 0.0, -2.5], ids=["weak", "useless", "contrary"])
@pytest.mark.slow
def test_the_targets_of_a_weak_and_of_a_contrary_llm_are_calibrated_on_other_users(llm):
    signals, s, y, chosen, users = drawn(6000, llm, seed=3)
    new_signals, new_s, new_y, new_chosen, _ = drawn(40_000, llm, seed=4)
    blend = fit_calibrated_blend(signals, s, y, chosen, users)

    probability = 1 / (1 + np.exp(-blend.logit(interactions(new_signals), new_s, new_y)))
    gap = 0.0
    for low in np.arange(0, 1, 0.1):  # calibration error, once more by hand
        inside = (probability >= low) & (probability < low + 0.1)
        gap += abs(probability[inside].sum() - new_chosen[inside].sum())
    assert gap / len(new_s) < 0.01
    assert blend.calibration_error < 0.03
    if llm < 0:
        clipped = unbounded_then_clipped(signals, s, y, chosen)(interactions(new_signals), new_s, new_y)
        assert calibration_error(1 / (1 + np.exp(-clipped)), new_chosen == 1) > 0.06


def test_a_few_rows_with_an_overconfident_base_model_are_recalibrated():
    """Users differ in a way that the fit sees and other users do not share: its own rows look better than they are."""
    source = np.random.default_rng(5)
    users = np.repeat(np.arange(40), 3)
    signals = source.uniform(0.2, 1.0, (120, 3))
    s, y = source.normal(size=(2, 120)) * 3
    chosen = source.integers(0, 2, 120)
    plain, calibrated = _fit(signals, s, y, chosen), fit_calibrated_blend(signals, s, y, chosen, users)

    z = interactions(source.uniform(0.2, 1.0, (4000, 3)))
    new_s, new_y = source.normal(size=(2, 4000)) * 3
    spread = [blend.logit(z, new_s, new_y).std() for blend in (plain, calibrated)]
    assert spread[1] < 0.5 * spread[0]  # nothing is known here


def test_the_same_rows_give_the_same_blend():
    rows = drawn(300, 0.5, seed=9)
    first, second = fit_calibrated_blend(*rows), fit_calibrated_blend(*rows)

    assert first.calibration_error == second.calibration_error
    np.testing.assert_array_equal(first.llm, second.llm)


def test_one_user_cannot_be_held_out_of_itself():
    signals, s, y, chosen, _ = drawn(40, 0.5, seed=6)
    alone, plain = fit_calibrated_blend(signals, s, y, chosen, np.zeros(40, int)), _fit(signals, s, y, chosen)

    assert alone.calibration_error is None
    np.testing.assert_array_equal(alone.llm, plain.llm)

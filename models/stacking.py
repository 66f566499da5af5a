"""Feature-weighted linear stacking of two scorers with weights of at least 0 everywhere. NumPy and SciPy alone.

f = a(z) s + b(z) y + c(z), P(positive) = sigmoid(f), a and b at least 0.

It does not work to fit without bounds and set negative weights to 0 afterwards: a and c stay as fitted beside the
negative b, and the probabilities are overconfident. So the bounds are part of the fit. Let t be a signal scaled to
[0, 1] over the rows of the fit. a and b are sums, with coefficients of at least 0, of products of one factor, t or
1 - t, from each of two signals. With one or two signals, these sums are all functions linear in z that are at least 0
on the range of the signals. The likelihood is concave in the coefficients and the bounds are a box, so there is one
optimum and L-BFGS-B finds it. With weights clipped inside the likelihood, neither would hold.

Sources: Sill et al., "Feature-Weighted Linear Stacking", arXiv 0911.0460; Breiman, "Stacked Regressions", 1996, for
the weights of at least 0; Platt, "Probabilistic Outputs for Support Vector Machines", 1999, for the calibration.
"""

import itertools
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.special import expit

from sllmr.models.reliability import calibration_error

FOLDS = 5
_FOLD_SEED = 20251221


class Blend(NamedTuple):
    """The fitted weights.

    Attributes:
        model: float [columns], a(z) = model . z.
        llm: float [columns], b(z) = llm . z.
        base: float [columns], c(z) = base . z.
        calibration_error: of probabilities for rows whose users took part neither in the fit nor in its recalibration;
            None with a single user.
    """

    model: np.ndarray
    llm: np.ndarray
    base: np.ndarray
    calibration_error: float | None

    def logit(self, z: np.ndarray, s: np.ndarray, y: np.ndarray) -> np.ndarray:
        """f, float64 [rows], from z [rows, columns], s [rows] and y [rows]."""
        return (z @ self.model) * s + (z @ self.llm) * y + z @ self.base


def interactions(signals: np.ndarray) -> np.ndarray:
    """z, float [rows, columns], from signals, float [rows, signals]: 1, each signal, and the product of any two."""
    products = [signals[:, i] * signals[:, j] for i, j in itertools.combinations(range(signals.shape[1]), 2)]
    return np.stack([np.ones(len(signals)), *signals.T, *products], axis=1)


def fit_calibrated_blend(
    signals: np.ndarray, s: np.ndarray, y: np.ndarray, positive: np.ndarray, users: np.ndarray
) -> Blend:
    """Fits the blend by maximum likelihood, less half the squared norm of its weights, and recalibrates it.

    A blend's logits on its own rows are a little too large. So a blend of the other users scores each fifth of the
    users, and A f + B, A at least 0, is fitted on these logits f; A and B then become part of the weights.

    Args:
        signals: float [rows, signals].
        s: float [rows], of the base model.
        y: float [rows], of the LLM.
        positive: int [rows], 1 for a positive.
        users: int [rows]; a fold has all rows of a user or none.
    """
    blend = _fit(signals, s, y, positive)
    _, user = np.unique(users, return_inverse=True)
    number = int(user.max()) + 1
    folds = min(FOLDS, number)
    if folds == 1:
        return blend
    fold = (np.random.default_rng(_FOLD_SEED).permutation(number) % folds)[user]
    held = np.zeros(len(s))
    for n in range(folds):
        inside = fold == n
        others = _fit(signals[~inside], s[~inside], y[~inside], positive[~inside])
        held[inside] = others.logit(interactions(signals[inside]), s[inside], y[inside])
    probability = np.zeros(len(s))
    for n in range(folds):
        slope, shift = _recalibration(held[fold != n], positive[fold != n])
        probability[fold == n] = expit(slope * held[fold == n] + shift)
    slope, shift = _recalibration(held, positive)
    base = slope * blend.base
    base[0] += shift
    return Blend(slope * blend.model, slope * blend.llm, base, calibration_error(probability, positive == 1))


def _fit(signals: np.ndarray, s: np.ndarray, y: np.ndarray, positive: np.ndarray) -> Blend:
    z = interactions(signals)
    to_weights = _never_negative(signals.min(axis=0), signals.max(axis=0))
    parts = to_weights.shape[1]
    columns = np.concatenate([(z @ to_weights) * s[:, np.newaxis], (z @ to_weights) * y[:, np.newaxis], z], axis=1)
    # The penalty applies to the weights of z, not to the coefficients that form them; the constant of c has none.
    penalized = scipy.linalg.block_diag(to_weights, to_weights, np.diag([0.0] + [1.0] * (z.shape[1] - 1)))
    rows = len(s)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        f, norm = columns @ w, penalized @ w
        loss = np.sum(np.logaddexp(0.0, f) - positive * f) + 0.5 * np.sum(norm**2)
        return loss / rows, (columns.T @ (expit(f) - positive) + penalized.T @ norm) / rows

    found = scipy.optimize.minimize(
        objective,
        np.zeros(columns.shape[1]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * (2 * parts) + [(None, None)] * z.shape[1],
        options={"maxiter": 5000, "maxfun": 10000, "ftol": 1e-13, "gtol": 1e-8, "maxcor": 30},
    ).x
    return Blend(to_weights @ found[:parts], to_weights @ found[parts : 2 * parts], found[2 * parts :], None)


def _never_negative(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float [columns of z, parts]: each part, as weights of z, is at least 0 for signals between low and high."""
    number = len(low)
    span = np.where(high > low, high - low, 1.0)
    constant = np.zeros(1 + number)
    constant[0] = 1.0

    def ends(i: int) -> tuple[np.ndarray, np.ndarray]:
        t = np.zeros(1 + number)
        t[[0, 1 + i]] = -low[i] / span[i], 1.0 / span[i]
        return constant - t, t

    pairs = list(itertools.combinations(range(number), 2))
    if not pairs:
        return np.stack(ends(0), axis=1)
    parts = []
    for n, (i, j) in enumerate(pairs):
        for first, second in itertools.product(ends(i), ends(j)):
            weights = first[0] * second + second[0] * first  # holds the product of the constants twice
            weights[0] -= first[0] * second[0]
            product = np.zeros(len(pairs))
            product[n] = first[1 + i] * second[1 + j]
            parts.append(np.concatenate([weights, product]))
    return np.stack(parts, axis=1)


def _recalibration(f: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """A at least 0 and B of sigmoid(A f + B), by maximum likelihood; few rows leave them near 1 and 0."""

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        away = w - [1.0, 0.0]
        g = w[0] * f + w[1]
        error = expit(g) - positive
        loss = np.sum(np.logaddexp(0.0, g) - positive * g) + 0.5 * np.sum(away**2)
        return loss / len(f), (np.array([error @ f, error.sum()]) + away) / len(f)

    found = scipy.optimize.minimize(
        objective, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]
    ).x
    return float(found[0]), float(found[1])

"""Exact AUC of one or two scorers on the same rows, with standard errors and 95% intervals clustered by user.

Rows of one user are not independent, so that a standard error over rows is wrong. Here the user is the unit that is
sampled. The same function serves a model, its baseline, popularity, and one model against another.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats


class AucEstimate(NamedTuple):
    """How well scores order rows.

    Attributes:
        auc: exact, ties counting half; None if the rows do not hold both labels.
        standard_error: None if fewer than two users have a positive or fewer than two a negative.
        lower: of the interval, in [0, 1]; None as standard_error.
        upper: as lower.
        examples: rows.
        positives: rows of label 1.
        users: distinct ones.
    """

    auc: float | None
    standard_error: float | None
    lower: float | None
    upper: float | None
    examples: int
    positives: int
    users: int


class AucComparison(NamedTuple):
    """Scorer a against scorer b on the same rows; None as in AucEstimate.

    Attributes:
        auc_a: exact.
        auc_b: exact.
        difference: auc_a - auc_b.
        standard_error: of the difference, paired and clustered by user.
        lower: of the difference's interval, in [-1, 1].
        upper: as lower.
        examples: rows.
        positives: rows of label 1.
        users: distinct ones.
    """

    auc_a: float | None
    auc_b: float | None
    difference: float | None
    standard_error: float | None
    lower: float | None
    upper: float | None
    examples: int
    positives: int
    users: int


def estimate_auc(
    users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = 0.95
) -> AucEstimate:
    """The AUC of one scorer and its interval, symmetric on the logit scale, so that it stays in [0, 1].

    Scores that order every pair right (or every pair wrong) show no spread. The interval then reaches from 1 (or 0) to
    the exact binomial bound for as many trials as there are users with the rarer label.

    Args:
        users: [rows], any hashable ids.
        labels: [rows], 0 or 1.
        scores: [rows], finite, any increasing scale; logits rather than probabilities, which saturate.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: on labels, shapes or scores that break the above.

    Source: Qin and Hotilovac, Statistical Methods in Medical Research 17, 2008 (logit interval); clustered_auc.
    """
    users, labels, stacked = _checked(users, labels, np.asarray(scores)[np.newaxis])
    sizes = _sizes(users, labels)
    if not _both(labels):
        return AucEstimate(None, None, None, None, *sizes)
    rarer = _rarer_users(users, labels)
    if rarer < 2:
        return AucEstimate(float(_aucs(labels, stacked)[0]), None, None, None, *sizes)
    aucs, covariance = clustered_auc(users, labels, stacked)
    auc, error = float(aucs[0]), float(np.sqrt(covariance[0, 0]))
    lower, upper = _auc_interval(auc, error, rarer, level)
    return AucEstimate(auc, error, lower, upper, *sizes)


def compare_auc(
    users: npt.ArrayLike,
    labels: npt.ArrayLike,
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    level: float = 0.95,
) -> AucComparison:
    """The difference of two AUCs on the same rows, paired and clustered by user, and its Student's t interval.

    Args:
        users: [rows], any hashable ids.
        labels: [rows], 0 or 1.
        scores_a: [rows], finite; its scale need not be that of scores_b.
        scores_b: [rows], finite.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: on labels, shapes or scores that break the above.
    """
    users, labels, stacked = _checked(users, labels, np.stack([np.asarray(scores_a), np.asarray(scores_b)]))
    sizes = _sizes(users, labels)
    if not _both(labels):
        return AucComparison(None, None, None, None, None, None, *sizes)
    auc_a, auc_b = (float(auc) for auc in _aucs(labels, stacked))
    rarer = _rarer_users(users, labels)
    if rarer < 2:
        return AucComparison(auc_a, auc_b, auc_a - auc_b, None, None, None, *sizes)
    _, covariance = clustered_auc(users, labels, stacked)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = float(np.sqrt(max(variance, 0.0)))  # rounding can leave -1e-18 of two equal scorers
    half = float(stats.t.ppf((1 + level) / 2, rarer - 1)) * error
    difference = auc_a - auc_b
    lower, upper = max(difference - half, -1.0), min(difference + half, 1.0)
    return AucComparison(auc_a, auc_b, difference, error, lower, upper, *sizes)


def clustered_auc(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of several scorers on the same rows, and how they vary together over samples of users.

    With one row a user this is DeLong's covariance.

    Args:
        users: [rows], any hashable ids.
        labels: [rows], 0 or 1; at least two users have a positive and two a negative.
        scores: [scorers, rows], finite, any increasing scale; ties count half.

    Returns:
        AUCs [scorers], and their covariance [scorers, scorers].

    Raises:
        ValueError: on labels, shapes or scores that break the above.

    Source: Obuchowski, Biometrics 53, 1997, equations 3 to 5; DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988;
    structural components by midranks, in O(rows log rows) a scorer, as Sun and Xu, IEEE Signal Processing Letters 21,
    2014.
    """
    users, labels, scores = _checked(users, labels, scores)
    of_positives, of_negatives = _components(labels, scores)
    aucs = of_positives.mean(axis=1)
    names, user = np.unique(users, return_inverse=True)
    is_positive = labels == 1
    positive_sums, positive_users = _deviations(of_positives, aucs, user[is_positive], len(names))
    negative_sums, negative_users = _deviations(of_negatives, aucs, user[~is_positive], len(names))
    if min(positive_users, negative_users) < 2:
        raise ValueError(
            "a variance needs at least two users with a positive and two with a negative, "
            f"got {positive_users} and {negative_users}; take more rows or leave the slice out"
        )
    positives, negatives = of_positives.shape[1], of_negatives.shape[1]
    mixed = positive_sums @ negative_sums.T / (positives * negatives)
    covariance = (
        positive_users / (positive_users - 1) * (positive_sums @ positive_sums.T) / positives**2
        + negative_users / (negative_users - 1) * (negative_sums @ negative_sums.T) / negatives**2
        + len(names) / (len(names) - 1) * (mixed + mixed.T)
    )
    return aucs, _positive(covariance)


def _deviations(components: np.ndarray, aucs: np.ndarray, user: np.ndarray, users: int) -> tuple[np.ndarray, int]:
    """Each user's sum of (component - AUC), [scorers, users], and how many users have such rows."""
    sums = [np.bincount(user, row - auc, minlength=users) for row, auc in zip(components, aucs, strict=True)]
    return np.stack(sums), len(np.unique(user))


def _components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive the fraction of negatives below it, of each negative the fraction of positives above it."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    positives, negatives = positive.shape[1], negative.shape[1]
    ranks = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    of_positives = (ranks[:, :positives] - stats.rankdata(positive, axis=1)) / negatives
    of_negatives = 1 - (ranks[:, positives:] - stats.rankdata(negative, axis=1)) / positives
    return of_positives, of_negatives


def _aucs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return _components(labels, scores)[0].mean(axis=1)


def _positive(covariance: np.ndarray) -> np.ndarray:
    """Raises negative variances to 0: the three terms have corrections of their own, so that a sum can fall below."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values.min() >= 0:
        return covariance
    return (vectors * np.maximum(values, 0)) @ vectors.T


def _auc_interval(auc: float, error: float, rarer: int, level: float) -> tuple[float, float]:
    outside = (1 - level) / 2
    if auc == 1.0:
        return outside ** (1 / rarer), 1.0
    if auc == 0.0:
        return 0.0, 1 - outside ** (1 / rarer)
    half = float(stats.t.ppf(1 - outside, rarer - 1)) * error / (auc * (1 - auc))
    centre = float(special.logit(auc))
    return float(special.expit(centre - half)), float(special.expit(centre + half))


def _rarer_users(users: np.ndarray, labels: np.ndarray) -> int:
    """Users with a positive or users with a negative, whichever are fewer."""
    return min(len(np.unique(users[labels == 1])), len(np.unique(users[labels == 0])))


def _both(labels: np.ndarray) -> bool:
    return 0 < labels.sum() < len(labels)


def _sizes(users: np.ndarray, labels: np.ndarray) -> tuple[int, int, int]:
    return len(labels), int(labels.sum()), len(np.unique(users))


def _checked(
    users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, labels, scores = np.asarray(users), np.asarray(labels), np.asarray(scores, np.float64)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be of shape [rows] and hold 0 and 1 only, got shape {labels.shape}")
    if users.shape != labels.shape:
        raise ValueError(f"users must hold one id a label, got shape {users.shape} for {len(labels)} labels")
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise ValueError(
            f"scores must be of shape [scorers, rows] with one column a label, got {scores.shape} "
            f"for {len(labels)} labels; stack one row of scores a scorer"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite, got {(~np.isfinite(scores)).sum()} that are not; drop the scorer")
    return users, labels.astype(np.int64), scores

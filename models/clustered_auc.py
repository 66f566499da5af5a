"""Exact AUC of one or two scorers on the same rows, with standard errors and 95% intervals clustered by user.

Rows of one user are not independent, so a standard error over rows is wrong. Here the sampling unit is the user. The
same functions serve a model, its baseline, popularity, and the comparison of two models.
"""

from collections.abc import Sequence
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
    the exact binomial bound, where the number of trials is the number of users with the rarer label.

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
    parts = user_parts(users, labels, stacked)
    return AucComparison(float(parts.aucs[0]), float(parts.aucs[1]), *compare_parts(parts, level), *sizes)


class Difference(NamedTuple):
    """The AUC of a first scorer minus that of a second one.

    Attributes:
        difference: in [-1, 1].
        standard_error: paired and clustered by user; None if fewer than two users have a positive or fewer than two a
            negative.
        lower: of the difference's interval, in [-1, 1]; None as standard_error.
        upper: as lower.
    """

    difference: float
    standard_error: float | None
    lower: float | None
    upper: float | None


class UserParts(NamedTuple):
    """AUCs of several scorers on the same rows, and what each user adds to their variation over samples of users.

    Attributes:
        users: [users], distinct and sorted.
        aucs: float [scorers].
        of_positives: float [scorers, users], the sum over a user's positives of (fraction of negatives below it - AUC),
            divided by the number of positives.
        of_negatives: likewise over a user's negatives, with the fraction of positives above it.
        has_positive: bool [users].
        has_negative: bool [users].
    """

    users: npt.NDArray
    aucs: npt.NDArray
    of_positives: npt.NDArray
    of_negatives: npt.NDArray
    has_positive: npt.NDArray
    has_negative: npt.NDArray

    @property
    def rarer(self) -> int:
        """Users with a positive or users with a negative, whichever are fewer."""
        return int(min(self.has_positive.sum(), self.has_negative.sum()))

    def of_scorers(self, *scorers: int) -> "UserParts":
        """The parts of some scorers, in this order."""
        chosen = list(scorers)
        return self._replace(
            aucs=self.aucs[chosen], of_positives=self.of_positives[chosen], of_negatives=self.of_negatives[chosen]
        )


def user_parts(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> UserParts:
    """The parts of each user, from which to compute variances of AUCs, of their differences and of weighted means.

    Args:
        users: [rows], any hashable ids.
        labels: [rows], 0 or 1, both present.
        scores: [scorers, rows], finite, any increasing scale; ties count half.

    Raises:
        ValueError: on labels, shapes or scores that break the above.

    Source: as clustered_auc.
    """
    users, labels, scores = _checked(users, labels, scores)
    if not _both(labels):
        raise ValueError("an AUC needs rows of both labels, got one; take more rows or leave the slice out")
    of_positives, of_negatives = _components(labels, scores)
    aucs = of_positives.mean(axis=1)
    names, user = np.unique(users, return_inverse=True)
    is_positive = labels == 1
    return UserParts(
        users=names,
        aucs=aucs,
        of_positives=_deviations(of_positives, aucs, user[is_positive], len(names)) / of_positives.shape[1],
        of_negatives=_deviations(of_negatives, aucs, user[~is_positive], len(names)) / of_negatives.shape[1],
        has_positive=np.bincount(user[is_positive], minlength=len(names)) > 0,
        has_negative=np.bincount(user[~is_positive], minlength=len(names)) > 0,
    )


def mean_parts(parts: Sequence[UserParts], weights: Sequence[float]) -> UserParts:
    """The parts of the weighted means of AUCs on several sets of rows, in which the same users may occur.

    The sampling unit is the user, so a user's parts of all sets are summed. AUCs of sets with users in common are not
    independent: their standard errors alone do not give that of the mean.

    Args:
        parts: of each set, of the same scorers.
        weights: of each set, positive; only their ratios count.
    """
    fractions = np.asarray(weights, np.float64) / np.sum(weights)
    users = np.unique(np.concatenate([part.users for part in parts]))
    sums = {name: np.zeros((len(parts[0].aucs), len(users))) for name in ("of_positives", "of_negatives")}
    has = {name: np.zeros(len(users), bool) for name in ("has_positive", "has_negative")}
    for part, weight in zip(parts, fractions, strict=True):
        at = np.searchsorted(users, part.users)
        for name, total in sums.items():
            total[:, at] += weight * getattr(part, name)
        for name, seen in has.items():
            seen[at] |= getattr(part, name)
    aucs = sum(weight * part.aucs for part, weight in zip(parts, fractions, strict=True))
    return UserParts(users=users, aucs=np.asarray(aucs), **sums, **has)


def compare_parts(parts: UserParts, level: float = 0.95) -> Difference:
    """The AUC of the first scorer minus that of the second, and its Student's t interval."""
    difference = float(parts.aucs[0] - parts.aucs[1])
    if parts.rarer < 2:
        return Difference(difference, None, None, None)
    covariance = _covariance(parts)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = float(np.sqrt(max(variance, 0.0)))  # rounding can give -1e-18 for two equal scorers
    half = float(stats.t.ppf((1 + level) / 2, parts.rarer - 1)) * error
    return Difference(difference, error, max(difference - half, -1.0), min(difference + half, 1.0))


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
    parts = user_parts(users, labels, scores)
    if parts.rarer < 2:
        raise ValueError(
            "a variance needs at least two users with a positive and two with a negative, "
            f"got {parts.has_positive.sum()} and {parts.has_negative.sum()}; take more rows or leave the slice out"
        )
    return parts.aucs, _covariance(parts)


def _covariance(parts: UserParts) -> np.ndarray:
    users = len(parts.users)
    positive_users, negative_users = parts.has_positive.sum(), parts.has_negative.sum()
    mixed = parts.of_positives @ parts.of_negatives.T
    return _positive(
        positive_users / (positive_users - 1) * (parts.of_positives @ parts.of_positives.T)
        + negative_users / (negative_users - 1) * (parts.of_negatives @ parts.of_negatives.T)
        + users / (users - 1) * (mixed + mixed.T)
    )


def _deviations(components: np.ndarray, aucs: np.ndarray, user: np.ndarray, users: int) -> np.ndarray:
    """Each user's sum of (component - AUC), [scorers, users]."""
    return np.stack([np.bincount(user, row - auc, minlength=users) for row, auc in zip(components, aucs, strict=True)])


def _components(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the fraction of negatives below it, for each negative the fraction of positives above it."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    positives, negatives = positive.shape[1], negative.shape[1]
    ranks = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    of_positives = (ranks[:, :positives] - stats.rankdata(positive, axis=1)) / negatives
    of_negatives = 1 - (ranks[:, positives:] - stats.rankdata(negative, axis=1)) / positives
    return of_positives, of_negatives


def _aucs(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return _components(labels, scores)[0].mean(axis=1)


def _positive(covariance: np.ndarray) -> np.ndarray:
    """Raises negative variances to 0: each of the three terms has its own correction, so their sum can fall below."""
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

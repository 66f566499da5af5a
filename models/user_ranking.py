"""How well scores order the rows of each single user: AUC, NDCG and hit rate on the sampled candidates.

The rows of a user are its candidates: the positives and the negatives that were sampled for it. A tie counts as the
expectation over its random orders, so a constant score gets what chance gets.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

TOP = 10
"""The k of NDCG@k and of the hit rate at k."""


class UserRanking(NamedTuple):
    """Measures by user, float64 [users], in the order of np.unique; NaN where a user cannot be measured.

    Attributes:
        auc: fraction of the user's (positive, negative) pairs in the right order, ties counting half; NaN without
            both labels.
        ndcg: normalized discounted cumulative gain of the best TOP rows, gain 1 for a positive; NaN without both
            labels.
        hit: probability that a positive is among the best TOP rows; NaN without both labels and for a user with no
            more than TOP rows, who always hits.
    """

    auc: npt.NDArray[np.float64]
    ndcg: npt.NDArray[np.float64]
    hit: npt.NDArray[np.float64]


def rank_by_user(users: npt.ArrayLike, labels: npt.ArrayLike, scores: npt.ArrayLike) -> UserRanking:
    """Measures how well the scores order the rows of each user.

    Args:
        users: [rows], any sortable ids.
        labels: [rows], 0 or 1.
        scores: [rows], finite, any increasing scale.

    Source: ties in NDCG as in McSherry and Najork, ECIR 2008, and in scikit-learn's ndcg_score.
    """
    names, user = np.unique(np.asarray(users), return_inverse=True)
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    order = np.lexsort((-scores, user))
    user, labels, scores = user[order], labels[order], scores[order]

    starts_tie = np.ones(len(user), bool)
    starts_tie[1:] = (user[1:] != user[:-1]) | (scores[1:] != scores[:-1])
    first = np.flatnonzero(starts_tie)  # row at which each tie begins, best ties of a user first
    owner = user[first]
    size = np.diff(np.append(first, len(user)))
    positives = np.add.reduceat(labels, first) if len(first) else np.zeros(0)

    rows = np.bincount(user, minlength=len(names))
    all_positives = np.bincount(user, labels, minlength=len(names))
    all_negatives = rows - all_positives
    rank = first - np.concatenate([[0], np.cumsum(rows)[:-1]])[owner]  # 0-based rank of each tie's first row

    def total(of_ties: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(np.bincount(owner, of_ties, minlength=len(names)), np.float64)

    def where(measurable: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(measurable, values, np.nan)

    both = (all_positives > 0) & (all_negatives > 0)
    negatives = size - positives
    negatives_above = np.cumsum(negatives) - negatives
    negatives_above -= np.concatenate([[0.0], np.cumsum(all_negatives)[:-1]])[owner]
    below = all_negatives[owner] - negatives_above - negatives
    auc = total(positives * (below + negatives / 2)) / np.maximum(all_positives * all_negatives, 1)

    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(TOP) + 2))])
    within = discounts[np.minimum(rank + size, TOP)] - discounts[np.minimum(rank, TOP)]
    best = discounts[np.minimum(all_positives, TOP).astype(int)]
    ndcg = total(positives * within / size) / np.maximum(best, discounts[1])

    drawn = np.clip(TOP - rank, 0, size)  # rows of the tie that stand among the best TOP
    hit = 1 - np.exp(np.maximum(total(_log_chance_of_none(size, positives, drawn)), -1e3))
    return UserRanking(where(both, auc), where(both, ndcg), where(both & (rows > TOP), hit))


def _log_chance_of_none(size: np.ndarray, positives: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Log of C(size - positives, drawn) / C(size, drawn): none of `drawn` rows of a tie is a positive."""
    negatives = size - positives
    impossible = drawn > negatives
    left = np.where(impossible, 0, negatives - drawn)
    log = gammaln(negatives + 1) - gammaln(left + 1) - gammaln(size + 1) + gammaln(size - drawn + 1)
    return np.where(impossible, -1e3, log)

"""Means over users or rows, with standard errors and 95% intervals clustered by user."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats


class MeanEstimate(NamedTuple):
    """A mean and its Student's t interval.

    Attributes:
        mean: None without users.
        standard_error: None with fewer than two users.
        lower: of the interval; None as standard_error.
        upper: as lower.
        users: distinct ones.
    """

    mean: float | None
    standard_error: float | None
    lower: float | None
    upper: float | None
    users: int


def mean_by_user(
    sums: npt.NDArray[np.floating], weights: npt.NDArray[np.floating], level: float = 0.95
) -> MeanEstimate:
    """The ratio sum(sums) / sum(weights), with the user as the sampling unit.

    With weights of 1 it is the mean over users; with each user's number of rows it is the mean over rows.

    Args:
        sums: [users], each user's weighted sum of what is averaged.
        weights: [users], at least 0, not all 0.
        level: of confidence, in (0, 1).

    Source: the linearized variance of a ratio, Cochran, Sampling Techniques, 1977, section 6.3.
    """
    users = len(sums)
    if not users:
        return MeanEstimate(None, None, None, None, 0)
    mean = float(sums.sum() / weights.sum())
    if users < 2:
        return MeanEstimate(mean, None, None, None, users)
    residuals = sums - mean * weights
    error = float(np.sqrt(users / (users - 1) * (residuals**2).sum()) / weights.sum())
    half = float(stats.t.ppf((1 + level) / 2, users - 1)) * error
    return MeanEstimate(mean, error, mean - half, mean + half, users)

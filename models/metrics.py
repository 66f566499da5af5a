"""The metrics that a model is evaluated by: one name each, with an interval by user and a paired change."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sllmr.models.clustered_auc import compare_auc, estimate_auc
from sllmr.models.clustered_mean import MeanEstimate, mean_by_user
from sllmr.models.metric_names import MeanMetric, MetricName
from sllmr.models.probability_error import calibration_gaps, log_losses, weights_for
from sllmr.models.user_ranking import rank_by_user

_USER_MEASURES = {"per_user_auc": "auc", "ndcg_at_10": "ndcg", "hit_rate_at_10": "hit"}


class Estimate(NamedTuple):
    """A metric with its 95% interval by user; None where the rows cannot show it.

    Attributes:
        value: None if the metric is not measurable.
        lower, upper: None if too few users can be measured.
        users: those that the metric is measured on.
    """

    value: float | None
    lower: float | None
    upper: float | None
    users: int


class Change(NamedTuple):
    """A scorer's metric minus another's on the same rows, paired by user; None as in Estimate."""

    difference: float | None
    lower: float | None
    upper: float | None


class Rows:
    """Rows with the scores of several scorers, by which every metric is measured in the same way.

    Args:
        users: [rows], any sortable ids.
        labels: [rows], 0 or 1.
        scores: by scorer, [rows] each, finite; logits for log_loss and calibration_error.
        positive_rate: the rate of positives, in (0, 1), to which log_loss and calibration_error weight the rows; None
            leaves the rows unweighted.
    """

    def __init__(
        self,
        users: npt.ArrayLike,
        labels: npt.ArrayLike,
        scores: dict[str, npt.NDArray],
        positive_rate: float | None = None,
    ):
        self.users, self.labels = np.asarray(users), np.asarray(labels)
        self._scores = {name: np.asarray(values, np.float64) for name, values in scores.items()}
        self._rankings = {name: rank_by_user(self.users, self.labels, s) for name, s in self._scores.items()}
        self._user = np.unique(self.users, return_inverse=True)[1]
        self._both = 0 < self.labels.sum() < len(self.labels)
        self._weights = weights_for(self.labels, positive_rate) if self._both else np.ones(len(self.labels))

    def estimate(self, metric: MetricName, scorer: str) -> Estimate:
        """The metric of one scorer."""
        if metric == "auc":
            found = estimate_auc(self.users, self.labels, self._scores[scorer])
            return Estimate(found.auc, found.lower, found.upper, found.users if self._both else 0)
        mean = self.mean(metric, scorer)
        lower, upper = _within(mean, highest=None if metric == "log_loss" else 1.0)
        return Estimate(mean.mean, lower, upper, mean.users)

    def compare(self, metric: MetricName, scorer: str, other: str) -> Change:
        """The metric of `scorer` minus that of `other`."""
        if metric == "auc":
            found = compare_auc(self.users, self.labels, self._scores[scorer], self._scores[other])
            return Change(found.difference, found.lower, found.upper)
        mean = self.mean_difference(metric, scorer, other)
        return Change(mean.mean, mean.lower, mean.upper)

    def mean(self, metric: MeanMetric, scorer: str) -> MeanEstimate:
        """A metric that is a mean over users or rows, with its standard error clustered by user."""
        return mean_by_user(*self._terms(metric, scorer))

    def mean_difference(self, metric: MeanMetric, scorer: str, other: str) -> MeanEstimate:
        """`mean` of `scorer` minus that of `other`, paired by user."""
        sums, weights = self._terms(metric, scorer)
        return mean_by_user(sums - self._terms(metric, other)[0], weights)

    def _terms(self, metric: MetricName, scorer: str) -> tuple[npt.NDArray, npt.NDArray]:
        """Sum and weight of each user that the metric is measured on."""
        if not self._both:  # scores of rows of one label alone show nothing
            return np.zeros(0), np.zeros(0)
        if metric in _USER_MEASURES:
            values = getattr(self._rankings[scorer], _USER_MEASURES[metric])
            values = values[~np.isnan(values)]
            return values, np.ones(len(values))
        scores = self._scores[scorer]
        if metric == "log_loss":
            values = log_losses(self.labels, scores)
        else:
            values = calibration_gaps(self.labels, scores, self._weights)
        return np.bincount(self._user, self._weights * values), np.bincount(self._user, self._weights)


def _within(mean: MeanEstimate, highest: float | None) -> tuple[float | None, float | None]:
    """The interval cut to what the metric can be.

    Users who all reach 1 (or 0) show no spread: the interval then ends at the exact binomial bound.
    """
    if mean.mean is None or mean.lower is None or mean.upper is None:
        return None, None
    if highest == 1.0 and mean.standard_error == 0.0 and mean.mean in (0.0, 1.0):
        bound = 0.025 ** (1 / mean.users)
        return (bound, 1.0) if mean.mean == 1.0 else (0.0, 1 - bound)
    return max(mean.lower, 0.0), mean.upper if highest is None else min(mean.upper, highest)

"""Whether a model's scores may be called probabilities."""

from collections.abc import Mapping

from sllmr.components.evaluator.decision import Measured
from sllmr.models.metric_names import MetricName

_LARGEST_FRACTION = 0.2
"""Scores count as probabilities if the interval of their calibration error ends within this fraction of the rate."""


def scores_are(positive_rate: float | None, overall: Mapping[MetricName, Measured]) -> str:
    """Says in one sentence whether the scores are probabilities.

    They are if a positive rate is set, and the interval of the calibration error at this rate is low enough.

    Args:
        positive_rate: evaluation.positive_rate.
        overall: SliceMetrics.metrics of the overall slice.
    """
    if positive_rate is None:
        return (
            "The scores order candidates; they are not probabilities, since the negatives are sampled: set "
            "evaluation.positive_rate to measure them as such"
        )
    error = overall.get("calibration_error", Measured())
    at = f"at evaluation.positive_rate {positive_rate:g}"
    if error.value is None or error.upper is None:
        return f"The scores order candidates; whether they are probabilities {at} is not measurable"
    found = f"calibration error {error.value:.4f}, 95% interval up to {error.upper:.4f}"
    limit = _LARGEST_FRACTION * positive_rate
    if error.upper <= limit:
        return f"The scores are probabilities {at}: {found}"
    return (
        f"The scores order candidates; they are not probabilities {at}: {found}, where at most {limit:.4f} "
        f"({_LARGEST_FRACTION:.0%} of the rate) would do"
    )

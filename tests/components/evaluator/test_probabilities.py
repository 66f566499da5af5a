"""When the scores of a model may be called probabilities."""

import pytest

from sllmr.components.evaluator.decision import Measured
from sllmr.components.evaluator.probabilities import scores_are


@pytest.mark.parametrize(
    ("rate", "error", "said"),
    [
        (None, Measured(value=0.001, upper=0.002), "not probabilities, since the negatives are sampled"),
        (0.1, None, "whether they are probabilities at evaluation.positive_rate 0.1 is not measurable"),
        (0.1, Measured(value=0.01, upper=None), "is not measurable"),
        (0.1, Measured(value=0.01, upper=0.02), "The scores are probabilities at evaluation.positive_rate 0.1"),
        (0.1, Measured(value=0.01, upper=0.03), "not probabilities at evaluation.positive_rate 0.1: calibration error"),
    ],
    ids=["no rate", "no error", "no interval", "at the limit", "above the limit"],
)
def test_scores_are_probabilities_only_at_a_known_rate_with_a_small_error(rate, error, said):
    assert said in scores_are(rate, {} if error is None else {"calibration_error": error})

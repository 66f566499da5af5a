"""How far the probabilities of logits are from the labels, and the logit shift between two rates of positives."""

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from sllmr.models.errors import UserError

BINS = 10
"""Bins of equal weight in the calibration error."""


def log_losses(labels: npt.NDArray, logits: npt.NDArray) -> npt.NDArray[np.float64]:
    """-log of the probability that the logit gives to the label, float64 [rows], exact for any finite logit."""
    return np.logaddexp(0.0, np.where(labels == 1, -logits, logits))


def calibration_gaps(labels: npt.NDArray, logits: npt.NDArray, weights: npt.NDArray) -> npt.NDArray[np.float64]:
    """Gap of each row, float64 [rows], whose weighted mean is the expected calibration error.

    Rows are put into BINS bins of equal weight by probability; rows of equal probability share a bin. The error is the
    mean over the bins of |mean probability - fraction of positives|; a row's gap is its own difference with the sign
    of its bin. On few rows the error is too high: that of a perfectly calibrated score is above 0 by chance.

    Args:
        labels: [rows], 0 or 1.
        logits: [rows], finite.
        weights: [rows], above 0.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; bins of equal weight as Nixon et al., CVPR Workshops 2019.
    """
    probabilities = expit(logits)
    values, place = np.unique(probabilities, return_inverse=True)
    of_values = np.bincount(place, weights, minlength=len(values))
    middle = (np.cumsum(of_values) - of_values / 2) / of_values.sum()
    bins = np.minimum((middle * BINS).astype(int), BINS - 1)[place]
    differences = probabilities - labels
    sums = np.bincount(bins, weights * differences, minlength=BINS)
    return differences * np.sign(sums)[bins]


def weights_for(labels: npt.NDArray, positive_rate: float | None) -> npt.NDArray[np.float64]:
    """Weights, float64 [rows], with which the rows have this rate of positives; 1 each for None.

    With sampled negatives, the rate of positives in the rows is a choice; the real one is evaluation.positive_rate.
    """
    if positive_rate is None:
        return np.ones(len(labels))
    positives = labels.mean()
    return np.where(labels == 1, positive_rate / positives, (1 - positive_rate) / (1 - positives))


def logit_shift(rate_in_rows: float, positive_rate: float) -> float:
    """The constant to add to logits trained at one rate of positives, so that they hold at another.

    A model that gives P(y | x) at the rate r gives it at the rate p after adding log(p / (1 - p)) - log(r / (1 - r)):
    the odds of the classes change by that factor, and nothing else does. The order of logits stays.

    Args:
        rate_in_rows: r, the fraction of positives among the train rows, whose negatives are sampled.
        positive_rate: p, in (0, 1), see evaluation.positive_rate.

    Raises:
        UserError: the train rows hold one label only.

    Source: King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001, eq. 7; Elkan, IJCAI 2001,
    theorem 2.
    """
    if not 0 < rate_in_rows < 1:
        raise UserError(
            f"the train rows must hold positives and negatives, got a fraction of positives of {rate_in_rows:g}; change"
            " data.negatives or data.split"
        )
    return float(logit(positive_rate) - logit(rate_in_rows))

"""A share of trials with its interval. No TensorFlow: the scorer's workers import this."""

import math

from pydantic import BaseModel, ConfigDict

Z_95 = 1.959963984540054
"""Of the standard normal distribution 95% lie within so many standard deviations."""


class Share(BaseModel):
    """A share with its 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float
    lower: float
    upper: float


def wilson(successes: int, trials: int) -> Share:
    """A share with the interval (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); `trials` at least 1.

    It takes trials as independent. Pairs of one context are not, so for them it is somewhat too narrow.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    share, square = successes / trials, Z_95**2
    centre = share + square / (2 * trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    scale = 1 + square / trials
    return Share(share=share, lower=(centre - half) / scale, upper=(centre + half) / scale)

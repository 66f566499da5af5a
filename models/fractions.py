"""A fraction of trials with its interval. No TensorFlow: the scorer's workers import this."""

from pydantic import BaseModel, ConfigDict

Z_95 = 1.959963984540054
"""95% of a standard normal distribution lies within this many standard deviations of its mean."""


class Fraction(BaseModel):
    """A fraction with its 95% interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float
    lower: float
    upper: float


def wilson(successes: int, trials: int) -> Fraction:
    """A fraction with SciPy's Wilson score interval, without continuity correction; `trials` at least 1.

    The interval assumes independent trials. Pairs of one context are not, so for them it is somewhat too narrow.

    Source: Wilson 1927, Journal of the American Statistical Association 22.
    """
    import scipy.stats  # takes over a second

    found = scipy.stats.binomtest(successes, trials)
    interval = found.proportion_ci(method="wilson")
    return Fraction(fraction=float(found.statistic), lower=float(interval.low), upper=float(interval.high))

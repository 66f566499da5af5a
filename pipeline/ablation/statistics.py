"""What the ablation's tables claim: AUC differences on shared test rows, their intervals over seeds, late fusion."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.linear_model import LogisticRegression


class Interval(NamedTuple):
    """A mean difference and the interval around it."""

    mean: float
    lower: float
    upper: float
    seeds: int

    @property
    def verdict(self) -> Literal["gain", "loss", "not told apart"]:
        """Which side of zero the whole interval lies on."""
        if self.lower > 0:
            return "gain"
        return "loss" if self.upper < 0 else "not told apart"


class FusionCoefficients(NamedTuple):
    """P(label 1) = sigmoid(a * model logit + b * LLM score + c)."""

    a: float
    b: float
    c: float


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over seeds, and s / sqrt(n) with s over n - 1; None for a single seed, which shows no spread."""
    if not values:
        raise ValueError("a mean needs at least one value, got none; leave the cell out")
    if len(values) == 1:
        return float(values[0]), None
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


def paired_interval(differences: Sequence[float], standard_errors: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of an arm's mean AUC difference over seeds, each against `none` of the same seed and rows.

    Two things vary. Training varies from seed to seed: s / sqrt(n), Student's t with n - 1 degrees of freedom. The
    test users are a finite sample that all seeds use, so that more seeds do not average it away: the standard error
    over users, normal. The half-width joins the two in quadrature,

        sqrt((t s / sqrt(n))^2 + (z * mean standard error over users)^2).

    The mean of these standard errors is the most that the standard error of the mean difference over samples of users
    can be, and s holds a part of the same noise, so that the interval errs on the wide side. With one seed only the
    users' part is left: it says nothing about another seed.

    Args:
        differences: AUC of the arm minus AUC of `none`, one a seed.
        standard_errors: over samples of users (models.clustered_auc), one for each difference.
        level: of confidence, in (0, 1).

    Raises:
        ValueError: unless there is one standard error, not negative, for each of at least one difference.

    Source: Howe, JASA 69, 1974 (limits on the mean of X + Y); Zou and Donner, Statistics in Medicine 27, 2008.
    """
    if len(differences) != len(standard_errors):
        raise ValueError(
            "each difference needs its standard error, "
            f"got {len(differences)} differences and {len(standard_errors)} standard errors"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}; 0.95 is usual")
    if any(error < 0 for error in standard_errors):
        raise ValueError(f"standard errors must be at least 0, got {list(standard_errors)}")
    mean, seed_error = mean_and_standard_error(differences)
    tail = (1 + level) / 2
    half = stats.norm.ppf(tail) * float(np.mean(standard_errors))
    if seed_error is not None:
        half = math.hypot(half, stats.t.ppf(tail, len(differences) - 1) * seed_error)
    return Interval(mean, mean - half, mean + half, len(differences))


def logistic_fusion(
    labels: npt.ArrayLike, model_logits: npt.ArrayLike, llm_scores: npt.ArrayLike
) -> FusionCoefficients:
    """Late fusion's weights by maximum likelihood, without penalty; fit them on validation rows only.

    Args:
        labels: [rows], 0 or 1, both present.
        model_logits: [rows], finite.
        llm_scores: [rows], finite; a row that the LLM scorer did not score has none, so leave it out.

    Raises:
        ValueError: on labels, shapes or scores that break the above, or where the maximum lies at infinity because
            a line through (logit, LLM score) separates the labels without error.
    """
    labels = _labels(labels)
    logits, llm = np.asarray(model_logits, np.float64), np.asarray(llm_scores, np.float64)
    if not labels.shape == logits.shape == llm.shape:
        raise ValueError(
            "model_logits and llm_scores must hold one value a label, "
            f"got shapes {logits.shape} and {llm.shape} for {labels.shape}"
        )
    inputs = np.stack([logits, llm], axis=-1)
    if not np.isfinite(inputs).all():
        raise ValueError(
            f"model_logits and llm_scores must be finite, got {(~np.isfinite(inputs)).any(axis=1).sum()} rows "
            "that are not; leave out the rows that the LLM scorer did not score"
        )
    if len(set(labels.tolist())) < 2:
        raise ValueError("labels must hold both 0 and 1; take more validation rows")
    ranges = np.ptp(inputs, axis=0)
    if (ranges == 0).any():
        raise ValueError(
            f"model_logits and llm_scores must each vary, got ranges {ranges.tolist()}; "
            "leave late fusion out: a constant score adds nothing"
        )
    # An LLM scorer's cosines span a tenth of a logit's range: the solver converges evenly on a common scale.
    centre, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scaled = (inputs - centre) / scale
    fit = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(scaled, labels)
    if ((fit.decision_function(scaled) > 0) == (labels == 1)).all():
        raise ValueError(
            f"the {len(labels)} rows are parted without error, so that no finite weights are the most likely; "
            "take more validation rows"
        )
    a, b = fit.coef_[0] / scale
    return FusionCoefficients(float(a), float(b), float(fit.intercept_[0] - a * centre[0] - b * centre[1]))


def _labels(labels: npt.ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be of shape [rows] and hold 0 and 1 only, got shape {labels.shape}")
    return labels.astype(np.int64)

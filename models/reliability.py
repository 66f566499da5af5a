"""Where the LLM and the model are right on calibration pairs, how far the gate opens there, and the alarm."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.fractions import Z_95, Fraction, wilson

HISTORY_FROM = (0, 4, 10)
POPULARITY_FROM = (0, 5, 20)
"""Lower ends of the cells, inclusive: earlier positives of the user, and train positives of the pair's rarer item."""

CLOSED, OPEN = 0.05, 0.95
_LEAST_CALIBRATION_PAIRS = 30
_LEAST_ALPHA_GAP = 0.05
_LEAST_ALPHA_RATIO = 1.5


class GateCollapse(UserError):
    """The gate has collapsed and gate.on_collapse is fail."""


class ReliabilityCell(BaseModel):
    """The pairs of one cell of history length x popularity.

    Attributes:
        history_from: least number of the user's earlier positives; the most is one below the next cell's least.
        popularity_from: least number of train positives of the pair's rarer item.
        pairs: number of pairs.
        mean_alpha: over these pairs; None if there are none.
        calibration_pairs: number of labeled pairs behind the numbers below; with a base model only held-out pairs.
        llm_right: their fraction in which the LLM prefers the target item; None without calibration pairs.
        model_right: their fraction in which the base model scores the target item higher; None without calibration
            pairs, or without a base model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_from: int
    popularity_from: int
    pairs: int
    mean_alpha: float | None
    calibration_pairs: int
    llm_right: Fraction | None
    model_right: Fraction | None


def reliability_cells(
    alpha: np.ndarray, pairs: Mapping[str, npt.ArrayLike], calibration_pairs: np.ndarray
) -> list[ReliabilityCell]:
    """Every cell of history length x popularity, shortest history first.

    Args:
        alpha: float32 [pairs].
        pairs: of inputs.load_pairs, the LLM's order; with the base model's logits if there is one.
        calibration_pairs: bool [pairs], labeled pairs to measure on.
    """
    history = np.asarray(pairs[features.HISTORY_LENGTH])
    popularity = np.minimum(*(np.asarray(pairs[prefix + features.ITEM_TRAIN_COUNT]) for prefix in (PREFERRED, OTHER)))
    llm_right = np.asarray(pairs[features.CALIBRATION_LABEL]) == 1
    model_right = model_is_right(pairs)
    row, column = (np.digitize(v, edges[1:]) for v, edges in ((history, HISTORY_FROM), (popularity, POPULARITY_FROM)))
    cells = []
    for r, history_from in enumerate(HISTORY_FROM):
        for c, popularity_from in enumerate(POPULARITY_FROM):
            inside = (row == r) & (column == c)
            measured = inside & calibration_pairs
            count = int(measured.sum())
            cells.append(
                ReliabilityCell(
                    history_from=history_from,
                    popularity_from=popularity_from,
                    pairs=int(inside.sum()),
                    mean_alpha=float(alpha[inside].mean()) if inside.any() else None,
                    calibration_pairs=count,
                    llm_right=wilson(int(llm_right[measured].sum()), count) if count else None,
                    model_right=wilson(int(model_right[measured].sum()), count)
                    if count and model_right is not None
                    else None,
                )
            )
    return cells


def model_is_right(pairs: Mapping[str, npt.ArrayLike]) -> np.ndarray | None:
    """bool [pairs]: whether the base model scores the target item of a calibration pair higher; None without a base
    model. If it scores both equally, it counts as preferring the item that the LLM does not."""
    if PREFERRED + features.BASE_LOGIT not in pairs:
        return None
    preferred, other = (np.asarray(pairs[prefix + features.BASE_LOGIT]) for prefix in (PREFERRED, OTHER))
    return (preferred > other) == (np.asarray(pairs[features.CALIBRATION_LABEL]) == 1)


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: |mean probability - fraction right| of bins of equal width, averaged by their size.

    Args:
        probability: float [calibration pairs] in [0, 1].
        right: bool [calibration pairs].
        bins: number of bins.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs(probability[index == b].sum() - right[index == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(probability))


def labeled(pairs: Mapping[str, npt.ArrayLike]) -> np.ndarray:
    """bool [pairs]: whether the right order of a pair is known."""
    return np.asarray(pairs[features.CALIBRATION_LABEL]) != NOT_CALIBRATION


def collapse(alpha: np.ndarray, cells: list[ReliabilityCell]) -> str | None:
    """What is wrong with the gate, in one word; None if it is sound.

    `closed`: alpha is below .05 on 95% of the pairs, although the LLM's advantage is significantly above 0, or there
    are too few calibration pairs to tell.
    `open`: alpha is above .95 on 95% of the pairs, although the LLM is wrong on significantly more than 5% of the
    calibration pairs, or there are too few calibration pairs to tell.
    `inverted`: among cells with at least 30 calibration pairs, the LLM's advantage is significantly smaller in the cell
    of the highest alpha than in the cell of the lowest, and the two alphas differ by at least .05; if the advantage in
    the cell of the lowest is significantly above 0, it is enough that the highest is at least 1.5 times the lowest.

    The advantage is P(LLM right) - P(model right), or P(LLM right) - 1/2 without a base model. So a gate may shut out
    an LLM that knows nothing beyond the model, for example only what is popular.
    """
    is_enough = sum(cell.calibration_pairs for cell in cells) >= _LEAST_CALIBRATION_PAIRS
    if np.quantile(alpha, 0.95) < CLOSED:
        return "closed" if not is_enough or _is_above(0.0, _advantage(cells)) else None
    if np.quantile(alpha, 0.05) > OPEN:
        right, variance = (
            _pooled([(cell.calibration_pairs, cell.llm_right) for cell in cells]) if is_enough else (0.0, 0.0)
        )
        return "open" if _is_above(1.0 - OPEN, (1.0 - right, variance)) else None
    known = [
        (cell.mean_alpha, cell)
        for cell in cells
        if cell.calibration_pairs >= _LEAST_CALIBRATION_PAIRS and cell.mean_alpha is not None
    ]
    if len(known) >= 2:
        (least, lowest), (most, highest) = (pick(known, key=lambda pair: pair[0]) for pick in (min, max))
        low, high = _advantage([lowest]), _advantage([highest])
        # If a gate is almost closed, its alphas differ little, but may still differ in the wrong direction.
        is_wide = most - least >= _LEAST_ALPHA_GAP or (most >= _LEAST_ALPHA_RATIO * least and _is_above(0.0, low))
        if is_wide and _is_above(high[0], (low[0], low[1] + high[1])):
            return "inverted"
    return None


def _advantage(cells: Sequence[ReliabilityCell]) -> tuple[float, float]:
    """The LLM's advantage in cells with calibration pairs, and its variance as if the fractions were independent."""
    llm, variance = _pooled([(cell.calibration_pairs, cell.llm_right) for cell in cells])
    if not any(cell.model_right for cell in cells):
        return llm - 0.5, variance
    model, model_variance = _pooled([(cell.calibration_pairs, cell.model_right) for cell in cells])
    return llm - model, variance + model_variance


def _pooled(measured: Sequence[tuple[int, Fraction | None]]) -> tuple[float, float]:
    """The fraction over the calibration pairs of several cells together, and its variance."""
    known = [(calibration_pairs, found.fraction) for calibration_pairs, found in measured if found is not None]
    total = sum(calibration_pairs for calibration_pairs, _ in known)
    pooled = sum(calibration_pairs * fraction for calibration_pairs, fraction in known) / total
    return pooled, pooled * (1.0 - pooled) / total


def _is_above(level: float, estimate: tuple[float, float]) -> bool:
    """Whether an estimate, a value with its variance, is significantly above a level."""
    value, variance = estimate
    return value - level > Z_95 * math.sqrt(variance)

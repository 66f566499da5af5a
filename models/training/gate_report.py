"""The report's figures on the gate, measured over the pairs after training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sllmr.models import features
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.gate import FittedGate, FrozenGate, PaperGate, StackedGate
from sllmr.models.ranking import RankingModel, pair_input, pair_side
from sllmr.models.reliability import calibration_error, collapse, reliability_cells
from sllmr.models.training.report import ContestedPair, GateCell

_PAIRS_AT_ONCE = 4096
_CONTESTED_PAIRS = 12
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def gate_report(
    model: RankingModel,
    gate: FrozenGate,
    pairs: Mapping[str, tf.Tensor],
    calibration_pairs: np.ndarray,
    item_ids: Sequence[str],
) -> dict[str, Any]:
    """TrainingReport's fields on the gate.

    Args:
        model: trained.
        gate: the gate that the model was trained with.
        pairs: in the LLM's order.
        calibration_pairs: bool [pairs], the labeled pairs to measure on.
        item_ids: see contested_pairs; if empty, the report has no contested pairs.
    """
    alpha, margin = pair_alpha(judge(model, gate), pairs)
    cells = reliability_cells(alpha, pairs, calibration_pairs)
    weights: dict[str, float] = {}
    if isinstance(gate, PaperGate):
        names = (*gate.config.signals, "bias")
        values = [*gate.w.numpy(), gate.b.numpy()]
        weights = {name: float(value) for name, value in zip(names, values, strict=True)}
    elif isinstance(gate, FittedGate):
        weights = gate.named_weights()
    return {
        "gate": gate_cells(alpha, pairs, short_history_max=gate.config.short_history_max),
        "gate_weights": weights,
        "alpha_quantiles": alpha_quantiles(alpha),
        "alpha_collapse": collapse(alpha, cells) if weights else None,
        "reliability": cells,
        "calibration_error": _calibration_error(gate, alpha, pairs, calibration_pairs),
        "contested_pairs": contested_pairs(alpha, margin, pairs, item_ids) if item_ids else [],
    }


def contested_pairs(
    alpha: np.ndarray, margin: np.ndarray, pairs: Mapping[str, tf.Tensor], item_ids: Sequence[str]
) -> list[ContestedPair]:
    """The pairs of the largest alpha * max(0, -margin), at most one per history, largest first.

    Args:
        alpha: float32 [pairs].
        margin: float32 [pairs], the model's logit of the preferred item minus that of the other.
        pairs: in the LLM's order.
        item_ids: number n for index n + 1.
    """

    def names(indices: Iterable[int]) -> list[str]:
        # The last index stands for every item that the train split does not hold.
        return [item_ids[index - 1] for index in indices if 0 < index <= len(item_ids)]

    effect = alpha * np.maximum(0.0, -margin)
    found: dict[bytes, ContestedPair] = {}
    for n in np.argsort(-effect, kind="stable"):
        if effect[n] <= 0 or len(found) == _CONTESTED_PAIRS:
            break
        indices = np.asarray(pairs[features.HISTORY_ITEM_INDICES][n])
        preferred, other = (names([int(pairs[p + features.ITEM_INDEX][n])]) for p in (PREFERRED, OTHER))
        if preferred and other and indices.tobytes() not in found:
            found[indices.tobytes()] = ContestedPair(
                history_item_ids=names(indices),
                preferred_item_id=preferred[0],
                other_item_id=other[0],
                model_margin=float(margin[n]),
                alpha=float(alpha[n]),
                calibration_label=int(pairs[features.CALIBRATION_LABEL][n]),
            )
    return list(found.values())


def _calibration_error(
    gate: FrozenGate, alpha: np.ndarray, pairs: Mapping[str, tf.Tensor], calibration_pairs: np.ndarray
) -> float | None:
    if not calibration_pairs.any():
        return None
    right = np.asarray(pairs[features.CALIBRATION_LABEL])[calibration_pairs] == 1
    if isinstance(gate, PaperGate):
        return calibration_error(alpha[calibration_pairs], right)
    if isinstance(gate, StackedGate) and gate.held_out_error is not None:
        return gate.held_out_error
    if isinstance(gate, StackedGate):
        held = {name: tf.boolean_mask(values, calibration_pairs) for name, values in pairs.items()}
        soft = [tf.sigmoid(gate.stacked_logit(side)).numpy() for side in pair_input(held)]
        return calibration_error(np.concatenate(soft), np.concatenate([right, ~right]))
    return None


def alpha_quantiles(alpha: np.ndarray) -> dict[str, float]:
    """Quantiles of alpha, float32 [pairs], by fraction; empty without pairs."""
    return {f"{fraction:g}": float(np.quantile(alpha, fraction)) for fraction in _QUANTILES} if len(alpha) else {}


def gate_cells(alpha: np.ndarray, pairs: Mapping[str, tf.Tensor], *, short_history_max: int) -> list[GateCell]:
    """Mean alpha and the LLM's accuracy on calibration pairs: over all pairs, then by short history x tail."""
    is_short = np.asarray(pairs[features.HISTORY_LENGTH]) <= short_history_max
    is_tail = np.asarray(pairs[PREFERRED + features.IS_TAIL]) + np.asarray(pairs[OTHER + features.IS_TAIL]) > 0
    calibration_label = np.asarray(pairs[features.CALIBRATION_LABEL])

    def cell(short_history: bool | None, tail: bool | None) -> GateCell:
        inside = np.ones(len(alpha), bool)
        if short_history is not None:
            inside &= is_short == short_history
        if tail is not None:
            inside &= is_tail == tail
        calibration_pairs = calibration_label[inside & (calibration_label != NOT_CALIBRATION)]
        return GateCell(
            short_history=short_history,
            tail=tail,
            pairs=int(inside.sum()),
            mean_alpha=float(alpha[inside].mean()) if inside.any() else None,
            calibration_pairs=len(calibration_pairs),
            llm_accuracy=float(calibration_pairs.mean()) if len(calibration_pairs) else None,
        )

    return [cell(None, None)] + [cell(short, tail) for short in (True, False) for tail in (True, False)]


Judge = Callable[[Mapping[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]
"""A batch of pairs -> alpha and the margin of its logits, float32 [batch] each."""


def judge(model: RankingModel, gate: FrozenGate) -> Judge:
    """The gate without dropout, as a graph that is traced once for all batches.

    The logits are the base model's if the pairs hold them, else the model's.
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def alpha_and_margin(batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        has_logits = PREFERRED + features.BASE_LOGIT in batch
        logits = None if has_logits else [model(pair_side(batch, prefix)) for prefix in (PREFERRED, OTHER)]
        preferred, other = pair_input(batch, logits)
        return gate.alpha(preferred, other), preferred[features.LOGIT] - other[features.LOGIT]

    return alpha_and_margin


def pair_alpha(judged: Judge, pairs: Mapping[str, tf.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """alpha of each pair and the margin of its logits, float32 [pairs] each."""
    batches = tf.data.Dataset.from_tensor_slices(dict(pairs)).batch(_PAIRS_AT_ONCE)
    parts = [[part.numpy() for part in judged(batch)] for batch in batches]
    alphas, margins = zip(*parts, strict=True)
    return np.concatenate(alphas), np.concatenate(margins)

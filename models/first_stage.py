"""The first stage: a ranking model that has not seen some labelled probes, so that it can be judged on them.

A model looks surer and better on rows that it was trained on than it is. So the modes of the gate that weigh the LLM
against the model are fitted on contexts whose rows are left out of a first training. The model that is served is then
trained on all rows.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from models import features
from models.features import NOT_A_PROBE, OTHER, PREFERRED
from models.gate import FusedGate
from models.ranking import RankingModel, pair_input, pair_side, scorer
from models.reliability import labelled

Columns = Mapping[str, tf.Tensor]
_PAIRS_AT_ONCE = 4096
_MULTIPLIERS_SEED = 20251221


def context_fractions(histories: np.ndarray, salt: bytes = b"") -> np.ndarray:
    """One number in [0, 1) for each history, int [rows, L], that depends on its items and the salt: for shares by
    context."""
    digests = (hashlib.sha256(salt + row.astype(np.int32).tobytes()).digest() for row in np.asarray(histories))
    return np.array([int.from_bytes(digest[:7]) / 2**56 for digest in digests])


def held_out(pairs: Columns, share: float) -> np.ndarray:
    """bool [pairs]: the labelled pairs of a share of the contexts.

    Raises:
        ValueError: there is none.
    """
    # With a salt: of a small share of the contexts, chosen without one, as small a share would be all.
    fractions = context_fractions(pairs[features.HISTORY_ITEM_INDICES], salt=b"held out")
    chosen = labelled(pairs) & (fractions < share)
    if not chosen.any():
        raise ValueError(
            f"gate.mode advantage and fused need labelled probes, got none among {share:.0%} of the contexts; raise "
            "llm.candidates.probe_fraction, llm.budget.pairs or gate.held_out_share"
        )
    return chosen


def without_contexts(rows: tf.data.Dataset, histories: np.ndarray) -> tf.data.Dataset:
    """The batches of `rows` without those that have one of these histories, int [contexts, L], whoever the user is."""
    keys = tf.constant(np.unique(_keys(tf.constant(histories)).numpy()))

    def drop(batch: Columns) -> dict[str, tf.Tensor]:
        row_keys = _keys(batch[features.HISTORY_ITEM_INDICES])
        nearest = tf.gather(keys, tf.minimum(tf.searchsorted(keys, row_keys), tf.size(keys) - 1))
        return {name: tf.boolean_mask(values, nearest != row_keys) for name, values in batch.items()}

    # A batch without rows has no mean loss.
    return rows.map(drop).filter(lambda batch: tf.size(batch[features.LABEL]) > 0)


def _keys(histories: tf.Tensor) -> tf.Tensor:
    """int64 [rows], all but surely another one for another history."""
    source = np.random.default_rng(_MULTIPLIERS_SEED)
    multipliers = tf.constant(source.integers(1, 2**62, histories.shape[1]) * 2 + 1)
    return tf.reduce_sum(tf.cast(histories, tf.int64) * multipliers, axis=1)  # wraps around


def without_own_choice(pairs: Columns) -> dict[str, tf.Tensor]:
    """The pairs with the popularity of each probe's chosen item as it would be without that choice.

    ITEM_TRAIN_COUNT of the train rows counts the probe's own positive, and IS_TAIL follows from it: by these an item
    that was chosen is less often rare than the next choice will be. IS_TAIL becomes 1 as well where the count without
    the choice is below that of some long-tail item.
    """
    counts = [np.asarray(pairs[prefix + features.ITEM_TRAIN_COUNT]) for prefix in (PREFERRED, OTHER)]
    tails = [np.asarray(pairs[prefix + features.IS_TAIL]) for prefix in (PREFERRED, OTHER)]
    most = max(
        (int(count[tail == 1].max()) for count, tail in zip(counts, tails, strict=True) if tail.any()), default=0
    )
    result = dict(pairs)
    for prefix, label, count, tail in zip((PREFERRED, OTHER), (1, 0), counts, tails, strict=True):
        left = np.where(np.asarray(pairs[features.PROBE_LABEL]) == label, np.maximum(count - 1, 0), count)
        is_rare = (left < count) & (left < most)
        result[prefix + features.ITEM_TRAIN_COUNT] = tf.constant(left, tf.int32)
        result[prefix + features.IS_TAIL] = tf.constant(np.where(is_rare, 1, tail), tf.int32)
    return result


def with_first_stage(pairs: Columns, model: RankingModel, *, dropout_passes: int | None) -> dict[str, tf.Tensor]:
    """The pairs with the model's logit of each item and, with dropout_passes, the variance of its probability."""
    score = scorer(model)

    def scores(side: Columns, training: bool) -> np.ndarray:
        batches = tf.data.Dataset.from_tensor_slices(side).batch(_PAIRS_AT_ONCE)
        return np.concatenate([score(batch, training=training).numpy() for batch in batches])

    result = dict(pairs)
    for prefix in (PREFERRED, OTHER):
        side = pair_side(pairs, prefix)
        result[prefix + features.FIRST_STAGE_LOGIT] = tf.constant(scores(side, training=False))
        if dropout_passes is not None:
            passes = [tf.sigmoid(scores(side, training=True)) for _ in range(dropout_passes)]
            result[prefix + features.DROPOUT_VARIANCE] = tf.constant(
                np.var(passes, axis=0, dtype=np.float64), tf.float32
            )
    return result


def fused(pairs: Columns, gate: FusedGate) -> dict[str, tf.Tensor]:
    """The pairs as the fused judgement has it: SOFT_LABEL is the fused probability, `preferred` the likelier item."""
    soft = [tf.sigmoid(gate.fused_logit(side)) for side in pair_input(pairs)]
    scored = {**pairs, PREFERRED + features.SOFT_LABEL: soft[0], OTHER + features.SOFT_LABEL: soft[1]}
    return turned_round(scored, soft[1] > soft[0])


def turned_round(pairs: Columns, flip: tf.Tensor) -> dict[str, tf.Tensor]:
    """The pairs with `preferred` and `other` exchanged, and the label with them, where flip, bool [pairs]."""
    label = tf.cast(pairs[features.PROBE_LABEL], tf.int32)
    result = {**pairs, features.PROBE_LABEL: tf.where(flip & (label != NOT_A_PROBE), 1 - label, label)}
    for name in [name.removeprefix(PREFERRED) for name in pairs if name.startswith(PREFERRED)]:
        first, second = pairs[PREFERRED + name], pairs[OTHER + name]
        swap = tf.reshape(flip, [-1] + [1] * (len(first.shape) - 1))
        result[PREFERRED + name] = tf.where(swap, second, first)
        result[OTHER + name] = tf.where(swap, first, second)
    return result

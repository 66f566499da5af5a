"""The base model: trained without LLM pairs and without the held-out users.

A model scores rows that it was trained on better, and with more certainty, than new rows. So the gates that compare
the LLM with a model are fitted on calibration pairs of held-out users: the base model sees none of their rows, since a
later row of the same user has the target item in its history. The model that is served is trained on all rows.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.gate import StackedGate
from sllmr.models.ranking import RankingModel, pair_input, pair_side, scorer
from sllmr.models.reliability import labeled

Columns = Mapping[str, tf.Tensor]
_PAIRS_AT_ONCE = 4096
_LEAST_HELD_OUT_USERS = 30


def context_fractions(histories: np.ndarray) -> np.ndarray:
    """Hashes each history, int [rows, L], to a number in [0, 1), float64 [rows], to pick a fraction of contexts."""
    return _fractions(np.asarray(histories))


def _fractions(rows: np.ndarray, salt: bytes = b"") -> np.ndarray:
    digests = (hashlib.sha256(salt + row.astype(np.int32).tobytes()).digest() for row in rows)
    return np.array([int.from_bytes(digest[:7]) / 2**56 for digest in digests])


def held_out(pairs: Columns, fraction: float) -> np.ndarray:
    """bool [pairs]: the labeled pairs of a fraction of the users who have any, but of at least 30 users if possible.

    Raises:
        UserError: no pair is labeled.
    """
    is_labeled = labeled(pairs)
    if not is_labeled.any():
        raise UserError(
            f"gate.mode advantage and stacked need calibration pairs, got none among {len(is_labeled)} pairs; raise "
            "llm.candidates.calibration_fraction or llm.budget.pairs"
        )
    hashes = np.asarray(pairs[features.USER_HASH])
    users = np.unique(hashes[is_labeled])
    by_user = _fractions(users[:, np.newaxis], salt=b"held out")
    # Fewer users would show nothing, and holding out so few costs few train rows.
    least = np.sort(by_user)[:_LEAST_HELD_OUT_USERS][-1]
    return is_labeled & np.isin(hashes, users[(by_user < fraction) | (by_user <= least)])


def without_users(rows: tf.data.Dataset, users: np.ndarray) -> tf.data.Dataset:
    """The batches of `rows` without the rows of these users, int [any]; drops batches that this leaves empty."""
    keys = tf.constant(np.unique(users).astype(np.int32))

    def drop(batch: Columns) -> dict[str, tf.Tensor]:
        user = tf.cast(batch[features.USER_HASH], tf.int32)
        nearest = tf.gather(keys, tf.minimum(tf.searchsorted(keys, user), tf.size(keys) - 1))
        return {name: tf.boolean_mask(values, nearest != user) for name, values in batch.items()}

    # A batch without rows has no mean loss.
    return rows.map(drop).filter(lambda batch: tf.size(batch[features.LABEL]) > 0)


def without_own_choice(pairs: Columns) -> dict[str, tf.Tensor]:
    """The pairs with the popularity of each calibration pair's target item as it would be without that interaction.

    ITEM_TRAIN_COUNT counts the calibration pair's own positive, and IS_TAIL follows from the count. Uncorrected, these
    target items look rare less often than the target items of later rows are. The function lowers their count by 1, and
    sets their IS_TAIL to 1 if that count is below the count of some long-tail item.
    """
    counts = [np.asarray(pairs[prefix + features.ITEM_TRAIN_COUNT]) for prefix in (PREFERRED, OTHER)]
    tails = [np.asarray(pairs[prefix + features.IS_TAIL]) for prefix in (PREFERRED, OTHER)]
    most = max(
        (int(count[tail == 1].max()) for count, tail in zip(counts, tails, strict=True) if tail.any()), default=0
    )
    result = dict(pairs)
    for prefix, label, count, tail in zip((PREFERRED, OTHER), (1, 0), counts, tails, strict=True):
        left = np.where(np.asarray(pairs[features.CALIBRATION_LABEL]) == label, np.maximum(count - 1, 0), count)
        is_rare = (left < count) & (left < most)
        result[prefix + features.ITEM_TRAIN_COUNT] = tf.constant(left, tf.int32)
        result[prefix + features.IS_TAIL] = tf.constant(np.where(is_rare, 1, tail), tf.int32)
    return result


def with_base_model(pairs: Columns, model: RankingModel, *, dropout_samples: int | None) -> dict[str, tf.Tensor]:
    """The pairs with the model's BASE_LOGIT per item and, with dropout_samples, DROPOUT_VARIANCE; float32 [pairs]."""
    score = scorer(model)

    def scores(side: Columns, training: bool) -> np.ndarray:
        starts = range(0, len(pairs[features.CALIBRATION_LABEL]), _PAIRS_AT_ONCE)
        batches = ({name: values[n : n + _PAIRS_AT_ONCE] for name, values in side.items()} for n in starts)
        return np.concatenate([score(batch, training=training).numpy() for batch in batches])

    result = dict(pairs)
    for prefix in (PREFERRED, OTHER):
        side = pair_side(pairs, prefix)
        result[prefix + features.BASE_LOGIT] = tf.constant(scores(side, training=False))
        if dropout_samples is not None:
            samples = [tf.sigmoid(scores(side, training=True)) for _ in range(dropout_samples)]
            result[prefix + features.DROPOUT_VARIANCE] = tf.constant(
                np.var(samples, axis=0, dtype=np.float64), tf.float32
            )
    return result


def stacked(pairs: Columns, gate: StackedGate) -> dict[str, tf.Tensor]:
    """The pairs in the order of the stacked target; adds its probability as SOFT_LABEL, float32 [pairs] per item."""
    soft = [tf.sigmoid(gate.stacked_logit(side)) for side in pair_input(pairs)]
    scored = {**pairs, PREFERRED + features.SOFT_LABEL: soft[0], OTHER + features.SOFT_LABEL: soft[1]}
    return turned_round(scored, soft[1] > soft[0])


def turned_round(pairs: Columns, flip: tf.Tensor) -> dict[str, tf.Tensor]:
    """Exchanges the two items of some pairs, and the calibration label with them.

    Args:
        pairs: columns by name, those of an item with the prefix PREFERRED or OTHER.
        flip: bool [pairs], the pairs to exchange; the others stay as they are.
    """
    label = tf.cast(pairs[features.CALIBRATION_LABEL], tf.int32)
    result = {**pairs, features.CALIBRATION_LABEL: tf.where(flip & (label != NOT_CALIBRATION), 1 - label, label)}
    for name in [name.removeprefix(PREFERRED) for name in pairs if name.startswith(PREFERRED)]:
        first, second = pairs[PREFERRED + name], pairs[OTHER + name]
        swap = tf.reshape(flip, [-1] + [1] * (len(first.shape) - 1))
        result[PREFERRED + name] = tf.where(swap, second, first)
        result[OTHER + name] = tf.where(swap, first, second)
    return result

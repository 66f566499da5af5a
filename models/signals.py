"""What the gate looks at: each signal is one function from a side of a pair to [0, 1]."""

import math
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

if TYPE_CHECKING:
    from models.config import GateConfig


class PairSide(NamedTuple):
    """One of the two items of each pair, with the user.

    Attributes:
        history_length: int [pairs], the user's earlier positives.
        is_tail: int [pairs], 1 where the item is a long-tail item.
        item_train_count: int [pairs], the item's positives among the train rows.
        logit: float32 [pairs], the ranking model's.
    """

    history_length: tf.Tensor
    is_tail: tf.Tensor
    item_train_count: tf.Tensor
    logit: tf.Tensor


def short_history(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """Cold(u) = 1[len(H(u)) <= cold_max_history]; float32 [pairs]."""
    return tf.cast(side.history_length <= config.cold_max_history, tf.float32)


def long_tail(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """Tail(i) as the data's own rule says; float32 [pairs]."""
    return tf.cast(side.is_tail, tf.float32)


def confidence(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """q = 2 (1 - max(p, 1 - p)): 1 at p = 1/2, 0 where the model is certain; float32 [pairs].

    No gradient passes: through q the gate would train the ranking model towards overconfidence.
    """
    p = tf.sigmoid(tf.stop_gradient(side.logit))
    return 2.0 * tf.minimum(p, 1.0 - p)


def entropy(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """q = -(p ln p + (1 - p) ln(1 - p)) / ln 2; float32 [pairs]. No gradient passes, as in `confidence`."""
    logit = tf.stop_gradient(side.logit)
    p = tf.sigmoid(logit)
    nats = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=logit)
    return tf.clip_by_value(nats / math.log(2.0), 0.0, 1.0)


SIGNALS = {
    "short_history": short_history,
    "long_tail": long_tail,
    "confidence": confidence,
    "entropy": entropy,
}
"""By name in GateConfig.signals."""

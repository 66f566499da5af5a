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
        text_words: int [pairs], words that a prompt can tell of the item.
        llm_score: float32 [pairs] in [0, 1].
        llm_gap: float32 [pairs] in [0, 1], distance of the two items' scores.
        llm_disagreement: float32 [pairs] in [0, 1], distance of the LLM's two answers; 0 where it was asked once.
        logit: float32 [pairs], the ranking model's; in the modes that are fitted beforehand the first stage's.
        dropout_variance: float32 [pairs], variance of p = sigmoid(logit) over dropout passes of the first stage; None
            unless the gate looks at it.
        soft_label: float32 [pairs] in (0, 1), the fused probability; None but in mode fused.
    """

    history_length: tf.Tensor
    is_tail: tf.Tensor
    item_train_count: tf.Tensor
    text_words: tf.Tensor
    llm_score: tf.Tensor
    llm_gap: tf.Tensor
    llm_disagreement: tf.Tensor
    logit: tf.Tensor
    dropout_variance: tf.Tensor | None = None
    soft_label: tf.Tensor | None = None


def short_history(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """Cold(u) = 1[len(H(u)) <= cold_max_history]; float32 [pairs]."""
    return tf.cast(side.history_length <= config.cold_max_history, tf.float32)


def long_tail(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """Tail(i) as the data's own rule says; float32 [pairs]."""
    return tf.cast(side.is_tail, tf.float32)


def history_brevity(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """1 / (1 + ln(1 + len(H(u)))): smooth, 1 without a history; float32 [pairs]."""
    return 1.0 / (1.0 + tf.math.log1p(tf.cast(side.history_length, tf.float32)))


def rarity(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """1 / (1 + ln(1 + pop(i))): smooth, 1 for an item without a train positive; float32 [pairs]."""
    return 1.0 / (1.0 + tf.math.log1p(tf.cast(side.item_train_count, tf.float32)))


def text_richness(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """1 - exp(-words / 16): near 0 where a prompt can tell next to nothing of the item; float32 [pairs]."""
    return 1.0 - tf.exp(-tf.cast(side.text_words, tf.float32) / 16.0)


def llm_gap(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """|y_i - y_j|: how decided the LLM is; float32 [pairs]."""
    return tf.clip_by_value(side.llm_gap, 0.0, 1.0)


def llm_consistency(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """1 - |y - y'| for the LLM's two answers on an item, candidates told in either order (llm.audit); 1 where it was
    asked once; float32 [pairs]."""
    return 1.0 - tf.clip_by_value(side.llm_disagreement, 0.0, 1.0)


def dropout_variance(side: PairSide, config: "GateConfig") -> tf.Tensor:
    """4 Var[p] over dropout passes of the first stage, in [0, 1]; float32 [pairs].

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", arXiv 1506.02142.

    Raises:
        ValueError: the gate's mode has no first stage.
    """
    if side.dropout_variance is None:
        raise ValueError(
            "the signal dropout_variance needs a gate that is fitted on a first stage, got gate.mode "
            f"{config.mode}; set gate.mode to advantage or fused, or take the signal out of gate.signals"
        )
    return tf.clip_by_value(4.0 * side.dropout_variance, 0.0, 1.0)


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
    "dropout_variance": dropout_variance,
    "history_brevity": history_brevity,
    "rarity": rarity,
    "text_richness": text_richness,
    "llm_gap": llm_gap,
    "llm_consistency": llm_consistency,
}
"""By name in GateConfig.signals."""

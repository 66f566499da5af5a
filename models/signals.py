"""The signals that the gate reads: each is a function from one side of a pair to [0, 1]."""

import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from sllmr.models import features
from sllmr.models.config import GateConfig, SignalName

PairSide = Mapping[str, tf.Tensor]
"""One of the two items of each pair, with the user: columns by feature name, as ranking.pair_input makes them.

    HISTORY_LENGTH: int [pairs], the user's earlier positives.
    IS_TAIL: int [pairs], 1 if the item is a long-tail item.
    ITEM_TRAIN_COUNT: int [pairs], the item's positives among the train rows.
    TEXT_WORDS: int [pairs], words with which a prompt can describe the item.
    LLM_SCORE: float32 [pairs] in [0, 1].
    LLM_DISAGREEMENT: float32 [pairs] in [0, 1], distance of the LLM's two scores (llm.audit); 0 with one score.
    LLM_GAP: float32 [pairs] in [0, 1], distance of the two items' scores.
    LOGIT: float32 [pairs], the ranking model's; in the modes that are fitted beforehand the base model's.
    DROPOUT_VARIANCE: float32 [pairs], variance of p = sigmoid(logit) over MC-dropout samples of the base model; absent
        unless gate.signals names it.
    SOFT_LABEL: float32 [pairs] in (0, 1), the stacked probability; absent except in mode stacked.
"""


def short_history(side: PairSide, config: GateConfig) -> tf.Tensor:
    """Cold(u) = 1[len(H(u)) <= short_history_max]; float32 [pairs]."""
    return tf.cast(side[features.HISTORY_LENGTH] <= config.short_history_max, tf.float32)


def long_tail(side: PairSide, config: GateConfig) -> tf.Tensor:
    """Tail(i) = 1 for a long-tail item as data.tail defines it, else 0; float32 [pairs]."""
    return tf.cast(side[features.IS_TAIL], tf.float32)


def history_brevity(side: PairSide, config: GateConfig) -> tf.Tensor:
    """1 / (1 + ln(1 + len(H(u)))): smooth, 1 without a history; float32 [pairs]."""
    return 1.0 / (1.0 + tf.math.log1p(tf.cast(side[features.HISTORY_LENGTH], tf.float32)))


def rarity(side: PairSide, config: GateConfig) -> tf.Tensor:
    """1 / (1 + ln(1 + pop(i))): smooth, 1 for an item without a train positive; float32 [pairs]."""
    return 1.0 / (1.0 + tf.math.log1p(tf.cast(side[features.ITEM_TRAIN_COUNT], tf.float32)))


def text_richness(side: PairSide, config: GateConfig) -> tf.Tensor:
    """1 - exp(-words / 16): near 0 if a prompt has almost no words to describe the item; float32 [pairs]."""
    return 1.0 - tf.exp(-tf.cast(side[features.TEXT_WORDS], tf.float32) / 16.0)


def llm_gap(side: PairSide, config: GateConfig) -> tf.Tensor:
    """|y_i - y_j|: how clearly the LLM prefers one item; float32 [pairs]."""
    return tf.clip_by_value(side[features.LLM_GAP], 0.0, 1.0)


def llm_consistency(side: PairSide, config: GateConfig) -> tf.Tensor:
    """1 - |y - y'| for the LLM's two scores of an item, one for each order of the candidates (llm.audit); 1 if the LLM
    scored the item only once; float32 [pairs].
    """
    return 1.0 - tf.clip_by_value(side[features.LLM_DISAGREEMENT], 0.0, 1.0)


def dropout_variance(side: PairSide, config: GateConfig) -> tf.Tensor:
    """4 Var[p] over MC-dropout samples of the base model, in [0, 1]; float32 [pairs].

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", arXiv 1506.02142.

    Raises:
        ValueError: the gate's mode has no base model.
    """
    if features.DROPOUT_VARIANCE not in side:
        raise ValueError(
            "the signal dropout_variance needs a gate that is fitted on a base model, got gate.mode "
            f"{config.mode}; set gate.mode to advantage or stacked, or take the signal out of gate.signals"
        )
    return tf.clip_by_value(4.0 * side[features.DROPOUT_VARIANCE], 0.0, 1.0)


def confidence(side: PairSide, config: GateConfig) -> tf.Tensor:
    """q = 2 (1 - max(p, 1 - p)): 1 at p = 1/2, 0 where the model is certain; float32 [pairs].

    Stops the gradient: through q the gate would train the ranking model towards overconfidence.
    """
    p = tf.sigmoid(tf.stop_gradient(side[features.LOGIT]))
    return 2.0 * tf.minimum(p, 1.0 - p)


def entropy(side: PairSide, config: GateConfig) -> tf.Tensor:
    """q = -(p ln p + (1 - p) ln(1 - p)) / ln 2; float32 [pairs]. Stops the gradient, as `confidence` does."""
    logit = tf.stop_gradient(side[features.LOGIT])
    p = tf.sigmoid(logit)
    nats = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=logit)
    return tf.clip_by_value(nats / math.log(2.0), 0.0, 1.0)


SIGNALS: dict[SignalName, Callable[[PairSide, GateConfig], tf.Tensor]] = {
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

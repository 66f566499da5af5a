"""The losses: rows against labels, pairs against the LLM's order.

Under a distribution strategy each function returns the replica's part of the whole batch's loss, see replicas.py.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from sllmr.models.replicas import batch_mean, replica_sum


def recommendation_loss(labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """L_rec: mean binary cross-entropy, or sum_i w_i l_i / sum_i w_i.

    Only the ratios of the weights count, so that lambda keeps its meaning however small they are.

    Args:
        labels: [batch], 0 or 1.
        logits: float32 [batch].
        weights: float32 [batch], 0 or more; a batch of zeros has the loss 0. None: all are 1.
    """
    labels = tf.cast(labels, logits.dtype)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    if weights is None:
        return batch_mean(losses)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * losses), replica_sum(tf.reduce_sum(weights)))


def gated_pairwise_hinge(
    preferred_logits: tf.Tensor, other_logits: tf.Tensor, alpha: tf.Tensor, margin: float
) -> tf.Tensor:
    """L_LLM: mean over pairs of alpha * max(0, margin - (s_preferred - s_other)).

    The paper writes a sum; the mean keeps lambda independent of the number of pairs in a batch.

    Args:
        preferred_logits: float32 [pairs], of the items that the LLM puts first.
        other_logits: float32 [pairs].
        alpha: float32 [pairs] in [0, 1].
        margin: in logits.

    Source: S-LLMR, arXiv 2512.21526v1, the gated pairwise loss.
    """
    hinge = tf.nn.relu(margin - (preferred_logits - other_logits))
    return batch_mean(alpha * hinge)


def pointwise_mse(logits: tf.Tensor, llm_scores: tf.Tensor) -> tf.Tensor:
    """Mean over items of (sigmoid(s) - y)^2.

    Args:
        logits: float32 [items].
        llm_scores: float32 [items] in [0, 1].

    Source: S-LLMR, arXiv 2512.21526v1, the ablation "pointwise".
    """
    return batch_mean(tf.square(tf.sigmoid(logits) - llm_scores))


def distillation(logits: tf.Tensor, soft_labels: tf.Tensor) -> tf.Tensor:
    """Mean over items of the cross-entropy -(y ln p + (1 - y) ln(1 - p)), p = sigmoid(s).

    Args:
        logits: float32 [items].
        soft_labels: float32 [items] in [0, 1], the teacher's probabilities.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at temperature 1.
    """
    return batch_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=soft_labels, logits=logits))


POINTWISE = {"pointwise": pointwise_mse, "distillation": distillation}
"""By LossConfig.form: losses of one item's logit against a target for it."""


class GatedPairwiseLoss(keras.layers.Layer):
    """`gated_pairwise_hinge` as a layer.

    Args:
        margin: in logits, above 0.

    Raises:
        ValueError: the margin is not above 0.
    """

    def __init__(self, margin: float, name: str = "gated_pairwise_loss", **kwargs: Any):
        super().__init__(name=name, **kwargs)  # `trainable` and `dtype`, which get_config writes
        if margin <= 0:
            raise ValueError(f"margin must be above 0, got {margin}; set LossConfig.margin")
        self.margin = margin

    def call(self, preferred_logits: tf.Tensor, other_logits: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
        """Returns the loss, a float32 scalar."""
        return gated_pairwise_hinge(preferred_logits, other_logits, alpha, self.margin)

    def get_config(self) -> dict:
        return {**super().get_config(), "margin": self.margin}

"""The gate: alpha in [0, 1] for each pair says how far the LLM's order is trusted.

alpha(u, i) = sigmoid(w . z(u, i) + b), z the signals of models/signals.py
alpha(u, i, j) = (alpha(u, i) + alpha(u, j)) / 2

The modes differ in which loss reaches w and b. In none of them does the gate train the ranking model through
z: the signals are detached. Source: S-LLMR, arXiv 2512.21526v1, the item gate and the pair gate.
"""

import tensorflow as tf
import tf_keras as keras

from models.config import GateConfig
from models.features import NOT_A_PROBE
from models.signals import SIGNALS, PairSide


class FrozenGate(keras.layers.Layer):
    """alpha = gate.frozen_alpha, for every pair; no parameters. 1 is global regularisation."""

    def __init__(self, config: GateConfig):
        super().__init__(name="gate")
        self.config = config

    def alpha(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        """alpha(u, i, j), float32 [pairs]."""
        return tf.fill(tf.shape(preferred.logit), self.config.frozen_alpha)

    def hinge_weight(self, alpha: tf.Tensor) -> tf.Tensor:
        """What the hinge is multiplied by."""
        return alpha

    def loss(self, alpha: tf.Tensor, probe_label: tf.Tensor) -> tf.Tensor:
        """The gate's own loss, a scalar."""
        return tf.constant(0.0)


class PaperGate(FrozenGate):
    """alpha learnt through the hinge, as the paper writes it.

    The hinge reaches w and b, and the ranking model. As dL / dalpha = lambda * hinge >= 0 and no other term
    holds alpha, it only ever falls: kept for fidelity.
    """

    def __init__(self, config: GateConfig):
        super().__init__(config)
        self.w = self.add_weight(name="w", shape=(len(config.signals),), initializer="zeros")
        self.b = self.add_weight(name="b", shape=(), initializer=keras.initializers.Constant(config.initial_bias))

    def side_alpha(self, side: PairSide) -> tf.Tensor:
        """alpha(u, i), float32 [pairs]."""
        z = tf.stack([SIGNALS[name](side, self.config) for name in self.config.signals], axis=-1)
        return tf.sigmoid(tf.linalg.matvec(z, self.w) + self.b)

    def alpha(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        return (self.side_alpha(preferred) + self.side_alpha(other)) / 2.0


class SupervisedGate(PaperGate):
    """alpha = probability that the LLM's order is right, fitted on labelled probes.

    Own loss: mean over probes of -(y ln alpha + (1 - y) ln(1 - alpha)), y = 1 where the user chose the item
    that the LLM prefers; a proper score, so its minimum is the measured reliability and not zero. It reaches
    w and b alone. The hinge sees alpha detached: it reaches the ranking model alone.
    """

    def hinge_weight(self, alpha: tf.Tensor) -> tf.Tensor:
        return tf.stop_gradient(alpha)

    def loss(self, alpha: tf.Tensor, probe_label: tf.Tensor) -> tf.Tensor:
        is_probe = tf.cast(tf.not_equal(probe_label, NOT_A_PROBE), tf.float32)
        agrees = tf.cast(probe_label, tf.float32)
        alpha = tf.clip_by_value(alpha, 1e-6, 1.0 - 1e-6)
        entropy = -(agrees * tf.math.log(alpha) + (1.0 - agrees) * tf.math.log1p(-alpha))
        return tf.math.divide_no_nan(tf.reduce_sum(is_probe * entropy), tf.reduce_sum(is_probe))


GATES = {"frozen": FrozenGate, "paper": PaperGate, "supervised": SupervisedGate}
"""By GateConfig.mode."""

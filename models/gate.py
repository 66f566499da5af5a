"""The gate: alpha in [0, 1] for each pair says how far the LLM's order is trusted.

alpha(u, i) = sigmoid(w . z(u, i) + b), z the signals of models/signals.py
alpha(u, i, j) = (alpha(u, i) + alpha(u, j)) / 2

The modes differ in which loss reaches w and b. In none of them does the gate train the ranking model through
z: the signals are detached. Source: S-LLMR, arXiv 2512.21526v1, the item gate and the pair gate.

Two modes, advantage and stacked, are fitted before the ranking model is trained, on calibration pairs that a base model
has not seen (models/base_model.py). After that they are constant. docs/gate.md says why.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sklearn.linear_model import LogisticRegression

from sllmr.models import features
from sllmr.models.config import GateConfig
from sllmr.models.features import NOT_CALIBRATION
from sllmr.models.replicas import replica_sum
from sllmr.models.signals import SIGNALS, PairSide
from sllmr.models.stacking import fit_calibrated_blend


class FrozenGate(keras.layers.Layer):
    """alpha = gate.frozen_alpha, for every pair; no parameters. 1 is global regularization."""

    def __init__(self, config: GateConfig):
        super().__init__(name="gate")
        self.config = config

    def alpha(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        """alpha(u, i, j), float32 [pairs]."""
        return tf.fill(tf.shape(preferred[features.LOGIT]), self.config.frozen_alpha)

    def hinge_weight(self, alpha: tf.Tensor, preferred: PairSide, other: PairSide) -> tf.Tensor:
        """The factor of the hinge, float32 [pairs] in [0, 1]."""
        return alpha

    def loss(self, alpha: tf.Tensor, calibration_label: tf.Tensor) -> tf.Tensor:
        """The gate's own loss, a scalar."""
        return tf.constant(0.0)


class PaperGate(FrozenGate):
    """alpha learned through the hinge, as the paper writes it.

    The hinge's gradient reaches w and b, and the ranking model. As dL / dalpha = lambda * hinge >= 0 and no other
    term contains alpha, training only pushes alpha down. The mode is here for fidelity to the paper.
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
    """alpha = probability that the LLM's order is right, fitted on calibration pairs.

    The gate's own loss: mean over calibration pairs of -(y ln alpha + (1 - y) ln(1 - alpha)), y = 1 if the LLM prefers
    the target item. This is a proper score, so at its minimum alpha is the measured reliability, not 0. Its gradient
    reaches only w and b. The hinge sees alpha detached, so the hinge's gradient reaches only the ranking model.
    """

    def hinge_weight(self, alpha: tf.Tensor, preferred: PairSide, other: PairSide) -> tf.Tensor:
        return tf.stop_gradient(alpha)

    def loss(self, alpha: tf.Tensor, calibration_label: tf.Tensor) -> tf.Tensor:
        is_calibration = tf.cast(tf.not_equal(calibration_label, NOT_CALIBRATION), tf.float32)
        agrees = tf.cast(calibration_label, tf.float32)
        alpha = tf.clip_by_value(alpha, 1e-6, 1.0 - 1e-6)
        entropy = -(agrees * tf.math.log(alpha) + (1.0 - agrees) * tf.math.log1p(-alpha))
        number = replica_sum(tf.reduce_sum(is_calibration))
        return tf.math.divide_no_nan(tf.reduce_sum(is_calibration * entropy), number)


class FittedGate(FrozenGate):
    """A gate that is fitted once, before training, and then constant: no loss trains it, and the hinge trains only the
    ranking model.

    The signals see the base model's logits, never those of the model that is trained. z holds 1, each signal and
    the product of any two. Without products, a gate for an LLM that is right if the history is short or the item is
    rare would open twice as far where both hold, and a little where neither does.
    """

    def __init__(self, config: GateConfig):
        super().__init__(config)
        products = ("*".join(pair) for pair in itertools.combinations(config.signals, 2))
        self._names = ("bias", *config.signals, *products)
        width = len(self._names)
        self.model_weights, self.llm_weights = (
            self.add_weight(name=name, shape=(width,), initializer="zeros", trainable=False)
            for name in ("model_weights", "llm_weights")
        )

    def fit(self, preferred: PairSide, other: PairSide, calibration_label: tf.Tensor, users: np.ndarray) -> None:
        """Fits and sets the weights.

        Args:
            preferred: of calibration pairs alone, with the logits of a model that was not trained on them.
            other: as `preferred`.
            calibration_label: int [pairs], 1 if the target item is `preferred`, 0 if it is `other`.
            users: int [pairs], equal for the pairs of one user.
        """
        raise NotImplementedError

    def copy(self) -> "FittedGate":
        """Another gate with the same weights, whose variables belong to the distribution strategy in scope."""
        made = type(self)(self.config)
        made.take_weights(self.named_weights())
        return made

    def named_weights(self) -> dict[str, float]:
        """All fitted numbers, as `part:name`: for most parts of the formula a bias and one per signal and product."""
        return {
            f"{part}:{name}": float(value)
            for part, (names, variable) in self._parts().items()
            for name, value in zip(names, variable.numpy(), strict=True)
        }

    def take_weights(self, weights: Mapping[str, float]) -> None:
        """Sets what `named_weights` of another gate of this mode gave.

        Raises:
            ValueError: names are missing, or there are others.
        """
        own = self.named_weights()
        if own.keys() != weights.keys():
            raise ValueError(
                f"a gate of mode {self.config.mode} with the signals {', '.join(self.config.signals)} has the weights "
                f"{', '.join(own)}, got {', '.join(weights)}; take those of a gate of the same mode and signals"
            )
        for part, (names, variable) in self._parts().items():
            variable.assign([weights[f"{part}:{name}"] for name in names])

    def _parts(self) -> dict[str, tuple[tuple[str, ...], tf.Variable]]:
        """By name of a part: the names of its elements, and the variable."""
        return {"model": (self._names, self.model_weights), "llm": (self._names, self.llm_weights)}

    def _signals(self, side: PairSide) -> tf.Tensor:
        """z(u, i), float32 [pairs, 1 + signals + products]."""
        z = [SIGNALS[name](side, self.config) for name in self.config.signals]
        products = [first * second for first, second in itertools.combinations(z, 2)]
        return tf.stack([tf.ones_like(z[0]), *z, *products], axis=-1)


class AdvantageGate(FittedGate):
    """alpha(u, i, j) = min(1, 4 max(0, P(LLM right | z) - P(model right | z))), z the mean of both items' signals.

    Both probabilities are logistic in z, fitted by maximum likelihood on the held-out calibration pairs, where the
    model is right if it scores the target item higher. alpha is 0 wherever the LLM is no better than the model.
    """

    def fit(self, preferred: PairSide, other: PairSide, calibration_label: tf.Tensor, users: np.ndarray) -> None:
        z = self._pair_signals(preferred, other).numpy()
        llm_right = np.asarray(calibration_label)
        model_right = (np.asarray(preferred[features.LOGIT] > other[features.LOGIT]) == (llm_right == 1)).astype(int)
        for weights, right in ((self.model_weights, model_right), (self.llm_weights, llm_right)):
            weights.assign(_logistic(z, right))

    def alpha(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        z = self._pair_signals(preferred, other)
        model, llm = (tf.sigmoid(tf.linalg.matvec(z, w)) for w in (self.model_weights, self.llm_weights))
        return tf.minimum(1.0, 4.0 * tf.nn.relu(llm - model))

    def _pair_signals(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        return (self._signals(preferred) + self._signals(other)) / 2.0


class StackedGate(FittedGate):
    """The base model and the LLM blended by feature-weighted linear stacking: P(u chooses i) = sigmoid(f),

    f(u, i) = a(z) s(u, i) + b(z) y(u, i) + c(z), a, b and c linear in z, a and b at least 0,

    s the base model's logit and y the LLM's score, each with mean 0 and standard deviation 1 over the held-out
    calibration pairs. f is fitted on these pairs by maximum likelihood within the bounds, with a penalty of half the
    squared norm of the weights, which draws a useless b to 0, and recalibrated across users (models/stacking.py).
    c(z) holds how often items of a kind are target items; without c(z), b(z) would have to. So the target items of
    calibration pairs must be drawn as those of the rows are (llm.candidates.tail_target_fraction 0). Signals outside
    the range of the calibration pairs could make a or b negative; the gate then takes 0.
    The pairs then follow f instead of the LLM (models.base_model.stacked): distillation learns sigmoid(f) of each item,
    the hinge the order by f, weighted by its certainty 2 sigmoid(f_preferred - f_other) - 1.

    alpha(u, i) = b(z) / (1 + a(z) + b(z)) is the LLM's fraction of the blend: 0 if the LLM has no weight, near 1 if it
    alone decides. The 1 in the denominator keeps alpha small where both weights are small and their ratio is noise.
    alpha describes the targets and does not weight them.

    Source: Sill et al., "Feature-Weighted Linear Stacking", arXiv 0911.0460.
    """

    def __init__(self, config: GateConfig):
        super().__init__(config)
        self.base_weights = self.add_weight(
            name="base_weights", shape=self.llm_weights.shape, initializer="zeros", trainable=False
        )
        self.centres, self.spreads = (
            self.add_weight(name=name, shape=(2,), initializer=start, trainable=False)
            for name, start in (("centres", "zeros"), ("spreads", "ones"))
        )
        self.held_out_error: float | None = None
        """Calibration error of the stacked target on users that took no part in its fit; None before a fit, for
        a single user, and with weights taken from another gate."""

    def fit(self, preferred: PairSide, other: PairSide, calibration_label: tf.Tensor, users: np.ndarray) -> None:
        sides = (preferred, other)
        signals = np.concatenate([self._single_signals(side) for side in sides])
        judged = np.concatenate([np.stack([side[features.LOGIT], side[features.LLM_SCORE]], axis=-1) for side in sides])
        label = np.asarray(calibration_label)
        self.centres.assign(judged.mean(axis=0))
        self.spreads.assign(np.maximum(judged.std(axis=0), 1e-6))
        s, y = ((judged - self.centres) / self.spreads).numpy().astype(np.float64).T
        blend = fit_calibrated_blend(
            signals, s, y, positive=np.concatenate([label, 1 - label]), users=np.concatenate([users, users])
        )
        self.model_weights.assign(blend.model)
        self.llm_weights.assign(blend.llm)
        self.base_weights.assign(blend.base)
        self.held_out_error = blend.calibration_error

    def _single_signals(self, side: PairSide) -> np.ndarray:
        """The signals alone, float64 [pairs, signals]."""
        return self._signals(side).numpy().astype(np.float64)[:, 1 : 1 + len(self.config.signals)]

    def _parts(self) -> dict[str, tuple[tuple[str, ...], tf.Variable]]:
        judges = ("model", "llm")
        return {
            **super()._parts(),
            "base": (self._names, self.base_weights),
            "centre": (judges, self.centres),
            "spread": (judges, self.spreads),
        }

    def hinge_weight(self, alpha: tf.Tensor, preferred: PairSide, other: PairSide) -> tf.Tensor:
        gap = logit(preferred[features.SOFT_LABEL]) - logit(other[features.SOFT_LABEL])
        return 2.0 * tf.sigmoid(gap) - 1.0

    def stacked_logit(self, side: PairSide) -> tf.Tensor:
        """f(u, i), float32 [pairs]."""
        a, b, c = self._coefficients(side)
        s, y = (
            (v - self.centres[n]) / self.spreads[n]
            for n, v in enumerate((side[features.LOGIT], side[features.LLM_SCORE]))
        )
        return a * s + b * y + c

    def alpha(self, preferred: PairSide, other: PairSide) -> tf.Tensor:
        return (self._side_alpha(preferred) + self._side_alpha(other)) / 2.0

    def _side_alpha(self, side: PairSide) -> tf.Tensor:
        a, b, _ = self._coefficients(side)
        return b / (1.0 + a + b)

    def _coefficients(self, side: PairSide) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """a, b and c, float32 [pairs] each."""
        z = self._signals(side)
        a, b, c = (tf.linalg.matvec(z, w) for w in (self.model_weights, self.llm_weights, self.base_weights))
        return tf.nn.relu(a), tf.nn.relu(b), c


def logit(probability: tf.Tensor) -> tf.Tensor:
    """ln(p / (1 - p)), p kept within [1e-6, 1 - 1e-6]."""
    p = tf.clip_by_value(probability, 1e-6, 1.0 - 1e-6)
    return tf.math.log(p) - tf.math.log1p(-p)


def _logistic(z: np.ndarray, right: np.ndarray) -> np.ndarray:
    """w of P(right) = sigmoid(w . z), where the first column of z is 1; a constant if only one class occurs."""
    if right.min() == right.max():
        certain = 6.0  # sigmoid(6) = .998
        return np.array([certain if right[0] else -certain] + [0.0] * (z.shape[1] - 1))
    fit = LogisticRegression(C=1.0, max_iter=1000).fit(z[:, 1:], right)
    return np.concatenate([fit.intercept_, fit.coef_[0]])


FITTED_GATES = {"advantage": AdvantageGate, "stacked": StackedGate}
"""By GateConfig.mode: the gates that are fitted before training."""

GATES = {"frozen": FrozenGate, "paper": PaperGate, "supervised": SupervisedGate, **FITTED_GATES}
"""By GateConfig.mode."""

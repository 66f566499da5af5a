"""The ranking model and its training step."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from sllmr.models import features
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, MixedPrecision, ModelConfig
from sllmr.models.embeddings import FeatureEmbedding
from sllmr.models.gate import GATES, FittedGate, FrozenGate
from sllmr.models.losses import POINTWISE, GatedPairwiseLoss, recommendation_loss
from sllmr.models.precision import layers_in
from sllmr.models.replicas import replica_sum
from sllmr.models.signals import PairSide

ROWS = "rows"
PAIRS = "pairs"
"""Keys of a training batch. PAIRS is absent if training uses no LLM."""


class RankingModel(tfrs.Model):
    """Scores (user, candidate) rows; trained by L_rec + lambda * L_LLM + the gate's loss + embedding L2.

    The gate and the pairwise loss exist only with `loss.llm_weight` above 0 and `loss.form` pairwise. `call` never uses
    them: the served model consists of `embedding` and `backbone`.

    Args:
        vocabulary: sizes of the embedding tables.
        model: backbone and widths.
        gate: mode and signals.
        loss: form, lambda and margin.
        item_vectors: float32 [items + 2, any] by item index; given if and only if model.item_vectors is set.
        fitted_gate: a gate that was fitted before training; None makes one from `gate`.
        item_dropout, new_items: see FeatureEmbedding.
        precision: in which the hidden layers of the backbone compute; variables, embeddings, logits, gate, and losses
            are float32. None: the hidden layers, too, compute in float32.
    """

    def __init__(
        self,
        vocabulary: features.VocabularySizes,
        model: ModelConfig,
        gate: GateConfig,
        loss: LossConfig,
        item_vectors: np.ndarray | None = None,
        fitted_gate: FittedGate | None = None,
        item_dropout: float = 0.0,
        new_items: np.ndarray | None = None,
        precision: MixedPrecision | None = None,
    ):
        keras.backend.reset_uids()  # names of layers must not depend on the models that the process made before
        super().__init__(name="ranking_model")
        backbone = BACKBONES[model.backbone]
        self.embedding = FeatureEmbedding(
            vocabulary,
            model,
            uses_history=backbone.uses_history,
            uses_first_order=backbone.uses_first_order,
            item_vectors=item_vectors,
            item_dropout=item_dropout,
            new_items=new_items,
        )
        with layers_in(precision):
            self.backbone = backbone(model)
        self.llm_weight = loss.llm_weight
        self._form = loss.form
        self.gate: FrozenGate | None = None
        sizes = features.FeatureSizes(declared=tuple(size.feature for size in vocabulary.declared))
        self._input_names = input_names(use_user_id=model.use_user_id, sizes=sizes)
        parts = ["loss", "rec_loss", "embedding_l2"]
        if self.llm_weight > 0:
            parts.append("llm_loss")
            if self._form == "pairwise":
                self.gate = GATES[gate.mode](gate) if fitted_gate is None else fitted_gate
                self.pairwise_loss = GatedPairwiseLoss(loss.margin)
                parts += ["gate_loss", "alpha"]
        self._parts = {name: keras.metrics.Mean(name) for name in parts}
        self._rows = keras.metrics.Sum("rows")
        self._gate_optimizer: keras.optimizers.Optimizer | None = None

    def compile(
        self, optimizer: keras.optimizers.Optimizer, gate_optimizer: keras.optimizers.Optimizer | None = None
    ) -> None:
        """Sets the optimizer of all variables, or of all but the gate's if `gate_optimizer` is given."""
        super().compile(optimizer=optimizer)
        self._gate_optimizer = gate_optimizer

    def make_optimizer_variables(self) -> None:
        """Makes the optimizers' variables; the model must be compiled and have its own. Otherwise the first step makes
        them, and TensorFlow traces such a step twice."""
        ranking, gate = self._by_optimizer()
        self.optimizer.build(ranking)
        if self._gate_optimizer is not None:
            self._gate_optimizer.build(gate)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits, float32 [batch], from the served features of a transformed row."""
        served = {name: inputs[name] for name in self._input_names}
        return tf.cast(self.backbone(self.embedding(served, training=training), training=training), tf.float32)

    def compute_loss(self, inputs: Mapping[str, Mapping[str, tf.Tensor]], training: bool = False) -> tf.Tensor:
        """The loss, a float32 scalar, without embedding L2, which is in `losses`; one forward pass for rows and pairs.

        Args:
            inputs: ROWS, transformed rows with their label; PAIRS, a batch of inputs.load_pairs, or absent.
            training: whether dropout is on.
        """
        rows = inputs[ROWS]
        pairs = inputs.get(PAIRS) if self.llm_weight > 0 else None
        if pairs is None:
            row_logits = self(rows, training=training)
            return self._rec_loss(rows, row_logits)
        sides = [pair_side(pairs, prefix) for prefix in (features.PREFERRED, features.OTHER)]
        joint = {n: tf.concat([rows[n], *(side[n] for side in sides)], axis=0) for n in self._input_names}
        logits = self(joint, training=training)
        number = tf.shape(pairs[features.CALIBRATION_LABEL])[0]
        row_logits, *side_logits = tf.split(logits, [tf.shape(logits)[0] - 2 * number, number, number])

        gate_loss = tf.constant(0.0)
        if self.gate is None:
            target = features.SOFT_LABEL if self._form == "distillation" else features.LLM_SCORE
            targets = tf.concat([side[target] for side in sides], axis=0)
            llm_loss = POINTWISE[self._form](tf.concat(side_logits, axis=0), targets)
        else:
            seen = pair_input(pairs, side_logits)
            alpha = self.gate.alpha(*seen)
            llm_loss = self.pairwise_loss(*side_logits, self.gate.hinge_weight(alpha, *seen))
            gate_loss = self.gate.loss(alpha, pairs[features.CALIBRATION_LABEL])
            self._note("gate_loss", gate_loss)
            self._parts["alpha"].update_state(alpha)
        self._note("llm_loss", llm_loss)
        return self._rec_loss(rows, row_logits) + self.llm_weight * llm_loss + gate_loss

    @tf.autograph.experimental.do_not_convert  # No tensor decides what Python does here, so it would only cost time.
    def train_step(self, inputs: Mapping[str, Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """The training step of tfrs.Model, in which the gate's optimizer, if any, updates the gate's variables.

        Under a distribution strategy `inputs` is a slice of the batch. The optimizers sum the gradients over the
        replicas; these sums are the gradients of the whole batch's loss.
        """
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
            penalty = tf.add_n([tf.constant(0.0), *self.losses])
            total = loss + penalty
        ranking, gate = self._by_optimizer()
        gradients = tape.gradient(total, [*ranking, *gate])
        self.optimizer.apply_gradients(list(zip(gradients[: len(ranking)], ranking, strict=True)))
        if self._gate_optimizer is not None:
            self._gate_optimizer.apply_gradients(list(zip(gradients[len(ranking) :], gate, strict=True)))
        self._note("loss", total)
        self._note("embedding_l2", penalty)
        return {metric.name: metric.result() for metric in self.metrics}

    def _by_optimizer(self) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """The trainable variables of the main optimizer, and those of the gate's own optimizer."""
        own = self.gate.trainable_variables if self.gate and self._gate_optimizer is not None else []
        return [v for v in self.trainable_variables if not any(v is o for o in own)], list(own)

    def _note(self, part: str, value: tf.Tensor) -> None:
        """Records the metric `part` of the whole batch, from this replica's `value` of it, a float32 scalar."""
        self._parts[part].update_state(replica_sum(value))

    def _rec_loss(self, rows: Mapping[str, tf.Tensor], logits: tf.Tensor) -> tf.Tensor:
        loss = recommendation_loss(rows[features.LABEL], logits, rows.get(features.EXAMPLE_WEIGHT))
        self._note("rec_loss", loss)
        self._rows.update_state(tf.shape(logits)[0])
        return loss


Scorer = Callable[..., tf.Tensor]
"""A batch of transformed rows -> logits, float32 [batch]; `training=True` turns dropout on."""


def scorer(model: RankingModel) -> Scorer:
    """The model's `call` as a graph, traced once for all batches."""
    return tf.function(model.call, reduce_retracing=True, autograph=False)


def input_names(*, use_user_id: bool, sizes: features.FeatureSizes | None = None) -> tuple[str, ...]:
    """Names of the transformed features that enter the logit; `sizes` has the declared ones."""
    transformed = features.transformed_features(sizes or features.FeatureSizes(), use_user_id=use_user_id)
    return tuple(f.name for f in transformed if f.served)


def pair_side(pairs: Mapping[str, tf.Tensor], prefix: str) -> dict[str, tf.Tensor]:
    """One side of pairs as rows: the shared context and the features of the item with this prefix."""
    side = {}
    for name, value in pairs.items():
        if name.startswith(prefix):
            side[name.removeprefix(prefix)] = value
        elif not name.startswith((features.PREFERRED, features.OTHER)):
            side[name] = value
    return side


def pair_input(pairs: Mapping[str, tf.Tensor], logits: Sequence[tf.Tensor] | None = None) -> tuple[PairSide, PairSide]:
    """The gate's view of the preferred and of the other item, see signals.PairSide.

    Args:
        pairs: a batch of inputs.load_pairs, or of base_model.with_base_model.
        logits: float32 [pairs] by the model in training, of either side; unused if the pairs hold the base model's.
    """
    sides = [pair_side(pairs, prefix) for prefix in (features.PREFERRED, features.OTHER)]
    gap = tf.abs(sides[0][features.LLM_SCORE] - sides[1][features.LLM_SCORE])

    def gate_input(side: Mapping[str, tf.Tensor], number: int) -> PairSide:
        logit = side.get(features.BASE_LOGIT)
        if logit is None:
            assert logits is not None
            logit = logits[number]
        return {**side, features.LLM_GAP: gap, features.LOGIT: logit}

    return gate_input(sides[0], 0), gate_input(sides[1], 1)

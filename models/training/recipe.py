"""The training recipe: train a base model, form the targets, train with pairs and without, take the better model."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sllmr.models import features
from sllmr.models.base_model import held_out, stacked, with_base_model, without_own_choice, without_users
from sllmr.models.config import GateConfig, LossConfig, MixedPrecision, ModelConfig, TrainConfig
from sllmr.models.errors import UserError
from sllmr.models.gate import FITTED_GATES, GATES, FittedGate, PaperGate, StackedGate, SupervisedGate
from sllmr.models.inputs import pair_batches, training_batches
from sllmr.models.ranking import RankingModel, pair_input
from sllmr.models.reliability import GateCollapse, labeled
from sllmr.models.replicas import distribution
from sllmr.models.training.calibration import with_soft_labels
from sllmr.models.training.gate_report import gate_report
from sllmr.models.training.loop import Fit, Monitor, fit
from sllmr.models.training.report import TrainingReport

_LOGGER = logging.getLogger(__name__)

Columns = Mapping[str, tf.Tensor]
Rows = Callable[[], tf.data.Dataset]


Initialize = Callable[[RankingModel], None]
"""Sets the weights of an untrained model whose variables exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What every phase of one training shares; `train` explains the fields."""

    vocabulary: features.VocabularySizes
    model: ModelConfig
    gate: GateConfig
    loss: LossConfig
    train: TrainConfig
    rows: Rows
    valid: tf.data.Dataset
    item_vectors: np.ndarray | None
    new_items: np.ndarray | None
    strategy: tf.distribute.Strategy
    initialize: Initialize | None = None

    def fit(
        self,
        loss: LossConfig,
        rows: Rows,
        monitor: Monitor,
        *,
        targets: "Targets | None" = None,
        initialize: Initialize | None = None,
        log_dir: str | None = None,
    ) -> Fit:
        """Trains a new model with `train.strategy` and `train.mixed_precision`; the Fit's model has neither."""
        keras.utils.set_random_seed(self.train.seed)
        with self.strategy.scope():
            model = self._untrained_model(loss, targets, self.train.mixed_precision)
            # Makes all variables here: a replica would give them other initial values, and TensorFlow would trace
            # twice a step that makes variables.
            model(next(iter(self.valid)))
        if initialize is not None:
            initialize(model)
        has_own_rate = isinstance(model.gate, SupervisedGate)
        gate_learning_rate = self.gate.learning_rate if has_own_rate else None
        pairs = None
        if targets is not None:
            pairs = pair_batches(targets.pairs, pairs_per_batch=self.train.pairs_per_batch, seed=self.train.seed)
        done = fit(
            model,
            training_batches(rows(), pairs),
            monitor,
            self.train,
            steps=None if self.train.strategy is None else sum(1 for _ in rows()),
            gate_learning_rate=gate_learning_rate,
            log_dir=log_dir,
        )
        if self.train.strategy is None and self.train.mixed_precision is None:
            return done
        plain = self._untrained_model(loss, targets, None)
        plain(next(iter(self.valid)))  # makes its variables
        plain.set_weights(model.get_weights())
        return done._replace(model=plain)

    def _untrained_model(
        self, loss: LossConfig, targets: "Targets | None", precision: MixedPrecision | None
    ) -> RankingModel:
        new_items = self.new_items if self.train.item_dropout else None
        if new_items is not None and targets is not None:
            new_items = new_items.copy()
            new_items[np.asarray(targets.pairs[features.PREFERRED + features.ITEM_INDEX])] = False
        return RankingModel(
            self.vocabulary,
            self.model,
            self.gate,
            loss,
            self.item_vectors,
            fitted_gate=targets.gate.copy() if targets and targets.gate else None,
            item_dropout=self.train.item_dropout,
            new_items=new_items,
            precision=precision,
        )


MOST_VISITS = 5.0
"""How often an epoch may see each pair before the pairs' loss counts less. On Amazon, an epoch sees a pair four times
if a tenth of the contexts have pairs; if all have, every second epoch sees it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """What the ranking model learns from the LLM.

    Attributes:
        pairs: what the loss sees; in mode stacked the pairs are in the order of the stacked target.
        llm_pairs: the same pairs in the LLM's order; the gate is reported on these.
        calibration: bool [pairs], those of `llm_pairs` on which the LLM and the gate are measured.
        gate: fitted here; None if the gate is trained with the model, or has no part in the loss.
    """

    pairs: Columns
    llm_pairs: Columns
    calibration: np.ndarray
    gate: FittedGate | None


def train(
    *,
    vocabulary: features.VocabularySizes,
    model_config: ModelConfig,
    gate_config: GateConfig,
    loss_config: LossConfig,
    train_config: TrainConfig,
    rows: Rows,
    valid: tf.data.Dataset,
    pairs: Columns | None,
    item_vectors: np.ndarray | None = None,
    new_items: np.ndarray | None = None,
    item_ids: Sequence[str] = (),
    gate_weights: Mapping[str, float] | None = None,
    initialize: Initialize | None = None,
    log_dir: str | None = None,
    choose_better: bool = True,
) -> tuple[RankingModel, TrainingReport]:
    """Trains until the validation AUC has not risen for `patience` epochs; returns the best epoch's weights.

    A gate that is fitted beforehand takes three trainings: the base model, the model with pairs, and the same model
    without pairs. The recipe returns the better of the last two by validation AUC, so a useless LLM costs time alone.

    Args:
        vocabulary: of the transform graph.
        model_config, gate_config, loss_config, train_config: see models/config.py.
        rows: returns shuffled batches of transformed train rows. Each training calls it anew, so that the order of the
            rows does not depend on the base model; with train.strategy once more, to count the batches.
        valid: batches of transformed validation rows.
        pairs: all of models.inputs.load_pairs; None if and only if loss_config.llm_weight is 0.
        item_vectors: float32 [items + 2, any] by item index; required exactly with model_config.item_vectors.
        new_items: bool [items + 2] by item index, the items without a train positive; read with train.item_dropout
            alone. Those that a pair prefers keep their ids in the model with pairs. None: there are none.
        item_ids: of the vocabulary, number n for index n + 1, for the report; if empty the report names no pairs.
        gate_weights: TrainingReport.gate_weights of another training; modes advantage and stacked take them instead of
            fitting their own.
        initialize: sets the initial weights of the models with and without pairs, for a warm start. choose_better
            compares them fairly only if these weights owe nothing to an LLM. The base model of a gate never gets a warm
            start, since the earlier model has seen the held-out users. None: the usual initial weights.
        log_dir: for TensorBoard; None writes nothing.
        choose_better: whether, with a gate that is fitted beforehand, to train also the model without pairs and return
            the better one. The pipeline trains and compares that model in a step of its own instead.

    Raises:
        ValueError: pairs are given while llm_weight is 0, or are missing while it is above 0.
        UserError: the validation rows hold one label only, a gate that is fitted beforehand has no calibration pairs,
            or train.strategy does not fit the machine.
        GateCollapse: the gate has collapsed, and gate.on_collapse is fail.
    """
    if (pairs is None) != (loss_config.llm_weight == 0):
        raise ValueError(
            "pairs must be given exactly when llm_weight is above 0, got llm_weight "
            f"{loss_config.llm_weight} {'without' if pairs is None else 'with'} pairs; "
            "set LossConfig.llm_weight"
        )
    start = time.monotonic()
    setup = Setup(
        vocabulary=vocabulary,
        model=model_config,
        gate=gate_config,
        loss=loss_config,
        train=train_config,
        rows=rows,
        valid=valid,
        item_vectors=item_vectors,
        new_items=new_items,
        strategy=distribution(train_config),
        initialize=initialize,
    )

    base, targets, without = None, None, None
    if pairs is not None and is_fitted_beforehand(gate_config, loss_config):
        calibration = held_out(pairs, gate_config.held_out_fraction)
        base = fit_base_model(setup, pairs, calibration)
        targets = stacked_targets(setup, pairs, calibration, base.model, gate_weights)
        setup = dataclasses.replace(setup, loss=with_weight_for(setup.loss, pairs, base.train_rows, train_config))
    elif pairs is not None:
        targets = llm_targets(setup, pairs)
    with_pairs = fit_with_pairs(setup, targets, log_dir)
    if base is not None and choose_better:
        without = fit_without_pairs(setup, rows, "without pairs", initialize)
    chosen = choose(with_pairs, without)

    on_gate = {}
    if targets is not None and (gate := targets.gate or with_pairs.model.gate) is not None:
        on_gate = gate_report(chosen.model, gate, targets.llm_pairs, targets.calibration, item_ids)
    report = TrainingReport(
        epochs=with_pairs.epochs,
        best_epoch=with_pairs.best_epoch,
        best_valid_auc=chosen.best_valid_auc,
        train_rows=with_pairs.train_rows,
        llm_weight=setup.loss.llm_weight,
        seconds=time.monotonic() - start,
        alpha_by_epoch=with_pairs.alpha_quantiles,
        base_model=base.epochs if base else [],
        base_model_valid_auc=base.best_valid_auc if base else None,
        valid_auc_without_pairs=without.best_valid_auc if without else None,
        **on_gate,
    )
    alarm(report, gate_config)
    return chosen.model, report


def is_fitted_beforehand(gate: GateConfig, loss: LossConfig) -> bool:
    """Whether the gate takes part in the loss and is fitted before the model, against a base model."""
    if loss.form == "pairwise":
        return gate.mode in FITTED_GATES
    return loss.form == "distillation" and gate.mode == "stacked"


def fit_base_model(setup: Setup, pairs: Columns, calibration: np.ndarray) -> Fit:
    """Trains without pairs, on the rows of all users but those of the calibration pairs.

    Raises:
        UserError: no row is left.
    """
    users = np.asarray(pairs[features.USER_HASH])[calibration]
    rows = without_users(setup.rows(), users)
    if next(iter(rows.take(1)), None) is None:
        raise UserError(
            "the base model of gate.mode advantage and stacked needs train rows of users that are not held out, got "
            f"none; lower gate.held_out_fraction, now {setup.gate.held_out_fraction:g}"
        )
    return fit_without_pairs(setup, lambda: without_users(setup.rows(), users), "base model")


def stacked_targets(
    setup: Setup,
    pairs: Columns,
    calibration: np.ndarray,
    base_model: RankingModel,
    gate_weights: Mapping[str, float] | None,
) -> Targets:
    """Fits the gate on the calibration pairs, which the base model has not seen; mode stacked replaces the LLM's order
    and scores by the blend of base model and LLM."""
    samples = setup.gate.dropout_samples if "dropout_variance" in setup.gate.signals else None
    pairs = without_own_choice(with_base_model(pairs, base_model, dropout_samples=samples))
    gate = FITTED_GATES[setup.gate.mode](setup.gate)
    if gate_weights is None:
        held = {name: tf.boolean_mask(values, calibration) for name, values in pairs.items()}
        gate.fit(*pair_input(held), held[features.CALIBRATION_LABEL], np.asarray(held[features.USER_HASH]))
    else:
        gate.take_weights(gate_weights)
    blended = stacked(pairs, gate) if isinstance(gate, StackedGate) else pairs
    return Targets(pairs=blended, llm_pairs=pairs, calibration=calibration, gate=gate)


def with_weight_for(loss: LossConfig, pairs: Columns, rows: int, train: TrainConfig) -> LossConfig:
    """The loss with lambda lowered if pairs are few: lambda min(1, MOST_VISITS / v), where an epoch sees each pair v
    times. The model would memorize a few pairs at full weight, at the cost of the rows.

    Args:
        loss: the loss of a training with a gate that is fitted beforehand.
        pairs: all of them.
        rows: number of rows in an epoch.
        train: says how many rows and pairs go into a step.
    """
    visits = rows / train.batch_size * train.pairs_per_batch / len(pairs[features.CALIBRATION_LABEL])
    return loss.model_copy(update={"llm_weight": loss.llm_weight * min(1.0, MOST_VISITS / visits)})


def llm_targets(setup: Setup, pairs: Columns) -> Targets:
    """Targets that follow the LLM's order and scores; distillation gets the scores as calibrated probabilities."""
    learned = with_soft_labels(pairs) if setup.loss.form == "distillation" else pairs
    return Targets(pairs=learned, llm_pairs=pairs, calibration=labeled(pairs), gate=None)


def fit_with_pairs(setup: Setup, targets: Targets | None, log_dir: str | None) -> Fit:
    """Trains on all rows and on the targets; with llm_weight 0 there are no targets."""
    is_trained = setup.loss.form == "pairwise" and issubclass(GATES[setup.gate.mode], PaperGate)
    monitor = Monitor(setup.valid, gate_pairs=targets.llm_pairs if targets and is_trained else None)
    return setup.fit(setup.loss, setup.rows, monitor, targets=targets, initialize=setup.initialize, log_dir=log_dir)


def fit_without_pairs(setup: Setup, rows: Rows, phase: str, initialize: Initialize | None = None) -> Fit:
    """Trains the same model on rows alone; `phase` begins each line of the log."""
    return setup.fit(LossConfig(llm_weight=0.0), rows, Monitor(setup.valid, f"{phase}, "), initialize=initialize)


def choose(with_pairs: Fit, without: Fit | None) -> Fit:
    """The fit with the higher validation AUC; the one without pairs if both are equal."""
    if without is None or without.best_valid_auc < with_pairs.best_valid_auc:
        return with_pairs
    _LOGGER.warning(
        "The pairs do not help: validation AUC %.4f with them, %.4f without, so the model that was trained "
        "without them is taken; query a better LLM (llm.strategy, llm.model) or score more pairs "
        "(llm.budget.pairs), or lower loss.llm_weight",
        with_pairs.best_valid_auc,
        without.best_valid_auc,
    )
    return without


_COLLAPSED = {
    "closed": "The gate has collapsed: alpha is below .05 on 95% of the pairs (mode {mode}), so the LLM has no say, "
    "although the calibration pairs do not show that it is useless",
    "open": "The gate has collapsed: alpha is above .95 on 95% of the pairs (mode {mode}), so the LLM is trusted "
    "everywhere, although the calibration pairs do not show that it is right everywhere",
    "inverted": "The gate is inverted (mode {mode}): it is widest open where the calibration pairs show the LLM's "
    "smallest advantage; compare mean_alpha with llm_right and model_right in the report's map",
}
"""By TrainingReport.alpha_collapse."""


def alarm(report: TrainingReport, gate: GateConfig) -> None:
    """Logs a warning if the gate has collapsed.

    Raises:
        GateCollapse: it has collapsed, and gate.on_collapse is fail.
    """
    if report.alpha_collapse is None:
        return
    message = _COLLAPSED[report.alpha_collapse].format(mode=gate.mode)
    if gate.on_collapse == "fail":
        raise GateCollapse(f"{message}; set gate.mode or gate.signals, or gate.on_collapse to warn")
    _LOGGER.warning(message)

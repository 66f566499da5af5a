"""The training loop: epochs, validation, early stopping."""

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sklearn.metrics import roc_auc_score

from sllmr.models import features
from sllmr.models.config import TrainConfig
from sllmr.models.errors import UserError
from sllmr.models.inputs import replica_slices
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import RankingModel, Scorer, scorer
from sllmr.models.training.gate_report import alpha_quantiles, judge, pair_alpha
from sllmr.models.training.report import Epoch

_LOGGER = logging.getLogger(__name__)
_PAIRS_TO_WATCH = 4096


class Fit(NamedTuple):
    """A model with the weights of its best epoch.

    Attributes:
        model: trained.
        epochs: in order.
        best_epoch: 1-based.
        best_valid_auc: validation AUC of that epoch.
        train_rows: rows of one epoch.
        alpha_quantiles: of alpha at the end of each epoch; empty unless the monitor watches pairs.
    """

    model: RankingModel
    epochs: list[Epoch]
    best_epoch: int
    best_valid_auc: float
    train_rows: int
    alpha_quantiles: list[dict[str, float]]


def fit(
    model: RankingModel,
    batches: tf.data.Dataset,
    monitor: "Monitor",
    config: TrainConfig,
    *,
    steps: int | None = None,
    gate_learning_rate: float | None = None,
    log_dir: str | None = None,
) -> Fit:
    """Trains until the validation AUC has not risen for `patience` epochs.

    Args:
        model: made, with its variables, in the scope of the distribution strategy that trains it.
        batches: whole batches, not slices of them, see models.inputs.training_batches.
        monitor: records each epoch.
        config: of the optimizer and of stopping.
        steps: batches of an epoch; needed with several replicas, since Keras counts them only for one.
        gate_learning_rate: of the gate's own optimizer; None if it has none.
        log_dir: for TensorBoard; None writes nothing.
    """
    strategy = model.distribute_strategy
    with strategy.scope():
        own = None if gate_learning_rate is None else keras.optimizers.Adam(gate_learning_rate)
        model.compile(LazyAdam(config.learning_rate), gate_optimizer=own)
        model.make_optimizer_variables()
    if strategy.num_replicas_in_sync > 1:
        iter(batches)  # On one device Keras makes an iterator, too, and discards it. So both train in the same order.
        slices = replica_slices(batches.repeat(), strategy.num_replicas_in_sync)
        batches = strategy.distribute_datasets_from_function(lambda _: slices)
    stopping = keras.callbacks.EarlyStopping(
        monitor="valid_auc", mode="max", patience=config.patience, restore_best_weights=True
    )
    callbacks = [monitor, stopping]
    if log_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False, profile_batch=0))
    model.fit(batches, steps_per_epoch=steps, epochs=config.epochs, callbacks=callbacks, verbose=0)
    return Fit(
        model=model,
        epochs=monitor.epochs,
        best_epoch=stopping.best_epoch + 1,
        best_valid_auc=monitor.epochs[stopping.best_epoch].valid_auc,
        train_rows=monitor.train_rows,
        alpha_quantiles=monitor.alpha_quantiles,
    )


def predict(score: Scorer, rows: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels, int [rows], and logits, float32 [rows], of all rows.

    Raises:
        UserError: there is no row.
    """
    labels, logits = [], []
    for batch in rows:
        labels.append(batch[features.LABEL].numpy())
        logits.append(score(batch).numpy())
    if not labels:
        raise UserError("scoring needs at least one row, got none; check the split's files")
    return np.concatenate(labels), np.concatenate(logits)


class Monitor(keras.callbacks.Callback):
    """Puts the validation AUC into `logs`, for EarlyStopping and TensorBoard; times and logs each epoch.

    Args:
        valid: batches of validation rows.
        stage: begins the logged line.
        gate_pairs: pairs; the quantiles of alpha over the first few thousand are kept after each epoch. None: no alpha.
    """

    def __init__(self, valid: tf.data.Dataset, stage: str = "", gate_pairs: Mapping[str, tf.Tensor] | None = None):
        super().__init__()
        self._valid = valid
        self._stage = stage
        self._gate_pairs = gate_pairs and {name: values[:_PAIRS_TO_WATCH] for name, values in gate_pairs.items()}
        self._start = 0.0
        self.epochs: list[Epoch] = []
        self.alpha_quantiles: list[dict[str, float]] = []
        self.train_rows = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._score = scorer(self.model)
        if self._gate_pairs is not None:
            self._judge = judge(self.model, self.model.gate)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        seconds = time.monotonic() - self._start
        self.train_rows = int(logs.pop("rows"))
        losses = {name: float(value) for name, value in logs.items()}
        labels, logits = predict(self._score, self._valid)
        if len(set(labels.tolist())) < 2:
            raise UserError("validation AUC needs rows of both labels, got one; check the split of the data")
        logs["valid_auc"] = float(roc_auc_score(labels, logits))
        self.epochs.append(
            Epoch(
                valid_auc=logs["valid_auc"],
                losses=losses,
                seconds=seconds,
                rows_per_second=self.train_rows / seconds,
            )
        )
        shown = ("rec_loss", "llm_loss", "gate_loss", "alpha")
        parts = ", ".join(f"{name} {losses[name]:.4f}" for name in shown if name in losses)
        if self._gate_pairs is not None:
            alpha, _ = pair_alpha(self._judge, self._gate_pairs)
            self.alpha_quantiles.append(alpha_quantiles(alpha))
        _LOGGER.info(
            "%sepoch %d: validation AUC %.4f, %s, %.1f s", self._stage, epoch + 1, logs["valid_auc"], parts, seconds
        )

"""Fits a RankingModel: early stopping, metrics, and a report on the gate."""

import logging
import time
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from models import features
from models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from models.features import NOT_A_PROBE, OTHER, PREFERRED
from models.gate import PaperGate
from models.inputs import pair_batches, training_batches
from models.optimizers import LazyAdam
from models.ranking import RankingModel

_LOGGER = logging.getLogger(__name__)
_ROWS_AT_ONCE = 4096
_CLOSED, _OPEN = 0.05, 0.95
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Epoch(BaseModel):
    """One pass over the train rows.

    Attributes:
        valid_auc: on all validation rows.
        losses: means or last values of the training step's parts, by name.
        seconds: of training alone, without validation.
        rows_per_second: train rows over `seconds`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    valid_auc: float
    losses: dict[str, float]
    seconds: float
    rows_per_second: float


class GateCell(BaseModel):
    """The pairs of one cell: `cold` by the gate's threshold, `tail` where either item is a long-tail item.

    Attributes:
        cold: None in the cell of all pairs.
        tail: as cold.
        pairs: number of pairs.
        mean_alpha: over them; None where there are none.
        probes: pairs with a known choice of the user.
        llm_accuracy: share of the probes where the LLM prefers what the user chose; None without probes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cold: bool | None
    tail: bool | None
    pairs: int
    mean_alpha: float | None
    probes: int
    llm_accuracy: float | None


class TrainingReport(BaseModel):
    """What training did, as `training.json`.

    Attributes:
        epochs: in order.
        best_epoch: 1-based; its weights are the model's.
        best_valid_auc: of that epoch.
        train_rows: rows of one pass.
        seconds: of everything.
        gate: all pairs, then the four cells; empty without pairs.
        gate_weights: w by signal and `bias`; empty for a gate without parameters.
        alpha_quantiles: of alpha over all pairs, by share; empty without a gate.
        alpha_collapse: `closed` where 95% of the pairs have alpha below .05, `open` where above .95; None
            otherwise and for a frozen gate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: list[Epoch]
    best_epoch: int
    best_valid_auc: float
    train_rows: int
    seconds: float
    gate: list[GateCell] = []
    gate_weights: dict[str, float] = {}
    alpha_quantiles: dict[str, float] = {}
    alpha_collapse: str | None = None


def train(
    *,
    vocabulary: features.VocabularySizes,
    model_config: ModelConfig,
    gate_config: GateConfig,
    loss_config: LossConfig,
    train_config: TrainConfig,
    rows: tf.data.Dataset,
    valid: tf.data.Dataset,
    pairs: Mapping[str, tf.Tensor] | None,
    item_vectors: np.ndarray | None = None,
    log_dir: str | None = None,
) -> tuple[RankingModel, TrainingReport]:
    """Trains until the validation AUC has not risen for `patience` epochs; returns the best epoch's weights.

    Args:
        vocabulary: of the transform graph.
        model_config, gate_config, loss_config, train_config: as named.
        rows: shuffled batches of transformed train rows.
        valid: batches of transformed validation rows.
        pairs: all of models.inputs.load_pairs; None if and only if loss_config.llm_weight is 0.
        item_vectors: float32 [items + 2, any] by item index, exactly with model_config.item_vectors_file.
        log_dir: for TensorBoard; None writes nothing.

    Raises:
        ValueError: pairs do not go with llm_weight, or the validation rows hold one label only.
    """
    if (pairs is None) != (loss_config.llm_weight == 0):
        raise ValueError(
            "pairs must be given exactly when llm_weight is above 0, got llm_weight "
            f"{loss_config.llm_weight} {'without' if pairs is None else 'with'} pairs; "
            "set LossConfig.llm_weight"
        )
    start = time.monotonic()
    keras.utils.set_random_seed(train_config.seed)
    model = RankingModel(vocabulary, model_config, gate_config, loss_config, item_vectors)
    has_own_rate = model.gate is not None and gate_config.mode == "supervised"
    if pairs is not None and loss_config.form == "distillation":
        pairs = with_soft_labels(pairs)
    model.compile(
        optimizer=LazyAdam(train_config.learning_rate),
        gate_optimizer=keras.optimizers.Adam(gate_config.learning_rate) if has_own_rate else None,
    )
    endless = None
    if pairs is not None:
        endless = pair_batches(pairs, pairs_per_batch=train_config.pairs_per_batch, seed=train_config.seed)
    batches = training_batches(rows, endless)

    monitor = _Monitor(valid)
    stopping = keras.callbacks.EarlyStopping(
        monitor="valid_auc", mode="max", patience=train_config.patience, restore_best_weights=True
    )
    callbacks = [monitor, stopping]
    if log_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False, profile_batch=0))
    model.fit(batches, epochs=train_config.epochs, callbacks=callbacks, verbose=0)

    cells: list[GateCell] = []
    weights: dict[str, float] = {}
    quantiles: dict[str, float] = {}
    collapse = None
    if pairs is not None and model.gate is not None:
        alpha = _pair_alpha(model, pairs)
        cells = gate_cells(alpha, pairs, cold_max_history=gate_config.cold_max_history)
        quantiles = {f"{share:g}": float(np.quantile(alpha, share)) for share in _QUANTILES}
        if isinstance(model.gate, PaperGate):
            names = (*gate_config.signals, "bias")
            values = [*model.gate.w.numpy(), model.gate.b.numpy()]
            weights = {name: float(value) for name, value in zip(names, values, strict=True)}
            collapse = alpha_collapse(alpha)
    if collapse is not None:
        _LOGGER.warning(
            "The gate has collapsed: alpha is %s %.2f on 95%% of the pairs (mode %s), so the LLM %s. "
            "Compare with llm_accuracy by cell; gate.mode supervised fits alpha to it.",
            "below" if collapse == "closed" else "above",
            _CLOSED if collapse == "closed" else _OPEN,
            gate_config.mode,
            "has no say" if collapse == "closed" else "is trusted everywhere",
        )
    report = TrainingReport(
        epochs=monitor.epochs,
        best_epoch=stopping.best_epoch + 1,
        best_valid_auc=monitor.epochs[stopping.best_epoch].valid_auc,
        train_rows=monitor.train_rows,
        seconds=time.monotonic() - start,
        gate=cells,
        gate_weights=weights,
        alpha_quantiles=quantiles,
        alpha_collapse=collapse,
    )
    return model, report


def with_soft_labels(pairs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The pairs with each LLM score y replaced by the probability sigmoid(a y + b) that the user chooses the item.

    a and b are fitted by maximum likelihood on the labelled probes, one chosen and one other item a pair.

    Raises:
        ValueError: no pair is a probe.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    labels = np.asarray(pairs[features.PROBE_LABEL])
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    preferred, other = (np.asarray(pairs[name]) for name in names)
    probes = labels != NOT_A_PROBE
    if not probes.any():
        raise ValueError(
            "distillation needs labelled probes to turn scores into probabilities, got none; raise "
            "llm.candidates.probe_fraction"
        )
    scores = np.concatenate([preferred[probes], other[probes]])
    chosen = np.concatenate([labels[probes], 1 - labels[probes]])
    fit = LogisticRegression(C=np.inf).fit(scores[:, np.newaxis], chosen)
    soft = {n: fit.predict_proba(np.asarray(pairs[n])[:, np.newaxis])[:, 1].astype(np.float32) for n in names}
    return {**pairs, **{name: tf.constant(values) for name, values in soft.items()}}


def predict(model: RankingModel, rows: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of all rows, float32 [rows] each."""
    score = tf.function(model.call, reduce_retracing=True)
    labels, logits = [], []
    for batch in rows:
        labels.append(batch[features.LABEL].numpy())
        logits.append(score(batch).numpy())
    if not labels:
        raise ValueError("scoring needs at least one row, got none; check the split's files")
    return np.concatenate(labels), np.concatenate(logits)


def gate_cells(alpha: np.ndarray, pairs: Mapping[str, tf.Tensor], *, cold_max_history: int) -> list[GateCell]:
    """Mean alpha and the LLM's accuracy on probes: over all pairs, then by cold x tail."""
    is_cold = np.asarray(pairs[features.HISTORY_LENGTH]) <= cold_max_history
    is_tail = np.asarray(pairs[PREFERRED + features.IS_TAIL]) + np.asarray(pairs[OTHER + features.IS_TAIL]) > 0
    probe_label = np.asarray(pairs[features.PROBE_LABEL])

    def cell(cold: bool | None, tail: bool | None) -> GateCell:
        inside = np.ones(len(alpha), bool)
        if cold is not None:
            inside &= is_cold == cold
        if tail is not None:
            inside &= is_tail == tail
        probes = probe_label[inside & (probe_label != NOT_A_PROBE)]
        return GateCell(
            cold=cold,
            tail=tail,
            pairs=int(inside.sum()),
            mean_alpha=float(alpha[inside].mean()) if inside.any() else None,
            probes=len(probes),
            llm_accuracy=float(probes.mean()) if len(probes) else None,
        )

    return [cell(None, None)] + [cell(cold, tail) for cold in (True, False) for tail in (True, False)]


def alpha_collapse(alpha: np.ndarray) -> str | None:
    """`closed` or `open` where 95% of the pairs have alpha near 0 or near 1; None otherwise."""
    if np.quantile(alpha, 0.95) < _CLOSED:
        return "closed"
    return "open" if np.quantile(alpha, 0.05) > _OPEN else None


def _pair_alpha(model: RankingModel, pairs: Mapping[str, tf.Tensor]) -> np.ndarray:
    alpha = tf.function(model.pair_alpha, reduce_retracing=True)
    batches = tf.data.Dataset.from_tensor_slices(dict(pairs)).batch(_ROWS_AT_ONCE)
    return np.concatenate([alpha(batch).numpy() for batch in batches])


class _Monitor(keras.callbacks.Callback):
    """Validation AUC into `logs`, for EarlyStopping and TensorBoard; times and logs each epoch."""

    def __init__(self, valid: tf.data.Dataset):
        super().__init__()
        self._valid = valid
        self._start = 0.0
        self.epochs: list[Epoch] = []
        self.train_rows = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        seconds = time.monotonic() - self._start
        self.train_rows = int(logs.pop("rows"))
        losses = {name: float(value) for name, value in logs.items()}
        labels, logits = predict(self.model, self._valid)
        if len(set(labels.tolist())) < 2:
            raise ValueError("validation AUC needs rows of both labels, got one; check the split of the data")
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
        _LOGGER.info("epoch %d: validation AUC %.4f, %s, %.1f s", epoch + 1, logs["valid_auc"], parts, seconds)

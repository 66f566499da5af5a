"""Fits a RankingModel: early stopping, metrics, and a report on the gate."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from models import features
from models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from models.features import NOT_A_PROBE, OTHER, PREFERRED
from models.first_stage import fused, held_out, with_first_stage, without_contexts, without_own_choice
from models.gate import FITTED_GATES, FittedGate, FrozenGate, FusedGate, PaperGate, SupervisedGate
from models.inputs import pair_batches, training_batches
from models.optimizers import LazyAdam
from models.ranking import RankingModel, Scorer, pair_input, pair_side, scorer
from models.reliability import (
    GateCollapse,
    ReliabilityCell,
    calibration_error,
    collapse,
    labelled,
    reliability_cells,
)

_LOGGER = logging.getLogger(__name__)
_ROWS_AT_ONCE = 4096
_PAIRS_TO_WATCH = 4096
_CONTESTED_PAIRS = 12
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


class ContestedPair(BaseModel):
    """A pair on which the gate lets the LLM contradict the model.

    Attributes:
        history_item_ids: latest first.
        preferred_item_id: by the LLM.
        other_item_id: by the LLM the lesser one, and by the model the better one.
        model_margin: logit of the preferred item minus that of the other, below 0; of the first stage if there is one.
        alpha: of the pair.
        probe_label: 1 where the user chose the preferred item, 0 where the other one, NOT_A_PROBE where neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    history_item_ids: list[str]
    preferred_item_id: str
    other_item_id: str
    model_margin: float
    alpha: float
    probe_label: int


class TrainingReport(BaseModel):
    """What training did, as `training.json`.

    Attributes:
        epochs: in order.
        best_epoch: 1-based; its weights are the model's, unless that without pairs is taken.
        best_valid_auc: of the model.
        train_rows: rows of one pass.
        seconds: of everything.
        gate: all pairs, then the four cells; empty without pairs.
        gate_weights: w by signal and `bias`; empty for a gate without parameters.
        alpha_quantiles: of alpha over all pairs, by share; empty without a gate.
        alpha_collapse: `closed`, `open` or `inverted`, see models.reliability.collapse; None for a sound gate and for a
            frozen one.
        alpha_by_epoch: the same quantiles of alpha at the end of each epoch; empty for a gate that is constant.
        reliability: by cell of history length x popularity, see models.reliability; empty without a gate.
        calibration_error: of the gate as a probability: of alpha that the LLM is right (modes paper and supervised), of
            the fused probability that the user chooses the item (mode fused); None for the others, whose alpha is none.
        contested_pairs: those of the largest alpha times -model_margin, where the gate turns the model round most;
            empty without a gate or without item ids.
        first_stage: epochs of the model that the gate was fitted on; empty without one.
        first_stage_valid_auc: of its best epoch.
        valid_auc_without_pairs: of the same training without pairs, which goes with a gate that is fitted beforehand,
            and whose model is taken where its AUC is at least as high; None without such a gate.
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
    alpha_by_epoch: list[dict[str, float]] = []
    reliability: list[ReliabilityCell] = []
    calibration_error: float | None = None
    contested_pairs: list[ContestedPair] = []
    first_stage: list[Epoch] = []
    first_stage_valid_auc: float | None = None
    valid_auc_without_pairs: float | None = None


def train(
    *,
    vocabulary: features.VocabularySizes,
    model_config: ModelConfig,
    gate_config: GateConfig,
    loss_config: LossConfig,
    train_config: TrainConfig,
    rows: Callable[[], tf.data.Dataset],
    valid: tf.data.Dataset,
    pairs: Mapping[str, tf.Tensor] | None,
    item_vectors: np.ndarray | None = None,
    item_ids: Sequence[str] = (),
    gate_weights: Mapping[str, float] | None = None,
    log_dir: str | None = None,
) -> tuple[RankingModel, TrainingReport]:
    """Trains until the validation AUC has not risen for `patience` epochs; returns the best epoch's weights.

    With a gate that is fitted beforehand there are three trainings: the first stage's, the one with pairs, and the same
    without. Of the last two the model with the higher validation AUC is returned: an LLM of no use costs time alone.

    Args:
        vocabulary: of the transform graph.
        model_config, gate_config, loss_config, train_config: as named.
        rows: gives shuffled batches of transformed train rows; asked for each training, so that the order in which the
            model that is served sees them does not depend on a first stage.
        valid: batches of transformed validation rows.
        pairs: all of models.inputs.load_pairs; None if and only if loss_config.llm_weight is 0.
        item_vectors: float32 [items + 2, any] by item index, exactly with model_config.item_vectors_file.
        item_ids: of the vocabulary, number n for index n + 1, for the report; empty names no pairs.
        gate_weights: TrainingReport.gate_weights of another training, taken instead of being fitted; for modes
            advantage and fused.
        log_dir: for TensorBoard; None writes nothing.

    Raises:
        ValueError: pairs do not go with llm_weight, the validation rows hold one label only, or a gate that is fitted
            beforehand has no labelled probes.
        GateCollapse: as gate.on_collapse has it.
    """
    if (pairs is None) != (loss_config.llm_weight == 0):
        raise ValueError(
            "pairs must be given exactly when llm_weight is above 0, got llm_weight "
            f"{loss_config.llm_weight} {'without' if pairs is None else 'with'} pairs; "
            "set LossConfig.llm_weight"
        )
    start = time.monotonic()

    def fit_without_pairs(rows: Callable[[], tf.data.Dataset], stage: str) -> _Fit:
        keras.utils.set_random_seed(train_config.seed)
        model = RankingModel(vocabulary, model_config, gate_config, LossConfig(llm_weight=0.0), item_vectors)
        return _fit(model, training_batches(rows(), None), _Monitor(valid, f"{stage}, "), train_config)

    first: _Fit | None = None
    fitted: FittedGate | None = None
    chosen = None if pairs is None else labelled(pairs)
    asked = pairs
    if pairs is not None and _is_fitted_beforehand(gate_config, loss_config):
        chosen = held_out(pairs, gate_config.held_out_share)
        histories = np.asarray(pairs[features.HISTORY_ITEM_INDICES])[chosen]
        first = fit_without_pairs(lambda: without_contexts(rows(), histories), "first stage")
        passes = gate_config.dropout_passes if "dropout_variance" in gate_config.signals else None
        asked = pairs = without_own_choice(with_first_stage(pairs, first.model, dropout_passes=passes))
        fitted = FITTED_GATES[gate_config.mode](gate_config)
        probes = {name: tf.boolean_mask(values, chosen) for name, values in asked.items()}
        if gate_weights is None:
            fitted.fit(*pair_input(probes), probes[features.PROBE_LABEL])
        else:
            fitted.take_weights(gate_weights)
        if isinstance(fitted, FusedGate):
            pairs = fused(asked, fitted)
    if pairs is not None and fitted is None and loss_config.form == "distillation":
        pairs = with_soft_labels(pairs)

    keras.utils.set_random_seed(train_config.seed)
    model = RankingModel(vocabulary, model_config, gate_config, loss_config, item_vectors, fitted)
    gate = fitted or model.gate
    endless = None
    if pairs is not None:
        endless = pair_batches(pairs, pairs_per_batch=train_config.pairs_per_batch, seed=train_config.seed)
    is_learnt = isinstance(gate, PaperGate)
    monitor = _Monitor(valid, gate_pairs=asked if is_learnt else None)
    has_own_rate = isinstance(gate, SupervisedGate)
    fit = _fit(
        model,
        training_batches(rows(), endless),
        monitor,
        train_config,
        gate_optimizer=keras.optimizers.Adam(gate_config.learning_rate) if has_own_rate else None,
        log_dir=log_dir,
    )
    model, best_valid_auc, valid_auc_without_pairs = fit.model, fit.best_valid_auc, None
    if first is not None:
        plain = fit_without_pairs(rows, "without pairs")
        valid_auc_without_pairs = plain.best_valid_auc
        if valid_auc_without_pairs >= fit.best_valid_auc:
            _LOGGER.warning(
                "The pairs do not help: validation AUC %.4f with them, %.4f without, so the model that was trained "
                "without them is taken; ask a better LLM (llm.strategy, llm.model) or about more pairs "
                "(llm.budget.pairs), or lower loss.llm_weight",
                fit.best_valid_auc,
                valid_auc_without_pairs,
            )
            model, best_valid_auc = plain.model, valid_auc_without_pairs
    on_gate = {}
    if asked is not None and gate is not None:
        assert chosen is not None
        on_gate = _gate_report(model, gate, asked, chosen, item_ids)
    report = TrainingReport(
        epochs=monitor.epochs,
        best_epoch=fit.best_epoch,
        best_valid_auc=best_valid_auc,
        train_rows=monitor.train_rows,
        seconds=time.monotonic() - start,
        alpha_by_epoch=monitor.alpha_quantiles,
        first_stage=first.epochs if first else [],
        first_stage_valid_auc=first.best_valid_auc if first else None,
        valid_auc_without_pairs=valid_auc_without_pairs,
        **on_gate,
    )
    if report.alpha_collapse is not None:
        message = _COLLAPSED[report.alpha_collapse].format(mode=gate_config.mode)
        if gate_config.on_collapse == "fail":
            raise GateCollapse(f"{message}; set gate.mode or gate.signals, or gate.on_collapse to warn")
        _LOGGER.warning(message)
    return model, report


_COLLAPSED = {
    "closed": "The gate has collapsed: alpha is below .05 on 95% of the pairs (mode {mode}), so the LLM has no say, "
    "although the probes do not show that it is useless",
    "open": "The gate has collapsed: alpha is above .95 on 95% of the pairs (mode {mode}), so the LLM is trusted "
    "everywhere, although the probes do not show that it is right everywhere",
    "inverted": "The gate is inverted (mode {mode}): it is widest open where the probes show the LLM's smallest "
    "advantage; compare mean_alpha with llm_right and model_right in the report's map",
}
"""By TrainingReport.alpha_collapse."""


def _is_fitted_beforehand(gate_config: GateConfig, loss_config: LossConfig) -> bool:
    """Whether the gate takes part in the loss and is fitted on a first stage."""
    if loss_config.form == "pairwise":
        return gate_config.mode in FITTED_GATES
    return loss_config.form == "distillation" and gate_config.mode == "fused"


class _Fit(NamedTuple):
    """A model with the weights of its best epoch."""

    model: RankingModel
    epochs: list[Epoch]
    best_epoch: int
    best_valid_auc: float


def _fit(
    model: RankingModel,
    batches: tf.data.Dataset,
    monitor: "_Monitor",
    config: TrainConfig,
    *,
    gate_optimizer: keras.optimizers.Optimizer | None = None,
    log_dir: str | None = None,
) -> _Fit:
    """Trains until the validation AUC has not risen for `patience` epochs."""
    model.compile(optimizer=LazyAdam(config.learning_rate), gate_optimizer=gate_optimizer)
    stopping = keras.callbacks.EarlyStopping(
        monitor="valid_auc", mode="max", patience=config.patience, restore_best_weights=True
    )
    callbacks = [monitor, stopping]
    if log_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False, profile_batch=0))
    model.fit(batches, epochs=config.epochs, callbacks=callbacks, verbose=0)
    return _Fit(
        model=model,
        epochs=monitor.epochs,
        best_epoch=stopping.best_epoch + 1,
        best_valid_auc=monitor.epochs[stopping.best_epoch].valid_auc,
    )


def _gate_report(
    model: RankingModel,
    gate: FrozenGate,
    pairs: Mapping[str, tf.Tensor],
    probes: np.ndarray,
    item_ids: Sequence[str],
) -> dict[str, Any]:
    """What TrainingReport says of the gate: `pairs` in the LLM's order, `probes` those to measure on."""
    alpha, margin = pair_alpha(judge(model, gate), pairs)
    cells = reliability_cells(alpha, pairs, probes)
    weights: dict[str, float] = {}
    if isinstance(gate, PaperGate):
        names = (*gate.config.signals, "bias")
        values = [*gate.w.numpy(), gate.b.numpy()]
        weights = {name: float(value) for name, value in zip(names, values, strict=True)}
    elif isinstance(gate, FittedGate):
        weights = gate.named_weights()
    return {
        "gate": gate_cells(alpha, pairs, cold_max_history=gate.config.cold_max_history),
        "gate_weights": weights,
        "alpha_quantiles": alpha_quantiles(alpha),
        "alpha_collapse": collapse(alpha, cells) if weights else None,
        "reliability": cells,
        "calibration_error": _calibration_error(gate, alpha, pairs, probes),
        "contested_pairs": contested_pairs(alpha, margin, pairs, item_ids) if item_ids else [],
    }


def contested_pairs(
    alpha: np.ndarray, margin: np.ndarray, pairs: Mapping[str, tf.Tensor], item_ids: Sequence[str]
) -> list[ContestedPair]:
    """The pairs of the largest alpha * max(0, -margin), one a context, largest first.

    Args:
        alpha: float32 [pairs].
        margin: float32 [pairs], the model's logit of the preferred item minus that of the other.
        pairs: in the LLM's order.
        item_ids: number n for index n + 1.
    """

    def names(indices: Iterable[int]) -> list[str]:
        # The last index is every item that the train split does not hold.
        return [item_ids[index - 1] for index in indices if 0 < index <= len(item_ids)]

    effect = alpha * np.maximum(0.0, -margin)
    found: dict[bytes, ContestedPair] = {}
    for n in np.argsort(-effect, kind="stable"):
        if effect[n] <= 0 or len(found) == _CONTESTED_PAIRS:
            break
        indices = np.asarray(pairs[features.HISTORY_ITEM_INDICES][n])
        preferred, other = (names([int(pairs[p + features.ITEM_INDEX][n])]) for p in (PREFERRED, OTHER))
        if preferred and other and indices.tobytes() not in found:
            found[indices.tobytes()] = ContestedPair(
                history_item_ids=names(indices),
                preferred_item_id=preferred[0],
                other_item_id=other[0],
                model_margin=float(margin[n]),
                alpha=float(alpha[n]),
                probe_label=int(pairs[features.PROBE_LABEL][n]),
            )
    return list(found.values())


def _calibration_error(
    gate: FrozenGate, alpha: np.ndarray, pairs: Mapping[str, tf.Tensor], probes: np.ndarray
) -> float | None:
    if not probes.any():
        return None
    right = np.asarray(pairs[features.PROBE_LABEL])[probes] == 1
    if isinstance(gate, PaperGate):
        return calibration_error(alpha[probes], right)
    if isinstance(gate, FusedGate):
        held = {name: tf.boolean_mask(values, probes) for name, values in pairs.items()}
        soft = [tf.sigmoid(gate.fused_logit(side)).numpy() for side in pair_input(held)]
        return calibration_error(np.concatenate(soft), np.concatenate([right, ~right]))
    return None


def alpha_quantiles(alpha: np.ndarray) -> dict[str, float]:
    """Of alpha, by share; empty without pairs."""
    return {f"{share:g}": float(np.quantile(alpha, share)) for share in _QUANTILES} if len(alpha) else {}


def with_soft_labels(pairs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The pairs with SOFT_LABEL, the probability sigmoid(a y + b) that the user chooses the item with LLM score y.

    a and b are fitted by maximum likelihood on the labelled probes, one chosen and one other item a pair.

    Raises:
        ValueError: no pair is a probe.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    labels = np.asarray(pairs[features.PROBE_LABEL])
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    preferred, other = (np.asarray(pairs[name]) for name in names)
    probes = labelled(pairs)
    if not probes.any():
        raise ValueError(
            "distillation needs labelled probes to turn scores into probabilities, got none; raise "
            "llm.candidates.probe_fraction"
        )
    scores = np.concatenate([preferred[probes], other[probes]])
    chosen = np.concatenate([labels[probes], 1 - labels[probes]])
    fit = LogisticRegression(C=np.inf).fit(scores[:, np.newaxis], chosen)
    soft = {}
    for prefix, name in zip((PREFERRED, OTHER), names, strict=True):
        probability = fit.predict_proba(np.asarray(pairs[name])[:, np.newaxis])[:, 1]
        soft[prefix + features.SOFT_LABEL] = tf.constant(probability, tf.float32)
    return {**pairs, **soft}


def predict(score: Scorer, rows: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of all rows, float32 [rows] each."""
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


Judge = Callable[[Mapping[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]
"""A batch of pairs -> alpha and the margin of its logits, float32 [batch] each."""


def judge(model: RankingModel, gate: FrozenGate) -> Judge:
    """The gate without dropout, as a graph: traced once for all pairs that it is asked about.

    The logits are the first stage's where the pairs hold them, else the model's.
    """

    @tf.function(reduce_retracing=True)
    def alpha_and_margin(batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        has_logits = PREFERRED + features.FIRST_STAGE_LOGIT in batch
        logits = None if has_logits else [model(pair_side(batch, prefix)) for prefix in (PREFERRED, OTHER)]
        preferred, other = pair_input(batch, logits)
        return gate.alpha(preferred, other), preferred.logit - other.logit

    return alpha_and_margin


def pair_alpha(judged: Judge, pairs: Mapping[str, tf.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """alpha of each pair and the margin of its logits, float32 [pairs] each."""
    batches = tf.data.Dataset.from_tensor_slices(dict(pairs)).batch(_ROWS_AT_ONCE)
    parts = [[part.numpy() for part in judged(batch)] for batch in batches]
    alphas, margins = zip(*parts, strict=True)
    return np.concatenate(alphas), np.concatenate(margins)


class _Monitor(keras.callbacks.Callback):
    """Validation AUC into `logs`, for EarlyStopping and TensorBoard; times and logs each epoch.

    Args:
        valid: batches of validation rows.
        stage: begins the line that is logged.
        gate_pairs: whose alpha, of the first few thousand, is noted after each epoch; None notes none.
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
        if self._gate_pairs is not None:
            alpha, _ = pair_alpha(self._judge, self._gate_pairs)
            self.alpha_quantiles.append(alpha_quantiles(alpha))
        _LOGGER.info(
            "%sepoch %d: validation AUC %.4f, %s, %.1f s", self._stage, epoch + 1, logs["valid_auc"], parts, seconds
        )

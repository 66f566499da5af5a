"""One cell of the matrix: trains one arm and says how it does on the test rows."""

import dataclasses
import gc
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from sklearn.metrics import roc_auc_score

from models import features, inputs, training
from models.features import OTHER, PREFERRED
from models.first_stage import context_fractions, turned_round
from models.item_vectors import read_item_vectors
from models.ranking import RankingModel, scorer
from pipeline.ablation.arms import ARMS, NONE, Arm
from pipeline.ablation.domain import SLICES, Columns, Domain, filled
from pipeline.ablation.statistics import delong, logistic_fusion
from pipeline.baseline import in_slice
from pipeline.config import Config, ConfigError

_ROWS_AT_ONCE = 4096
_ON_THE_GATE = {
    "gate",
    "gate_weights",
    "alpha_quantiles",
    "alpha_collapse",
    "alpha_by_epoch",
    "reliability",
    "calibration_error",
    "first_stage_valid_auc",
    "valid_auc_without_pairs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Logits of the evaluation rows, float32 [rows] each."""

    valid: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves.

    Attributes:
        scores: of the evaluation rows.
        valid_auc: of the best epoch.
        training: what the results file tells of it.
    """

    scores: Scores
    valid_auc: float
    training: dict[str, Any]


def fit_arm(
    domain: Domain, config: Config, arm: Arm, gate_weights: Mapping[str, float] | None = None
) -> tuple[RankingModel, training.TrainingReport]:
    """Fits the arm's model on the domain's train rows, stopped by the validation rows; reads no test row."""
    vectors = config.model.item_vectors_file
    pairs = None
    if config.loss.llm_weight > 0:
        pairs = share_of_contexts(domain.pairs, arm.scored_share)
        if arm.shuffled_scores:
            pairs = with_shuffled_scores(pairs, seed=config.train.seed)
    keras.backend.clear_session()
    gc.collect()
    return training.train(
        vocabulary=domain.vocabulary,
        model_config=config.model,
        gate_config=config.gate,
        loss_config=config.loss,
        train_config=config.train,
        rows=lambda: inputs.row_batches(domain.train, batch_size=config.train.batch_size, seed=config.train.seed),
        valid=inputs.row_batches(domain.valid, batch_size=_ROWS_AT_ONCE),
        pairs=pairs,
        item_vectors=None if vectors is None else read_item_vectors(vectors).by_index(domain.item_ids),
        gate_weights=gate_weights,
    )


def train_arm(domain: Domain, config: Config, arm: Arm, gate_weights: Mapping[str, float] | None = None) -> Trained:
    """Fits the arm's model, then scores the validation and the test rows once."""
    model, report = fit_arm(domain, config, arm, gate_weights)
    score = scorer(model)
    valid, test = (
        training.predict(score, inputs.row_batches(rows, batch_size=_ROWS_AT_ONCE))[1]
        for rows in (domain.valid, domain.test)
    )
    return Trained(
        scores=Scores(valid=valid, test=test),
        valid_auc=report.best_valid_auc,
        training={
            "best_epoch": report.best_epoch,
            "epochs": len(report.epochs),
            "valid_auc_by_epoch": [round(epoch.valid_auc, 5) for epoch in report.epochs],
            **report.model_dump(mode="json", include=_ON_THE_GATE),
        },
    )


def fuse(domain: Domain, none: Scores) -> Trained:
    """Late fusion: a * logit + b * teacher + c, fitted on the validation rows.

    Raises:
        ConfigError: the teacher has no scores of the evaluation rows.
    """
    if domain.teacher is None:
        raise ConfigError(
            f"late_fusion needs the teacher's scores of {domain.name}'s validation and test rows, which only vectors "
            "in a file give for nothing; set llm.embedding_file, or take late_fusion out of arms"
        )
    teacher = domain.teacher
    usable = ~np.isnan(teacher["valid"])
    labels = np.asarray(domain.valid[features.LABEL])
    a, b, c = logistic_fusion(labels[usable], none.valid[usable], teacher["valid"][usable])
    valid, test = (
        a * getattr(none, split) + b * filled(teacher[split], like=teacher["valid"]) + c for split in ("valid", "test")
    )
    return Trained(
        scores=Scores(valid=valid, test=test),
        valid_auc=float(roc_auc_score(labels, valid)),
        training={"fusion": {"logit": a, "teacher": b, "bias": c}, "rows_without_teacher": int((~usable).sum())},
    )


def share_of_contexts(pairs: Columns, share: float) -> Columns:
    """The pairs of a share of the contexts, chosen by a hash of the history: a smaller share is part of a larger."""
    if share == 1.0:
        return pairs
    kept = context_fractions(pairs[features.HISTORY_ITEM_INDICES]) < share
    return {name: np.asarray(values)[kept] for name, values in pairs.items()}


def with_shuffled_scores(pairs: Columns, *, seed: int) -> Columns:
    """The pairs with all scores dealt anew; the item that now has the higher one is the preferred."""
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    scores = np.concatenate([np.asarray(pairs[name]) for name in names])
    first, second = np.split(np.random.default_rng(seed).permutation(scores), 2)
    dealt = {**pairs, names[0]: tf.constant(first), names[1]: tf.constant(second)}
    return turned_round(dealt, tf.constant(second > first))


def differences(domain: Domain, scores: np.ndarray, none: np.ndarray) -> dict[str, dict[str, float] | None]:
    """AUC minus the AUC of the arm `none` by slice, with DeLong's standard error; None for a slice of one class."""
    labels = np.asarray(domain.test[features.LABEL])
    result: dict[str, dict[str, float] | None] = {}
    for name in SLICES:
        inside = in_slice(domain.test, name)
        if min(np.bincount(labels[inside], minlength=2)) < 2:
            result[name] = None
            continue
        aucs, covariance = delong(labels[inside], np.stack([scores, none])[:, inside])
        variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
        result[name] = {"difference": float(aucs[0] - aucs[1]), "standard_error": float(max(variance, 0.0) ** 0.5)}
    return result


def fingerprint(domain: Domain, hyperparameters: dict[str, Any], arm: Arm, adds_to: Scores | None = None) -> str:
    """16 hex digits that change with whatever decides a cell's result but the code and the seed's noise.

    Args:
        domain: its hashes take part.
        hyperparameters: of the cell.
        arm: of the cell.
        adds_to: for late fusion the scores of the arm `none`, which come out a little different in each training.
    """
    hashes = domain.hashes
    if arm == ARMS[NONE]:  # reads neither pairs nor the teacher
        hashes = {name: value for name, value in hashes.items() if name != "pairs"}
        train = {name: value for name, value in hyperparameters["train"].items() if name != "pairs_per_batch"}
        hyperparameters = {"model": hyperparameters["model"], "train": train}
    # Without defaults: a field that Arm gains later leaves the marks of the arms that do without it.
    what: list[Any] = [
        hashes,
        hyperparameters,
        arm.model_dump(mode="json", exclude_defaults=True, exclude={"backbones"}),
    ]
    if adds_to is not None:
        what.append([hashlib.sha256(scores.tobytes()).hexdigest() for scores in (adds_to.valid, adds_to.test)])
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class BaselineScores:
    """Scores of the arm `none`, on disk: other arms are compared with them and late fusion adds to them."""

    def __init__(self, directory: pathlib.Path):
        self._directory = directory

    def save(self, fingerprint: str, scores: Scores) -> None:
        """Keeps the scores of the training that `fingerprint` names."""
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = self._directory / f"{fingerprint}.unfinished.npz"
        np.savez(unfinished, valid=scores.valid, test=scores.test)
        unfinished.replace(self._file(fingerprint))

    def load(self, fingerprint: str) -> Scores | None:
        """What was saved; None where nothing was."""
        file = self._file(fingerprint)
        if not file.is_file():
            return None
        with np.load(file) as archive:
            return Scores(valid=archive["valid"], test=archive["test"])

    def _file(self, fingerprint: str) -> pathlib.Path:
        return self._directory / f"{NONE}-{fingerprint}.npz"

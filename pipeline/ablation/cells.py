"""One cell of the matrix: trains one arm and evaluates it on the test rows."""

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

from sllmr.models import features, inputs
from sllmr.models.base_model import context_fractions, turned_round
from sllmr.models.clustered_auc import compare_auc
from sllmr.models.features import OTHER, PREFERRED
from sllmr.models.ranking import RankingModel, scorer
from sllmr.models.training.loop import predict
from sllmr.models.training.recipe import train
from sllmr.models.training.report import TrainingReport
from sllmr.pipeline.ablation.arms import ARMS, NONE, Arm
from sllmr.pipeline.ablation.domain import SLICES, Columns, Domain, filled
from sllmr.pipeline.ablation.statistics import logistic_fusion
from sllmr.pipeline.baseline import in_slice
from sllmr.pipeline.config import Config, ConfigError

_ROWS_AT_ONCE = 4096
_RANKING, _RANKING_HASH = "ranking_", "hash_of_ranking_"
_ON_THE_GATE = {
    "gate",
    "gate_weights",
    "alpha_quantiles",
    "alpha_collapse",
    "alpha_by_epoch",
    "reliability",
    "calibration_error",
    "base_model_valid_auc",
    "valid_auc_without_pairs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingScores:
    """Logits of the candidates of a ranking.

    Attributes:
        logits: float32 [users, candidates], NaN where there is no candidate.
        hash: of the ranking.
    """

    logits: np.ndarray
    hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Logits of a cell's model for everything that the arms are compared on.

    Attributes:
        valid, test: logits of the evaluation rows, float32 [rows] each.
        rankings: by name of the ranking; without those that the model did not score.
    """

    valid: np.ndarray
    test: np.ndarray
    rankings: Mapping[str, RankingScores] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves.

    Attributes:
        scores: of the evaluation rows.
        valid_auc: of the best epoch.
        training: its entry `training` in the results file.
    """

    scores: Scores
    valid_auc: float
    training: dict[str, Any]


def fit_arm(
    domain: Domain, config: Config, arm: Arm, gate_weights: Mapping[str, float] | None = None
) -> tuple[RankingModel, TrainingReport]:
    """Fits the arm's model on the domain's train rows, stopped by the validation rows; reads no test row.

    It fits the same model as components.trainer.run_fn with the same configuration, which reads the rows from files
    instead of from memory.
    """
    vectors = None
    if config.model.item_vectors:
        assert domain.item_vectors is not None
        vectors = domain.item_vectors.by_index(domain.item_ids)
    pairs = None
    if config.loss.llm_weight > 0:
        pairs = fraction_of_contexts(domain.pairs, arm.scored_fraction)
        if arm.scores == "permuted":
            pairs = with_permuted_scores(pairs, seed=config.train.seed, fraction=arm.permuted_fraction)
        elif arm.scores == "constant":
            pairs = with_constant_scores(pairs)
    keras.backend.clear_session()
    gc.collect()
    return train(
        vocabulary=domain.vocabulary,
        model_config=config.model,
        gate_config=config.gate,
        loss_config=config.loss,
        train_config=config.train,
        rows=lambda: inputs.row_batches(
            domain.train,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            shuffle_buffer=config.train.shuffle_buffer,
        ),
        valid=inputs.row_batches(domain.valid, batch_size=_ROWS_AT_ONCE),
        pairs=pairs,
        item_vectors=vectors,
        new_items=_new_items(domain),
        gate_weights=gate_weights,
        choose_better=config.train.compare,
    )


def _new_items(domain: Domain) -> np.ndarray:
    """bool [items + 2] by item index: candidates of train rows without a train positive."""
    new = np.zeros(domain.vocabulary.items + 2, bool)
    is_new = np.asarray(domain.train[features.ITEM_TRAIN_COUNT]) == 0
    new[np.asarray(domain.train[features.ITEM_INDEX])[is_new]] = True
    return new


def train_arm(domain: Domain, config: Config, arm: Arm, gate_weights: Mapping[str, float] | None = None) -> Trained:
    """Fits the arm's model, then scores the validation rows, the test rows, and the rankings' candidates once."""
    model, report = fit_arm(domain, config, arm, gate_weights)
    score = scorer(model)
    valid, test = (
        predict(score, inputs.row_batches(rows, batch_size=_ROWS_AT_ONCE))[1] for rows in (domain.valid, domain.test)
    )
    rankings = {
        name: RankingScores(logits=ranking.scores(score), hash=ranking.hash)
        for name, ranking in domain.rankings.items()
    }
    return Trained(
        scores=Scores(valid=valid, test=test, rankings=rankings),
        valid_auc=report.best_valid_auc,
        training={
            "best_epoch": report.best_epoch,
            "epochs": len(report.epochs),
            "valid_auc_by_epoch": [round(epoch.valid_auc, 5) for epoch in report.epochs],
            **report.model_dump(mode="json", include=_ON_THE_GATE),
        },
    )


def fuse(domain: Domain, none: Scores) -> Trained:
    """Late fusion: a * logit + b * llm_score + c, fitted on the validation rows.

    The result has a ranking only if both the LLM scorer and `none` scored its candidates: the scores of `none` may be
    from before there were rankings, or of other candidates.

    Raises:
        ConfigError: the LLM scorer has no scores of the evaluation rows.
    """
    if domain.llm_scorer is None:
        raise ConfigError(
            f"late_fusion needs the LLM's scores of {domain.name}'s validation and test rows, which only item "
            "vectors give without requests; set llm.strategy: embedding, or take late_fusion out of arms"
        )
    scored = domain.llm_scorer
    usable = ~np.isnan(scored["valid"])
    labels = np.asarray(domain.valid[features.LABEL])
    a, b, c = logistic_fusion(labels[usable], none.valid[usable], scored["valid"][usable])
    valid, test = (
        a * getattr(none, split) + b * filled(scored[split], like=scored["valid"]) + c for split in ("valid", "test")
    )
    rankings = {}
    for name, ranking in domain.rankings.items():
        of_none = none.rankings.get(name)
        if ranking.llm_scores is None or of_none is None or of_none.hash != ranking.hash:
            continue
        logits = a * of_none.logits.astype(np.float64) + b * filled(ranking.llm_scores, like=scored["valid"]) + c
        rankings[name] = RankingScores(logits=logits.astype(np.float32), hash=ranking.hash)
    return Trained(
        scores=Scores(valid=valid, test=test, rankings=rankings),
        valid_auc=float(roc_auc_score(labels, valid)),
        training={"fusion": {"logit": a, "llm_scorer": b, "bias": c}, "rows_without_score": int((~usable).sum())},
    )


def fraction_of_contexts(pairs: Columns, fraction: float) -> Columns:
    """The pairs of a fraction of the contexts, selected by a hash of the history: a smaller one is part of a larger."""
    if fraction == 1.0:
        return pairs
    kept = context_fractions(pairs[features.HISTORY_ITEM_INDICES]) < fraction
    return {name: np.asarray(values)[kept] for name, values in pairs.items()}


def with_permuted_scores(pairs: Columns, *, seed: int, fraction: float = 1.0) -> Columns:
    """The pairs with a fraction of the scores permuted; the item with the higher new score becomes the preferred one.

    With the same seed, a larger fraction permutes all scores that a smaller one does, and more.
    """
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    scores = np.concatenate([np.asarray(pairs[name]) for name in names])
    permuted = np.random.default_rng([seed, 1]).random(len(scores)) < fraction
    scores[permuted] = np.random.default_rng(seed).permutation(scores[permuted])
    first, second = np.split(scores, 2)
    return turned_round(
        {**pairs, names[0]: tf.constant(first), names[1]: tf.constant(second)}, tf.constant(second > first)
    )


def with_constant_scores(pairs: Columns) -> Columns:
    """The pairs with 0.5 in place of every score."""
    names = [prefix + features.LLM_SCORE for prefix in (PREFERRED, OTHER)]
    return {**pairs, **{name: tf.fill(tf.shape(pairs[name]), 0.5) for name in names}}


def differences(domain: Domain, scores: np.ndarray, other: np.ndarray) -> dict[str, dict[str, float] | None]:
    """Test AUC of `scores` minus that of `other` by slice, with the standard error of the difference, paired and
    clustered by user; None for a slice in which fewer than two users have a positive or fewer than two a negative.
    """
    labels, users = (np.asarray(domain.test[name]) for name in (features.LABEL, features.USER_HASH))
    result: dict[str, dict[str, float] | None] = {}
    for name in SLICES:
        inside = in_slice(domain.test, name)
        found = compare_auc(users[inside], labels[inside], scores[inside], other[inside])
        result[name] = None
        if found.difference is not None and found.standard_error is not None:
            result[name] = {"difference": found.difference, "standard_error": found.standard_error}
    return result


def fingerprint(domain: Domain, hyperparameters: dict[str, Any], arm: Arm, adds_to: Scores | None = None) -> str:
    """16 hex digits that change with everything that decides a cell's result, except the code and training noise.

    Args:
        domain: its hashes take part.
        hyperparameters: of the cell.
        arm: of the cell.
        adds_to: for late fusion the scores of the arm `none`, which come out a little different in each training.
    """
    hashes = domain.hashes
    if arm == ARMS[NONE]:  # reads neither pairs nor the LLM scorer
        hashes = {name: value for name, value in hashes.items() if name != "pairs"}
        train = {name: value for name, value in hyperparameters["train"].items() if name != "pairs_per_batch"}
        hyperparameters = {"model": hyperparameters["model"], "train": train}
    # Without defaults, so that a field that Arm gains later does not change the fingerprints of arms without it.
    what: list[Any] = [
        hashes,
        hyperparameters,
        arm.model_dump(mode="json", exclude_defaults=True, exclude={"backbones"}),
    ]
    if adds_to is not None:
        what.append([hashlib.sha256(scores.tobytes()).hexdigest() for scores in (adds_to.valid, adds_to.test)])
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class CellScores:
    """Scores of a domain's cells, on disk: the cells of a block are compared with each other, and late fusion adds to
    those of the arm `none`.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory

    def save(self, arm: str, fingerprint: str, scores: Scores) -> None:
        """Keeps the scores of the training that `arm` and `fingerprint` name."""
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = self._directory / f"{fingerprint}.unfinished.npz"
        rankings: dict[str, Any] = {}
        for name, ranking in scores.rankings.items():
            rankings |= {f"{_RANKING}{name}": ranking.logits, f"{_RANKING_HASH}{name}": np.array(ranking.hash)}
        np.savez(unfinished, valid=scores.valid, test=scores.test, **rankings)
        unfinished.replace(self._file(arm, fingerprint))

    def load(self, arm: str, fingerprint: str) -> Scores | None:
        """What was saved; None where nothing was."""
        file = self._file(arm, fingerprint)
        if not file.is_file():
            return None
        with np.load(file) as archive:
            rankings = {
                name: RankingScores(logits=archive[f"{_RANKING}{name}"], hash=str(archive[f"{_RANKING_HASH}{name}"]))
                for key in archive.files
                if key.startswith(_RANKING)
                for name in [key.removeprefix(_RANKING)]
            }
            return Scores(valid=archive["valid"], test=archive["test"], rankings=rankings)

    def _file(self, arm: str, fingerprint: str) -> pathlib.Path:
        return self._directory / f"{arm}-{fingerprint}.npz"

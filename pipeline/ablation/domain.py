"""One domain in memory: rows, pairs, the teacher's word on the evaluation rows, and what describes them."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from rich.console import Console
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from components.catalog import Item, read_catalog
from components.interactions_example_gen import report
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Candidate, Context
from components.llm_scorer.strategies import create_strategy
from models import features, inputs, preprocessing
from pipeline.baseline import auc_by_slice
from pipeline.config import Config
from pipeline.console import run_log
from pipeline.datasets.fetch import fetch_missing
from pipeline.folder_lock import folder_lock
from pipeline.graph import build_data_pipeline
from pipeline.summary import read_steps

SLICES = ("overall", "cold", "tail")
"""Of pipeline.slices, those of the paper's tables."""

Columns = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """What all cells of a domain share.

    Attributes:
        name: of the domain.
        vocabulary: sizes of the embedding tables.
        item_ids: number n has the index n + 1.
        train, valid, test: transformed rows, [rows] + shape each.
        pairs: models.inputs.load_pairs; empty where no arm needs any.
        teacher: raw score of each row by split `valid` and `test`, float32 [rows], NaN where there is none; None where
            the teacher cannot score evaluation rows for nothing.
        baselines: AUC by slice of popularity, and of the teacher alone.
        definitions: of the slices cold and tail, in words.
        hashes: SHA-256 of the rows of each split and of the pairs; the evaluation negatives' from the data report.
    """

    name: str
    vocabulary: features.VocabularySizes
    item_ids: tuple[str, ...]
    train: Columns
    valid: Columns
    test: Columns
    pairs: Columns
    teacher: dict[str, np.ndarray] | None
    baselines: dict[str, dict[str, float | None] | None]
    definitions: dict[str, str]
    hashes: dict[str, str]


def prepare_domain(name: str, config: Config, output: pathlib.Path, console: Console) -> Domain:
    """Runs the pipeline's steps up to PairBuilder, or takes their cached results, and loads what they wrote.

    Args:
        name: of the domain.
        config: of the domain; with loss.llm_weight 0 nothing is scored.
        output: folder of the domain's artifacts.
        console: gets the steps' progress.
    """
    output.mkdir(parents=True, exist_ok=True)
    fetch_missing(config, console)
    if config.loss.llm_weight > 0:
        config.llm.check_needs()
    pipeline = build_data_pipeline(config, output)
    with folder_lock(output, console):
        with run_log(output / "logs" / "data.log", console, steps=len(pipeline.components)):
            LocalDagRunner().run(pipeline)
        steps = {step: made.outputs for step, made in read_steps(output).items()}
    console.print("        loading rows and pairs", style="dim")

    transform_output = tft.TFTransformOutput(steps["Transform"]["transform_graph"])
    transform = transform_output.transform_features_layer()
    sizes = config.data.sizes
    splits = {
        split: os.path.join(steps["InteractionsExampleGen"]["examples"], f"Split-{split}")
        for split in ("train", "valid", "test")
    }
    columns = features.row_features(sizes)
    # From the raw rows: valid and test must keep the order in which the teacher reads them.
    rows = {split: inputs.load_rows([f"{folder}/*"], columns, transform) for split, folder in splits.items()}
    pairs: Columns = {}
    if "PairBuilder" in steps:
        pairs = inputs.load_pairs([os.path.join(steps["PairBuilder"]["pairs"], "Split-train", "*")], sizes, transform)
    catalog = read_catalog(steps["InteractionsExampleGen"]["catalog"])
    teacher = _teacher(config.llm.resolve(), splits, catalog) if pairs else None
    data = json.loads((pathlib.Path(steps["InteractionsExampleGen"]["report"]) / report.FILE_NAME).read_text())
    return Domain(
        name=name,
        vocabulary=preprocessing.vocabulary_sizes(transform_output, use_user_id=config.model.use_user_id),
        item_ids=tuple(item.decode() for item in transform_output.vocabulary_by_name(features.ITEMS)),
        train=rows["train"],
        valid=rows["valid"],
        test=rows["test"],
        pairs=pairs,
        teacher=teacher,
        baselines={
            "popularity": _aucs(rows["test"], rows["test"][features.ITEM_TRAIN_COUNT]),
            "teacher": None if teacher is None else _aucs(rows["test"], teacher["test"]),
        },
        definitions={part: data[part]["definition"] for part in ("cold", "tail")},
        hashes={
            **{f"{split}_rows": _sha256(_records(folder)) for split, folder in splits.items()},
            "pairs": _sha256(np.asarray(pairs[name]).tobytes() for name in sorted(pairs)),
            "evaluation_negatives": data["negatives"]["evaluation_hash"],
        },
    )


def filled(teacher: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The teacher's scores with NaN replaced by the mean of `like`: a row without a score is as likely as any."""
    return np.where(np.isnan(teacher), np.nanmean(like), teacher)


def _aucs(rows: Columns, scores: np.ndarray) -> dict[str, float | None]:
    return {name: values["auc"] for name, values in auc_by_slice(rows, scores, SLICES).items()}


def _teacher(config: LlmConfig, splits: Mapping[str, str], catalog: Mapping[str, Item]) -> dict[str, np.ndarray] | None:
    if config.embedding_file is None:
        return None
    strategy = create_strategy(config)
    scores = {}
    for split in ("valid", "test"):
        results = [strategy.results(context, ())[0] for context in _contexts(splits[split])]
        scores[split] = np.array([np.nan if r.raw_score is None else r.raw_score for r in results], np.float32)
    return scores


def _contexts(folder: str) -> Iterator[Context]:
    for record in _records(folder):
        columns = tf.train.Example.FromString(record).features.feature
        history = tuple(i.decode() for i in columns[features.HISTORY_ITEM_IDS].bytes_list.value if i)
        item_id = columns[features.ITEM_ID].bytes_list.value[0].decode()
        yield Context(
            context_id="",
            history_item_ids=history,
            history_length=len(history),
            candidates=(Candidate(item_id=item_id, role="evaluation"),),
        )


def _records(folder: str) -> Iterator[bytes]:
    yield from inputs.records([f"{folder}/*"], "rows").as_numpy_iterator()


def _sha256(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

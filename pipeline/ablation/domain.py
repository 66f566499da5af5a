"""One domain in memory: rows, pairs, the LLM scorer's scores of the evaluation rows, and descriptions."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from rich.console import Console

from sllmr.components.catalog import read_catalog
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.llm_scorer.config import EMBEDDING, LlmConfig
from sllmr.components.llm_scorer.messages import Candidate, Context
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.strategies import Strategy, create_strategy
from sllmr.models import features, inputs, preprocessing
from sllmr.models.item_vectors import VECTORS_FILE, ItemVectors, read_item_vectors
from sllmr.pipeline import run_folder
from sllmr.pipeline.ablation.ranking_candidates import Ranking, make_rankings
from sllmr.pipeline.ablation.ranking_config import RankingConfig
from sllmr.pipeline.baseline import auc_by_slice
from sllmr.pipeline.config import Config
from sllmr.pipeline.console import run_log
from sllmr.pipeline.dag_runner import DagRunner
from sllmr.pipeline.datasets.fetch import fetch_missing
from sllmr.pipeline.folder_lock import folder_lock, without_wildcards
from sllmr.pipeline.graph import build_data_pipeline
from sllmr.pipeline.inputs import check_inputs
from sllmr.pipeline.summary import read_steps

SLICES = ("overall", "cold", "tail")
"""The slices of components.evaluator.slices that the paper's tables show."""

Columns = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """The data that all cells of a domain have in common.

    Attributes:
        name: of the domain.
        vocabulary: sizes of the embedding tables.
        item_ids: the item at position n has the index n + 1.
        train, valid, test: transformed rows, [rows] + shape each.
        pairs: models.inputs.load_pairs; empty where no arm needs any.
        llm_scorer: raw score of each row by split `valid` and `test`, float32 [rows], NaN where there is none; None
            where the LLM scorer cannot score evaluation rows without requests.
        baselines: AUC by slice of popularity, and of the LLM scorer alone.
        definitions: of the slices cold and tail, in words.
        item_vectors: of the items; None where no arm reads them.
        rankings: by name, the candidates that every arm ranks; no part of the hashes, which decide what runs again.
        hashes: SHA-256 of the rows of each split and of the pairs; the evaluation negatives' from the data report.
    """

    name: str
    vocabulary: features.VocabularySizes
    item_ids: tuple[str, ...]
    train: Columns
    valid: Columns
    test: Columns
    pairs: Columns
    llm_scorer: dict[str, np.ndarray] | None
    baselines: dict[str, dict[str, float | None] | None]
    definitions: dict[str, str]
    hashes: dict[str, str]
    item_vectors: ItemVectors | None = None
    rankings: Mapping[str, Ranking] = dataclasses.field(default_factory=dict)


def prepare_domain(
    name: str, config: Config, output: pathlib.Path, console: Console, ranking: RankingConfig | None = None
) -> Domain:
    """Runs the pipeline's steps up to PairBuilder, or takes their cached results, and loads what they wrote.

    Args:
        name: of the domain.
        config: of the domain; with loss.llm_weight 0 nothing is scored.
        output: folder of the domain's artifacts.
        console: gets the steps' progress.
        ranking: what the arms rank; None for nothing.
    """
    output.mkdir(parents=True, exist_ok=True)
    fetch_missing(config, console)
    check_inputs(config)
    if config.loss.llm_weight > 0:
        check_needs(config.llm)
    folder = without_wildcards(output)
    pipeline = build_data_pipeline(config, folder)
    with folder_lock(output, console):
        run_folder.prepare(output, pipeline.pipeline_info.pipeline_name, console)
        with run_log(output / "logs" / "data.log", console, steps=len(pipeline.components)):
            DagRunner(config.beam).run(pipeline)
        steps = {step: made.outputs for step, made in read_steps(folder).items()}
    console.print("        loading rows and pairs", style="dim")

    transform_output = tft.TFTransformOutput(steps["Transform"]["transform_graph"])
    transform = transform_output.transform_features_layer()
    sizes = config.data.feature_sizes
    splits = {
        split: os.path.join(steps["InteractionsExampleGen"]["examples"], f"Split-{split}")
        for split in ("train", "valid", "test")
    }
    # From the files that the Trainer reads, so that training sees the rows in the same order.
    train = inputs.load_rows(
        [os.path.join(steps["Transform"]["transformed_examples"], "Split-train", "*")],
        preprocessing.transformed_columns(transform_output, sizes, use_user_id=config.model.use_user_id),
    )
    # From the raw rows, in the order in which the LLM scorer reads them; Transform never writes the test rows.
    columns = features.row_features(sizes)
    rows = {split: inputs.load_rows([f"{splits[split]}/*"], columns, transform) for split in ("valid", "test")}
    pairs: Columns = {}
    if "PairBuilder" in steps:
        pairs = inputs.load_pairs([os.path.join(steps["PairBuilder"]["pairs"], "Split-train", "*")], sizes, transform)
    catalog = read_catalog(steps["InteractionsExampleGen"]["catalog"])
    vectors_file = vectors = None
    if "ItemEmbedder" in steps:
        vectors_file = os.path.join(steps["ItemEmbedder"]["item_vectors"], VECTORS_FILE)
        vectors = read_item_vectors(vectors_file)
    strategy = _without_requests(config.llm.with_item_vectors(vectors_file).resolve()) if pairs else None
    llm_scorer = None if strategy is None else _llm_scores(strategy, splits)
    rankings: Mapping[str, Ranking] = {}
    if ranking is not None:
        rankings = make_rankings(
            ranking,
            data=config.data,
            catalog=catalog,
            test=rows["test"],
            test_files=f"{splits['test']}/*",
            transform=transform,
            strategy=strategy,
        )
    data = read_report(steps["InteractionsExampleGen"]["report"])
    return Domain(
        name=name,
        vocabulary=preprocessing.vocabulary_sizes(transform_output, use_user_id=config.model.use_user_id, sizes=sizes),
        item_ids=tuple(item.decode() for item in transform_output.vocabulary_by_name(features.ITEMS)),
        train=train,
        valid=rows["valid"],
        test=rows["test"],
        pairs=pairs,
        llm_scorer=llm_scorer,
        baselines={
            "popularity": _aucs(rows["test"], rows["test"][features.ITEM_TRAIN_COUNT]),
            "llm_scorer": None if llm_scorer is None else _aucs(rows["test"], llm_scorer["test"]),
        },
        definitions={"cold": data.cold.definition, "tail": data.tail.definition},
        hashes={
            **{f"{split}_rows": _sha256(_records(folder)) for split, folder in splits.items()},
            "pairs": _sha256(np.asarray(pairs[name]).tobytes() for name in sorted(pairs)),
            "evaluation_negatives": data.negatives.evaluation_hash,
        },
        item_vectors=vectors,
        rankings=rankings,
    )


def filled(llm_scores: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The LLM scorer's scores with NaN replaced by the mean of `like`: a row without a score counts as average."""
    return np.where(np.isnan(llm_scores), np.nanmean(like), llm_scores)


def _aucs(rows: Columns, scores: np.ndarray) -> dict[str, float | None]:
    return {name: values["auc"] for name, values in auc_by_slice(rows, scores, SLICES).items()}


def _without_requests(config: LlmConfig) -> Strategy | None:
    """The LLM scorer if it scores without requests."""
    return create_strategy(config) if config.strategy == EMBEDDING else None


def _llm_scores(strategy: Strategy, splits: Mapping[str, str]) -> dict[str, np.ndarray]:
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

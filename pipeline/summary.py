"""summary.json: what a run did and found, read back from MLMD and the artifacts."""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from tfx.components.evaluator.constants import BLESSED_FILE_NAME

from components.catalog import read_catalog
from components.interactions_example_gen import report
from components.llm_scorer.item_text import describe
from components.llm_scorer.staleness import staleness
from components.pair_builder.transforms import COUNTS_FILE
from components.scores import LEDGER_FILE
from components.trainer import run_fn
from pipeline import baseline, evaluation
from pipeline.config import Config
from pipeline.graph import METADATA_FILE, SERVING_DIRECTORY


@dataclasses.dataclass(frozen=True)
class Step:
    """One component in the latest run.

    Attributes:
        seconds: wall time; of a cached step the time it took to find that out.
        cached: whether TFX took an earlier run's result.
        outputs: folder of each output artifact by key.
    """

    seconds: float
    cached: bool
    outputs: dict[str, str]


def read_steps(output: pathlib.Path) -> dict[str, Step]:
    """The latest run's steps by component id, in the order in which they ran."""
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(output / METADATA_FILE)
    connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READONLY
    store = MetadataStore(connection)
    run = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.id)
    steps = {}
    for execution in sorted(store.get_executions_by_context(run.id), key=lambda e: e.id):
        node = next(c for c in store.get_contexts_by_execution(execution.id) if c.type == "node")
        outputs = {}
        events = store.get_events_by_execution_ids([execution.id])
        written = {e.artifact_id: e for e in events if e.type in (proto.Event.OUTPUT, proto.Event.DECLARED_OUTPUT)}
        for artifact in store.get_artifacts_by_id(list(written)):
            key = next(step.key for step in written[artifact.id].path.steps if step.HasField("key"))
            outputs[key] = artifact.uri
        elapsed = execution.last_update_time_since_epoch - execution.create_time_since_epoch
        steps[node.name.rsplit(".", 1)[-1]] = Step(
            seconds=elapsed / 1000,
            cached=execution.last_known_state == proto.Execution.CACHED,
            outputs=outputs,
        )
    return steps


def collect(config: Config, output: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Everything that summary.json and the report hold.

    Args:
        config: of the run.
        output: the run's folder.
        seconds: wall time of the whole run.
    """
    steps = read_steps(output)
    evaluation_uri = steps["Evaluator"].outputs["evaluation"]
    blessed = os.path.exists(os.path.join(steps["Evaluator"].outputs["blessing"], BLESSED_FILE_NAME))
    test_rows = os.path.join(steps["InteractionsExampleGen"].outputs["examples"], "Split-test")
    training = _read_json(steps["Trainer"].outputs["model_run"], run_fn.REPORT_FILE)
    return {
        "name": config.name,
        "backbone": config.model.backbone,
        "gate": config.gate.mode if config.loss.llm_weight > 0 else None,
        "metrics": evaluation.slice_metrics(evaluation_uri),
        "popularity_baseline": baseline.popularity_auc(test_rows),
        "blessed": blessed,
        "not_blessed_because": [] if blessed else evaluation.validation_failures(evaluation_uri),
        "pushed_path": _latest_version(output / SERVING_DIRECTORY / config.name) if blessed else None,
        "llm": _scores(steps) if "LlmScorer" in steps else None,
        "gate_means": gate_means(training["gate"]),
        "training": training,
        "item_texts": _item_texts(training["contested_pairs"], steps["InteractionsExampleGen"].outputs["catalog"]),
        "data": _read_json(steps["InteractionsExampleGen"].outputs["report"], report.FILE_NAME),
        "seconds": round(seconds, 1),
        "steps": {name: {"seconds": round(step.seconds, 2), "cached": step.cached} for name, step in steps.items()},
        "config": config.model_dump(mode="json"),
    }


def _item_texts(pairs: list[dict[str, Any]], catalog_directory: str) -> dict[str, str]:
    """What prompts call the items of the pairs, by id."""
    if not pairs:
        return {}
    catalog = read_catalog(catalog_directory)
    ids = {i for p in pairs for i in (*p["history_item_ids"], p["preferred_item_id"], p["other_item_id"])}
    return {item_id: describe(catalog[item_id]) for item_id in sorted(ids)}


def _scores(steps: dict[str, Step]) -> dict[str, Any]:
    """The scorer's ledger, the scores' age today, and what PairBuilder made of them."""
    book = _read_json(steps["LlmScorer"].outputs["scores"], LEDGER_FILE)
    return {
        **book,
        # Today's: a scorer that TFX took from its cache wrote the ledger when it ran.
        "age": staleness(book, time.time()),
        "pairs": _read_json(steps["PairBuilder"].outputs["pairs"], COUNTS_FILE),
    }


def gate_means(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Mean alpha over the training pairs by slice; a slice without pairs is absent.

    A pair is cold by gate.cold_max_history and tail where either item is; see models.training.GateCell.
    """
    slices: dict[str, list[dict[str, Any]]] = {
        "overall": [c for c in cells if c["cold"] is not None],
        "cold": [c for c in cells if c["cold"] is True],
        "warm": [c for c in cells if c["cold"] is False],
        "tail": [c for c in cells if c["tail"] is True],
        "head": [c for c in cells if c["tail"] is False],
    }
    means = {}
    for name, part in slices.items():
        pairs = sum(c["pairs"] for c in part)
        if pairs:
            means[name] = sum(c["mean_alpha"] * c["pairs"] for c in part if c["pairs"]) / pairs
    return means


def _latest_version(directory: pathlib.Path) -> str | None:
    versions = sorted((d for d in directory.glob("*") if d.name.isdigit()), key=lambda d: int(d.name))
    return str(versions[-1]) if versions else None


def _read_json(directory: str, name: str) -> dict[str, Any]:
    with open(os.path.join(directory, name), encoding="utf-8") as file:
        return json.load(file)

"""Collects what a run did and found from MLMD and the artifacts."""

import dataclasses
import importlib.metadata
import os
import pathlib
import time

from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore

from sllmr.components.catalog import read_catalog
from sllmr.components.evaluator.decision import read_result
from sllmr.components.evaluator.probabilities import scores_are
from sllmr.components.example_validator.drift_report import read_drift_report
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.item_embedder.job import REPORT_FILE, EmbeddingReport
from sllmr.components.leakage_guard.report import LeakageReport, read_leakage_report
from sllmr.components.llm_comparison.verdict import FILE_NAME as COMPARISON_FILE
from sllmr.components.llm_comparison.verdict import Comparison, VectorsVerdict, Verdict
from sllmr.components.llm_scorer.quality.staleness import staleness
from sllmr.components.llm_scorer.results import read_ledger
from sllmr.components.llm_scorer.strategies.item_text import describe
from sllmr.components.model_info import data_hash
from sllmr.components.pair_builder.counts import read_counts
from sllmr.components.trainer import run_fn
from sllmr.models import artifact_files
from sllmr.models.training.report import ContestedPair, GateCell, TrainingReport
from sllmr.pipeline.code_version import code_version
from sllmr.pipeline.config import Config
from sllmr.pipeline.enough_pairs import of_run
from sllmr.pipeline.graph import METADATA_FILE, SERVING_DIRECTORY
from sllmr.pipeline.run_summary import LlmSummary, PopularityBaseline, RunOrigin, RunSummary, SliceSummary, StepTime

_PACKAGES = ("sllmr", "tensorflow", "tfx", "apache-beam")


@dataclasses.dataclass(frozen=True)
class Step:
    """One component in the latest run.

    Attributes:
        seconds: wall time; of a cached step, the time that TFX took to find its result in the cache.
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


def collect(config: Config, output: pathlib.Path, seconds: float) -> RunSummary:
    """Everything that summary.json and the report hold.

    Args:
        config: of the run.
        output: the run's folder.
        seconds: wall time of the whole run.
    """
    steps = read_steps(output)
    evaluated = read_result(steps["Evaluator"].outputs["evaluation"])
    refused = evaluated.decision.sentences("failed")
    if not _loads(steps):
        refused.append(
            f"serving.infra_validation_tag: tensorflow/serving:{config.serving.infra_validation_tag} did not load the"
            " model; its log is in the run's"
        )
    blessed = not refused
    training = _training(steps["Trainer"])
    data = read_report(steps["InteractionsExampleGen"].outputs["report"])
    llm = _scores(steps, config, data.splits["train"].positives) if "LlmScorer" in steps else None
    return RunSummary(
        name=config.name,
        verdict=_verdict(steps, llm, training),
        vectors_verdict=_vectors_verdict(steps),
        backbone=config.model.backbone,
        gate=config.gate.mode if config.loss.llm_weight > 0 else None,
        metrics={name: SliceSummary.of(m) for name, m in evaluated.slices.items()},
        popularity_baseline={name: PopularityBaseline.of(m) for name, m in evaluated.slices.items()},
        scores_are=scores_are(config.evaluation.positive_rate, evaluated.slices["overall"].metrics),
        decision=evaluated.decision,
        blessed=blessed,
        not_blessed_because=refused,
        pushed_path=_latest_version(output / SERVING_DIRECTORY / config.name) if blessed else None,
        llm=llm,
        item_vectors=_item_vectors(steps),
        gate_means=gate_means(training.gate),
        training=training,
        item_texts=_item_texts(training.contested_pairs, steps["InteractionsExampleGen"].outputs["catalog"]),
        data=data,
        drift=read_drift_report(steps["StrictExampleValidator"].outputs["anomalies"]),
        leakage=_leakage(steps),
        seconds=round(seconds, 1),
        run=RunOrigin(
            date=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            code=code_version(),
            versions={package: importlib.metadata.version(package) for package in _PACKAGES},
            data_hash=data_hash(data),
            seed=config.train.seed,
        ),
        set_keys=config.model_dump(mode="json", exclude_defaults=True),
        steps={name: StepTime(seconds=round(step.seconds, 2), cached=step.cached) for name, step in steps.items()},
        config=config,
    )


def _verdict(steps: dict[str, Step], llm: LlmSummary | None, training: TrainingReport) -> Verdict | None:
    """What LlmComparison found with the money and time that the LLM took; None if nothing was compared."""
    if "LlmComparison" not in steps or llm is None:
        return None
    known = llm.cost_usd is not None and llm.cost_of_cached_responses_usd is not None
    return Verdict(
        **dict(_comparison(steps["LlmComparison"])),
        cost_usd=(llm.cost_usd or 0) + (llm.cost_of_cached_responses_usd or 0) if known else None,
        seconds=round(llm.seconds + training.seconds, 1),
    )


def _vectors_verdict(steps: dict[str, Step]) -> VectorsVerdict | None:
    """The verdict on pairs that item vectors score; None without train.compare_vectors."""
    if "VectorComparison" not in steps:
        return None
    found = _comparison(steps["VectorComparison"])
    seconds = read_ledger(steps["VectorScorer"].outputs["scores"]).seconds
    return VectorsVerdict(
        answer=found.answer,
        users_needed=found.users_needed,
        slices=found.slices,
        seconds=round(seconds + _training(steps["TrainerWithVectorPairs"]).seconds, 1),
    )


def _comparison(step: Step) -> Comparison:
    return Comparison.model_validate_json(_content(step.outputs["comparison"], COMPARISON_FILE))


def _training(trainer: Step) -> TrainingReport:
    return TrainingReport.model_validate_json(_content(trainer.outputs["model_run"], run_fn.REPORT_FILE))


def _content(directory: str, name: str) -> bytes:
    with artifact_files.open(os.path.join(directory, name), "rb") as file:
        return file.read()


def _loads(steps: dict[str, Step]) -> bool:
    """Whether InfraValidator loaded the model; True if the run has no InfraValidator."""
    if "InfraValidator" not in steps:
        return True
    blessing = steps["InfraValidator"].outputs["blessing"]
    return artifact_files.exists(os.path.join(blessing, "INFRA_BLESSED"))  # as TFX names it


def _leakage(steps: dict[str, Step]) -> LeakageReport:
    """The report of the last LeakageGuard, which has checked the most."""
    name = "LeakageGuardOfPairs" if "LeakageGuardOfPairs" in steps else "LeakageGuard"
    return read_leakage_report(steps[name].outputs["report"])


def _item_vectors(steps: dict[str, Step]) -> EmbeddingReport | None:
    """The report of ItemEmbedder; None if no step reads item vectors."""
    if "ItemEmbedder" not in steps:
        return None
    return EmbeddingReport.model_validate_json(_content(steps["ItemEmbedder"].outputs["item_vectors"], REPORT_FILE))


def _item_texts(pairs: list[ContestedPair], catalog_directory: str) -> dict[str, str]:
    """What prompts call the items of the pairs, by id."""
    if not pairs:
        return {}
    catalog = read_catalog(catalog_directory)
    ids = {i for p in pairs for i in (*p.history_item_ids, p.preferred_item_id, p.other_item_id)}
    return {item_id: describe(catalog[item_id]) for item_id in sorted(ids)}


def _scores(steps: dict[str, Step], config: Config, train_positives: int) -> LlmSummary:
    book = read_ledger(steps["LlmScorer"].outputs["scores"])
    pairs = read_counts(steps["PairBuilder"].outputs["pairs"])
    costs = (book.cost_usd, book.cost_of_cached_responses_usd)
    enough = of_run(
        config,
        train_positives=train_positives,
        preference_pairs=pairs.pairs,
        scored_pairs=book.requested,
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        seconds=None if book.cached else book.seconds,
    )
    return LlmSummary(
        **dict(book),
        # The age now: a scorer that TFX took from its cache wrote its ledger in an earlier run.
        age=staleness(book, time.time()),
        pairs=pairs,
        enough_pairs=enough,
    )


def gate_means(cells: list[GateCell]) -> dict[str, float]:
    """Mean alpha over the training pairs by slice; a slice without pairs is absent.

    gate.short_history_max says what a short history is; a pair is tail if either item is. See
    models.training.report.GateCell.
    """
    slices = {
        "overall": [c for c in cells if c.short_history is not None],
        "short_history": [c for c in cells if c.short_history is True],
        "long_history": [c for c in cells if c.short_history is False],
        "tail": [c for c in cells if c.tail is True],
        "head": [c for c in cells if c.tail is False],
    }
    means = {}
    for name, part in slices.items():
        pairs = sum(c.pairs for c in part)
        if pairs:
            means[name] = sum(c.mean_alpha * c.pairs for c in part if c.mean_alpha is not None) / pairs
    return means


def _latest_version(directory: pathlib.Path) -> str | None:
    versions = sorted((d for d in directory.glob("*") if d.name.isdigit()), key=lambda d: int(d.name))
    return str(versions[-1]) if versions else None

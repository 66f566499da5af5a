"""The typed summary of a run, as summary.json."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from sllmr.components.evaluator.decision import Change, Decision, Measured, SliceMetrics
from sllmr.components.example_validator.drift_report import DriftReport
from sllmr.components.interactions_example_gen.data_report import DataReport
from sllmr.components.item_embedder.job import EmbeddingReport
from sllmr.components.leakage_guard.report import LeakageReport
from sllmr.components.llm_comparison.verdict import VectorsVerdict, Verdict
from sllmr.components.llm_scorer.results import ScoreAge, ScoringLedger
from sllmr.components.pair_builder.counts import PairCounts
from sllmr.models.metric_names import MetricName
from sllmr.models.training.report import TrainingReport
from sllmr.pipeline.config import Config
from sllmr.pipeline.enough_pairs import EnoughPairs


class StepTime(BaseModel):
    """Wall time of a step in seconds, and whether TFX took an earlier run's result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    cached: bool


class SliceSummary(BaseModel):
    """One slice of the test rows: the pooled AUC and its change at the top, every metric by name below.

    Attributes:
        auc: of the model; None if not measurable.
        lower, upper: of its 95% interval, clustered by user; None if too few users can be measured.
        baseline_auc: of the last blessed model; None without one.
        difference: auc - baseline_auc.
        difference_lower, difference_upper: of its 95% interval, paired and clustered by user.
        examples: rows.
        positives: rows of label 1.
        users: distinct ones.
        by_metric: by name, see models.metrics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float | None
    lower: float | None
    upper: float | None
    baseline_auc: float | None
    difference: float | None
    difference_lower: float | None
    difference_upper: float | None
    examples: int
    positives: int
    users: int
    by_metric: dict[MetricName, Measured]

    @classmethod
    def of(cls, m: SliceMetrics) -> Self:
        """The summary of what the Evaluator found on a slice."""
        auc = m.measured("auc")
        change = auc.last_blessed or Change()
        return cls(
            auc=auc.value,
            lower=auc.lower,
            upper=auc.upper,
            baseline_auc=change.value,
            difference=change.difference,
            difference_lower=change.lower,
            difference_upper=change.upper,
            examples=m.examples,
            positives=m.positives,
            users=m.users,
            by_metric=m.metrics,
        )


class PopularityBaseline(BaseModel):
    """AUC of ordering items by their train count; None if the rows do not hold both labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float | None
    examples: int
    positives: int

    @classmethod
    def of(cls, m: SliceMetrics) -> Self:
        """The baseline on a slice."""
        found = m.measured("auc").popularity or Change()
        return cls(auc=found.value, examples=m.examples, positives=m.positives)


class RunOrigin(BaseModel):
    """When a run was made and from what: enough to repeat it and to tell it from another.

    Attributes:
        date: UTC, as `2026-01-02 03:04:05 UTC`.
        code: 16 hex digits over the code, see pipeline.code_version.
        versions: of the packages.
        data_hash: 16 hex digits over the data report.
        seed: train.seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    code: str
    versions: dict[str, str]
    data_hash: str
    seed: int


class LlmSummary(ScoringLedger):
    """The scorer's ledger, the age of its scores when the run ended, what PairBuilder made of them, and whether that is
    enough.

    Attributes:
        age: None without scores.
        pairs: preference pairs, and why others were left out.
        enough_pairs: whether there are enough of them to move the model.
    """

    age: ScoreAge | None
    pairs: PairCounts
    enough_pairs: EnoughPairs


class RunSummary(BaseModel):
    """What a run did and found, as `summary.json`.

    Attributes:
        schema_version: of this layout.
        name: of the configuration.
        verdict: whether the LLM helps; None if nothing was compared.
        vectors_verdict: whether pairs that item vectors score help; None without train.compare_vectors.
        backbone: of the model.
        gate: gate.mode; None without pairs.
        metrics: test rows by slice.
        popularity_baseline: test rows by slice.
        scores_are: whether the scores are probabilities, in one sentence.
        decision: every check behind the blessing.
        blessed: whether the model may be pushed.
        not_blessed_because: failed checks in words.
        pushed_path: folder of the pushed model; None if nothing was pushed.
        llm: scores and pairs; None without an LLM.
        item_vectors: what ItemEmbedder did; None if no step reads item vectors.
        gate_means: mean alpha over the train pairs by slice.
        training: the Trainer's report.
        item_texts: what prompts call the items of training.contested_pairs, by id.
        data: of InteractionsExampleGen.
        drift: how far the train rows lie from the last run's, and from the test rows.
        leakage: what LeakageGuard checked.
        seconds: wall time of the run.
        run: when and with what the run was made.
        set_keys: configuration keys that differ from the defaults.
        steps: by component.
        config: of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    verdict: Verdict | None
    vectors_verdict: VectorsVerdict | None
    backbone: str
    gate: str | None
    metrics: dict[str, SliceSummary]
    popularity_baseline: dict[str, PopularityBaseline]
    scores_are: str
    decision: Decision
    blessed: bool
    not_blessed_because: list[str]
    pushed_path: str | None
    llm: LlmSummary | None
    item_vectors: EmbeddingReport | None
    gate_means: dict[str, float]
    training: TrainingReport
    item_texts: dict[str, str]
    data: DataReport
    drift: DriftReport
    leakage: LeakageReport
    seconds: float
    run: RunOrigin
    set_keys: dict[str, Any]
    steps: dict[str, StepTime]
    config: Config

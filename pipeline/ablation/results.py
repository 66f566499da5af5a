"""The ablation's results file: JSON lines, one a run, appended by each run of the matrix."""

import json
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from sllmr.models.errors import UserError
from sllmr.models.strict_config import StrictConfig
from sllmr.pipeline.ablation.arms import NONE, RENAMED_ARMS
from sllmr.pipeline.ablation.statistics import Interval, paired_interval

_LOG = logging.getLogger(__name__)

Cell = tuple[str, str, str, int]
"""Domain, backbone, arm, seed."""


class ResultsError(UserError):
    """A results file cannot be read; the message names file, line and fix."""


class _Record(StrictConfig):
    # A line carries more than the tables show, and a later version may add to it.
    model_config = ConfigDict(frozen=True, extra="ignore")


class SliceResult(_Record):
    """One slice of the test rows."""

    auc: float | None = Field(ge=0, le=1, description="of the run's model; None where the slice holds one class only")
    examples: int = Field(ge=0)
    positives: int = Field(ge=0)


class Difference(_Record):
    """AUC of the run minus AUC of another arm with the same seed, on the same rows."""

    difference: float = Field(ge=-1, le=1)
    standard_error: float = Field(ge=0, le=1, description="over samples of users, both models given")


Differences = dict[str, Difference | None]
"""By slice; None where the slice has no standard error."""


class Baselines(_Record):
    """AUC by slice of popularity and of the LLM scorer alone."""

    RENAMED_KEYS: ClassVar = {"teacher": "llm_scorer"}

    popularity: dict[str, float | None] = Field(description="train count of the item as the score")
    llm_scorer: dict[str, float | None] | None = Field(description="the LLM's score alone; None without an LLM")


class MetricDifference(_Record):
    """A metric of the run minus that of another arm with the same seed, on the same rows or candidates."""

    difference: float = Field(allow_inf_nan=False)
    standard_error: float = Field(ge=0, allow_inf_nan=False, description="paired and clustered by user")


class Measure(_Record):
    """One metric of one slice."""

    value: float = Field(allow_inf_nan=False)
    users: int = Field(ge=1, description="that it is measured on")
    versus: dict[str, MetricDifference] = Field(
        default={}, description="by the other arm; only those that the metric is known of"
    )
    baselines: dict[str, float] = Field(
        default={}, description="of popularity and of the LLM scorer alone, for metrics that look at the order alone"
    )


Measures = dict[str, dict[str, Measure | None]]
"""By metric and slice; None where the metric cannot be measured."""


class RankingInfo(_Record):
    """The users and candidates that a run's NDCG and hit rate are measured on."""

    users: int = Field(ge=1)
    candidates: int = Field(ge=1, description="of the user who has the most, with the positive")
    hash: str = Field(description="of the users and their candidates")


class Hashes(_Record):
    """Hashes of what went into the run."""

    test_rows: str
    cell: str = Field(default="", description="fingerprint of what decides the run, see pipeline.ablation.cells")


class Run(_Record):
    """One line: one arm of one backbone on one domain with one seed."""

    RENAMED_KEYS: ClassVar = {"share_of_users_scored": "fraction_of_users_scored"}
    RENAMED_VALUES: ClassVar = {"arm": RENAMED_ARMS}

    domain: str
    backbone: str
    arm: str
    arm_config: dict[str, Any] | None = Field(
        default=None, description="the arm's keys that are not at their default; None in lines of before 2026-12"
    )
    seed: int
    metrics: dict[str, SliceResult] = Field(description="test AUC by slice")
    valid_auc: float = Field(ge=0, le=1, description="of the best epoch")
    versus: dict[str, Differences] = Field(description="by the other arm: those run before this one")
    further_metrics: Measures = Field(
        default={}, description="see pipeline.ablation.further_metrics; empty in a line from before there were any"
    )
    rankings: dict[str, RankingInfo] = Field(default={}, description="by name, sampled and all_items")
    errors_over_rows: bool = Field(
        default=False, description="a line of before 2026-11-29: standard errors are over samples of rows, not of users"
    )
    baselines: Baselines
    hyperparameters: dict[str, dict[str, Any]] = Field(description="by section of the configuration")
    training: dict[str, Any]
    definitions: dict[str, str] = Field(description="of the slices cold and tail, in words")
    hashes: Hashes
    versions: dict[str, str]
    fraction_of_users_scored: float | None = Field(ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _earlier_lines(cls, line: Any) -> Any:
        if isinstance(line, dict) and "versus_none" in line:
            versus_none = line["versus_none"]
            return {**line, "versus": {NONE: versus_none} if versus_none else {}, "errors_over_rows": True}
        return line

    @property
    def settings(self) -> str:
        """The hyper-parameters but the seed, as JSON."""
        without_seeds = {
            section: {name: value for name, value in values.items() if name != "seed"}
            for section, values in self.hyperparameters.items()
        }
        return json.dumps(without_seeds, sort_keys=True)

    def auc(self, slice_name: str) -> float | None:
        """Test AUC; None for a slice that the run does not have, or of one class."""
        return self.metrics[slice_name].auc if slice_name in self.metrics else None


def read(file: pathlib.Path) -> list[Run]:
    """The runs of `file`; if a (domain, backbone, arm, seed) has several lines, the last one counts.

    A run's difference to another is computed from the two AUCs in the file, even if the other was rerun after it,
    because a training comes out a little different on another machine. Its standard error stays that of the first
    comparison.

    A killed run may leave an incomplete last line, which is skipped with a warning.

    Raises:
        ResultsError: there is no such file, it holds no run, or a line is not a run.
    """
    if not file.exists():
        raise ResultsError(f"there is no results file {file}; write it with `sllmr ablate --config FILE`")
    runs = last_runs(file)
    if not runs:
        raise ResultsError(f"{file} holds no runs; add some with `sllmr ablate --config FILE`")
    return [_with_differences(run, runs) for run in runs.values()]


def _with_differences(run: Run, runs: Mapping[Cell, Run]) -> Run:
    versus = {}
    for arm, differences in run.versus.items():
        versus[arm] = dict(differences)
        other = runs.get((run.domain, run.backbone, arm, run.seed))
        if other is None:
            continue
        for name, compared in differences.items():
            own, others = run.auc(name), other.auc(name)
            if compared is not None and own is not None and others is not None:
                versus[arm][name] = compared.model_copy(update={"difference": own - others})
    further = {
        metric: {name: _with_measured_differences(run, runs, metric, name) for name in slices}
        for metric, slices in run.further_metrics.items()
    }
    return run.model_copy(update={"versus": versus, "further_metrics": further})


def _with_measured_differences(run: Run, runs: Mapping[Cell, Run], metric: str, slice_name: str) -> Measure | None:
    own = run.further_metrics[metric][slice_name]
    if own is None:
        return None
    versus = dict(own.versus)
    for arm, compared in own.versus.items():
        other = runs.get((run.domain, run.backbone, arm, run.seed))
        measured = other and other.further_metrics.get(metric, {}).get(slice_name)
        if other is not None and measured and _same_candidates(run, other, metric):
            versus[arm] = compared.model_copy(update={"difference": own.value - measured.value})
    return own.model_copy(update={"versus": versus})


def _same_candidates(run: Run, other: Run, metric: str) -> bool:
    """Whether a metric was measured on the same candidates; those of the test rows always are."""
    return all(info == other.rankings.get(name) for name, info in run.rankings.items() if metric.startswith(f"{name}_"))


def last_runs(file: pathlib.Path) -> dict[Cell, Run]:
    """The last run of each cell, with its differences as written; empty if there is no file or no run in it."""
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    runs: dict[Cell, Run] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            run = Run.model_validate(json.loads(line))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ResultsError(
                f"{file}, line {number} is not a run ({problems}); correct the line, or delete it and rerun the cell"
            ) from error
        except ValueError as error:
            if number == len(lines):
                _LOG.warning("%s, line %d was not written to its end; the run is left out", file, number)
                continue
            raise ResultsError(
                f"{file}, line {number} is not JSON ({error}); delete the line and rerun the cell"
            ) from error
        # Removed first, so that the runs are in the order of the lines that count.
        key = (run.domain, run.backbone, run.arm, run.seed)
        runs.pop(key, None)
        runs[key] = run
    return runs


def over_seeds(found: Iterable[Difference | MetricDifference | None]) -> Interval | None:
    """The interval of the differences of one arm to another, one a seed; None where no seed has one."""
    differences = [difference for difference in found if difference is not None]
    if not differences:
        return None
    return paired_interval([d.difference for d in differences], [d.standard_error for d in differences])


def measures_as_json(measures: Measures) -> dict[str, Any]:
    """What a line holds under `further_metrics`."""
    return {
        metric: {name: measure and measure.model_dump() for name, measure in slices.items()}
        for metric, slices in measures.items()
    }


def append(file: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Adds one run, on disk before it returns; a half-written last line of a killed run is removed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b") as results:
        if results.tell():
            results.seek(-1, os.SEEK_END)
            if results.read(1) != b"\n":
                results.seek(0)
                results.truncate(results.read().rfind(b"\n") + 1)
        results.write(json.dumps(line).encode() + b"\n")
        results.flush()
        os.fsync(results.fileno())

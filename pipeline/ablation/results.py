"""The ablation's results file: JSON lines, one a run, appended as the matrix goes on."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.ablation.arms import NONE

_LOG = logging.getLogger(__name__)

Cell = tuple[str, str, str, int]
"""Domain, backbone, arm, seed."""


class _Record(BaseModel):
    # A line carries more than the tables show, and a later version may add to it.
    model_config = ConfigDict(frozen=True, extra="ignore")


class SliceResult(_Record):
    """One slice of the test rows."""

    auc: float | None = Field(ge=0, le=1, description="of the run's model; None where the slice holds one class only")
    examples: int = Field(ge=0)
    positives: int = Field(ge=0)


class Difference(_Record):
    """AUC of the run minus AUC of the arm `none` with the same seed, on the same rows."""

    difference: float = Field(ge=-1, le=1)
    standard_error: float = Field(ge=0, le=1, description="over samples of rows, both models given (DeLong)")


class Baselines(_Record):
    """AUC by slice of what is no model."""

    popularity: dict[str, float | None] = Field(description="train count of the item as the score")
    teacher: dict[str, float | None] | None = Field(description="the teacher's score alone; None without a teacher")


class Hashes(_Record):
    """What the run was given, by content."""

    test_rows: str
    cell: str = Field(default="", description="fingerprint of what decides the run, see pipeline.ablation.cells")


class Run(_Record):
    """One line: one arm of one backbone on one domain with one seed."""

    domain: str
    backbone: str
    arm: str
    seed: int
    metrics: dict[str, SliceResult] = Field(description="test AUC by slice")
    valid_auc: float = Field(ge=0, le=1, description="of the best epoch")
    versus_none: dict[str, Difference | None] | None = Field(description="by slice; None for the arm none")
    baselines: Baselines
    hyperparameters: dict[str, dict[str, Any]] = Field(description="by section of the configuration")
    training: dict[str, Any]
    definitions: dict[str, str] = Field(description="of the slices cold and tail, in words")
    hashes: Hashes
    versions: dict[str, str]
    share_of_users_scored: float | None = Field(ge=0, le=1)

    def auc(self, slice_name: str) -> float | None:
        """Test AUC; None for a slice that the run does not have, or of one class."""
        return self.metrics[slice_name].auc if slice_name in self.metrics else None


def read(file: pathlib.Path) -> list[Run]:
    """The runs of `file`; of one (domain, backbone, arm, seed) the last line counts.

    A run's difference to `none` is that of the two AUCs in the file, also where `none` was made again after the run: on
    another machine a training comes out a little different. Its standard error stays that of the comparison then made.

    A last line without its end is what a killed run leaves: it is skipped with a warning.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: on any other line that is not a run, or a file without runs.
    """
    if not file.exists():
        raise FileNotFoundError(f"there is no results file {file}; make it with `sllmr ablate --config FILE`")
    runs = last_runs(file)
    if not runs:
        raise ValueError(f"{file} holds no runs; make some with `sllmr ablate --config FILE`")
    return [_with_differences(run, runs.get((run.domain, run.backbone, NONE, run.seed))) for run in runs.values()]


def _with_differences(run: Run, none: Run | None) -> Run:
    if run.versus_none is None or none is None:
        return run
    versus_none = dict(run.versus_none)
    for name, compared in run.versus_none.items():
        own, other = run.auc(name), none.auc(name)
        if compared is not None and own is not None and other is not None:
            versus_none[name] = compared.model_copy(update={"difference": own - other})
    return run.model_copy(update={"versus_none": versus_none})


def last_runs(file: pathlib.Path) -> dict[Cell, Run]:
    """The last run of each cell, as `read`, but none where there is no file or no run in it."""
    lines = file.read_bytes().split(b"\n") if file.exists() else []
    runs: dict[Cell, Run] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            run = Run.model_validate(json.loads(line))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ValueError(
                f"{file}, line {number} is not a run ({problems}); delete the line and make the run again"
            ) from error
        except ValueError as error:
            if number == len(lines):
                _LOG.warning("%s, line %d was not written to its end; the run is left out", file, number)
                continue
            raise ValueError(
                f"{file}, line {number} is not JSON ({error}); delete the line and make the run again"
            ) from error
        # Moved to its new place, so that the order is that of the lines that count.
        key = (run.domain, run.backbone, run.arm, run.seed)
        runs.pop(key, None)
        runs[key] = run
    return runs


def append(file: pathlib.Path, line: Mapping[str, Any]) -> None:
    """Adds one run, on disk before it returns; what a killed run left half-written goes first."""
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

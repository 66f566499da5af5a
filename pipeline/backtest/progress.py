"""What a backtest has done so far, in backtest.json, and whether the same command may continue it."""

import json
import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

import pydantic

from sllmr.components.interactions_example_gen.component import input_fingerprint
from sllmr.pipeline.backtest.result import FILE_NAME, RESCORED, SCORED_ONCE, BacktestReport, Period, Series
from sllmr.pipeline.config import Config
from sllmr.pipeline.folder_lock import FolderError
from sllmr.pipeline.run_folder import METADATA_FILE

_MAY_CHANGE = (
    "beam.",
    "cache_dir",
    "store",
    "data.window.until",  # _difference compares the windows that it leads to
    "llm.api_key_env",
    "llm.timeout_s",
    "llm.max_retries",
    "llm.concurrency",
    "llm.max_failure_rate",
    "llm.limits.",
    "llm.batch.",
    "llm.local_server.",
    "llm.budget.max_cost_usd",
)
"""Keys that change how a window is run and not what it finds."""


def begin(config: Config, periods: Sequence[Period], output: pathlib.Path) -> BacktestReport:
    """The report of an earlier command in the folder, or an empty one.

    Args:
        config: of the command.
        periods: the planned windows.
        output: the folder, held by this process.

    Raises:
        FolderError: the folder holds windows of another configuration or of other tables, or runs without a report.
    """
    llm = config.llm.resolve()
    new = BacktestReport(
        name=config.name,
        model=llm.model,
        strategy=llm.strategy or "",
        periods=tuple(periods),
        series={RESCORED: Series(), SCORED_ONCE: Series()},
        rescoring=None,
        tables=input_fingerprint(config.data),
        config=config,
    )
    file = output / FILE_NAME
    used = [output / name for name in new.series if (output / name / METADATA_FILE).exists()]
    if not used:
        return new
    if not file.exists():
        raise FolderError(
            f"{used[0]} holds runs, but {file}, which says of what, is gone; remove {used[0]} or name another --output"
        )
    try:
        old = BacktestReport.model_validate_json(file.read_text(encoding="utf-8"))
    except (pydantic.ValidationError, UnicodeDecodeError) as error:
        raise FolderError(
            f"{file} cannot be read as the report of an earlier command: {str(error).splitlines()[0]}; name another "
            "--output, or remove its folder"
        ) from None
    if problem := _difference(old, new):
        raise FolderError(
            f"{file} holds windows of another backtest: {problem}; name another --output, or remove {output} to start "
            "over"
        )
    return new.model_copy(update={"series": old.series, "rescoring": old.rescoring})


def write(report: BacktestReport, output: pathlib.Path) -> None:
    """Replaces backtest.json in one step, so that a killed command leaves the old or the new one."""
    new = output / f".{FILE_NAME}-{uuid.uuid4().hex}"
    new.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(new, output / FILE_NAME)


def _difference(old: BacktestReport, new: BacktestReport) -> str:
    before, after = _keys(old.config), _keys(new.config)
    changed = [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        return "; ".join(changed)
    if old.periods != new.periods:
        return (
            f"it has {len(old.periods)} windows up to {old.periods[-1].until}, and the command {len(new.periods)} up "
            f"to {new.periods[-1].until}"
        )
    return "" if old.tables == new.tables else "the tables have been written since"


def _keys(config: Config) -> dict[str, str]:
    """Values as JSON by dotted key."""
    found = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            found[prefix] = json.dumps(value)

    walk("", config.model_dump(mode="json"))
    return found

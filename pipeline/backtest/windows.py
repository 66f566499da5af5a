"""The windows of a backtest: how the table is cut by time, and whether it is long enough."""

import array
import datetime

import numpy as np
import numpy.typing as npt

from sllmr.components.interactions_example_gen.config import DAY, DataConfig, WindowConfig
from sllmr.components.interactions_example_gen.tables import (
    LOW_RATED,
    BadRow,
    DataError,
    read_interactions,
    table_paths,
)
from sllmr.pipeline.backtest.result import Period
from sllmr.pipeline.config import ConfigError


def plan_windows(config: DataConfig, times: npt.NDArray, count: int) -> list[Period]:
    """The windows of a backtest, oldest first. Each ends `test_days` after the one before, so no test periods overlap.

    The last one ends at data.window.until, or on the day after the newest interaction if that is earlier.

    Args:
        config: with `window`.
        times: Unix milliseconds of the interactions that make rows.
        count: number of windows, at least 2.

    Raises:
        ConfigError: no window is configured, or the first and the last window have no train day in common.
        DataError: the table spans too few days, or a part of a window has no interaction.
    """
    window = config.window
    if window is None:
        raise ConfigError(
            "a backtest needs data.window, got none; set data: {split: {strategy: global_date}, window: {days: 30, "
            "valid_days: 1, test_days: 1}}"
        )
    if not len(times):
        raise DataError(f"data.interactions must hold interactions that make rows, got none in {config.interactions}")
    _check_common_days(window, count)
    step = window.test_days * DAY
    last_end = min(window.bounds.until, int(times.max()) // DAY * DAY + DAY)
    first_day = int(times.min()) // DAY * DAY
    fitting = (last_end - window.days * DAY - first_day) // step + 1
    if fitting < count:
        needed = window.days + (count - 1) * window.test_days
        fix = f"set --windows {fitting}, or " if fitting >= 2 else ""
        raise DataError(
            f"{count} windows of data.window need {needed} days of interactions ({window.days} + {count - 1} x "
            f"{window.test_days}), got {max(0, (last_end - first_day) // DAY)} in {config.interactions}, from "
            f"{_iso(first_day)} to {_iso(last_end)}; {fix}lower data.window.days or data.window.test_days"
        )
    ends = [last_end - (count - 1 - number) * step for number in range(count)]
    periods = [_period(window, number, end) for number, end in enumerate(ends, start=1)]
    for period, end in zip(periods, ends, strict=True):
        _check_filled(config, window, period, end, times)
    return periods


def read_times(config: DataConfig) -> npt.NDArray:
    """Unix milliseconds of the positives and the observed negatives of a table, int64, in no order.

    Malformed rows are left out: the first run reports them.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    times = array.array("q")
    for path in table_paths(config.interactions, "data.interactions"):
        for row in read_interactions(path, config):
            if not isinstance(row, BadRow) and row.kind != LOW_RATED:
                times.append(row.timestamp)
    return np.frombuffer(times, np.int64) if times else np.empty(0, np.int64)


def ending(config: DataConfig, until: str) -> DataConfig:
    """The configuration with another end of the window."""
    assert config.window is not None
    return config.model_copy(update={"window": config.window.model_copy(update={"until": until})})


def _check_common_days(window: WindowConfig, count: int) -> None:
    moved = (count - 1) * window.test_days
    train_days = window.days - window.valid_days - window.test_days
    if moved >= train_days:
        raise ConfigError(
            "the first and the last window must have a train day in common, so that scores of the first one can be "
            f"used in the last one, got {train_days} train days and a last window {moved} days later; raise "
            f"data.window.days to at least {moved + window.valid_days + window.test_days + 1}, or lower "
            "data.window.test_days or --windows"
        )


def _period(window: WindowConfig, number: int, end: int) -> Period:
    until = _iso(end)
    start, valid_from, test_from, _ = window.model_copy(update={"until": until}).bounds
    return Period(
        number=number, train_from=_iso(start), valid_from=_iso(valid_from), test_from=_iso(test_from), until=until
    )


def _check_filled(config: DataConfig, window: WindowConfig, period: Period, end: int, times: npt.NDArray) -> None:
    bounds = window.model_copy(update={"until": period.until}).bounds
    edges = {
        "train": (bounds.start, bounds.valid_from),
        "validation": (bounds.valid_from, bounds.test_from),
        "test": (bounds.test_from, end),
    }
    for part, (start, stop) in edges.items():
        if not ((times >= start) & (times < stop)).any():
            raise DataError(
                f"each part of a window needs interactions, got none in the {part} days of window {period.number}, "
                f"{_iso(start)} to {_iso(stop)}, of {config.interactions}; raise data.window.test_days, "
                "data.window.valid_days or data.window.days"
            )


def _iso(milliseconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.date().isoformat() if milliseconds % DAY == 0 else moment.isoformat()

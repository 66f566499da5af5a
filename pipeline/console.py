"""What a run shows: short lines on the terminal, everything else in a log file."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import absl.logging
from rich.console import Console
from rich.table import Table

from components.llm_scorer.audit import audit_line
from components.llm_scorer.drift import drift_line
from components.llm_scorer.staleness import staleness_line, staleness_warning

RUNNING = "Component %s is running."
FINISHED = "Component %s is finished."
"""What TFX's LocalDagRunner logs around each component (pinned version; a test holds it)."""

OWN_LOGGERS = ("components", "models", "pipeline")
"""Loggers of this project: their INFO lines reach the terminal, other libraries' only the log file."""


class _StepProgress(logging.Handler):
    """Turns TFX's log of components into one line a step."""

    def __init__(self, console: Console, steps: int):
        super().__init__(logging.INFO)
        self._console = console
        self._steps = steps
        self._started = 0
        self._since = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == RUNNING:
            self._started += 1
            self._since = time.monotonic()
            self._console.print(f"[bold]\\[{self._started:2d}/{self._steps}] {record.args[0]}[/bold]")  # type: ignore[index]
        elif record.msg == FINISHED:
            self._console.print(f"        {time.monotonic() - self._since:.1f} s", style="dim")


class _OwnLines(logging.Handler):
    """Shows the project's own log lines below their step."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console
        self.addFilter(lambda record: record.name.split(".")[0] in OWN_LOGGERS)

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(f"        {record.getMessage()}", style=style, markup=False, soft_wrap=True)


@contextlib.contextmanager
def run_log(file: pathlib.Path, console: Console, steps: int) -> Iterator[None]:
    """Sends every log record to `file`, progress and the project's own lines to the terminal, while it is open."""
    file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    root = logging.getLogger()
    before_handlers, before_level = root.handlers[:], root.level
    root.handlers = [to_file, _StepProgress(console, steps), _OwnLines(console)]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # These loggers keep handlers of their own, which would bypass the file and flood the terminal.
    for name in ("absl", "tensorflow", "apache_beam"):
        logging.getLogger(name).handlers.clear()
    # By its flag, not its logger's level: whoever parses absl's flags would reset the level.
    absl.logging.set_verbosity(absl.logging.INFO)
    # One line a request and, at DEBUG, its headers with the key: the scorer reports for itself.
    for name in ("httpx", "httpcore", "openai", "matplotlib", "h5py"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers = before_handlers
        root.setLevel(before_level)
        to_file.close()


def print_scores(
    console: Console, book: Mapping[str, Any], age: Mapping[str, float] | None, max_age_days: float | None
) -> None:
    """How old a score table is, how far order sways it, and how far it moved, as far as known.

    Args:
        book: ledger.json.
        age: of components.llm_scorer.staleness.
        max_age_days: llm.max_age_days.
    """
    for line in score_lines(book, age):
        console.print(line, soft_wrap=True)
    warning = staleness_warning(age, max_age_days)
    if warning is not None:
        console.print(warning, style="yellow", soft_wrap=True)


def score_lines(book: Mapping[str, Any], age: Mapping[str, float] | None) -> list[str]:
    """The sentences of print_scores, without the warning."""
    lines = [] if age is None else [staleness_line(age)]
    if book["audit"] is not None:
        lines.append(audit_line(book["audit"]))
    if "rescore" in book:
        lines.append(drift_line(book["rescore"]["drift"]))
    return lines


def metrics_table(summary: dict) -> Table:
    """AUC by slice beside the popularity baseline, with counts."""
    table = Table(title=f"Test AUC, {summary['backbone']}, gate {summary['gate'] or 'none'}")
    for column in ("slice", "AUC", "95% interval", "popularity", "examples", "positives"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for name, m in summary["metrics"].items():
        interval = f"{m['lower']:.3f} to {m['upper']:.3f}" if m["lower"] is not None else "not computed"
        popularity = summary["popularity_baseline"].get(name)
        table.add_row(
            name,
            f"{m['auc']:.4f}",
            interval,
            f"{popularity['auc']:.4f}" if popularity and popularity["auc"] is not None else "one class only",
            f"{m['examples']:,}",
            f"{m['positives']:,}",
        )
    return table

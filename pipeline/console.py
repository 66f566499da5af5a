"""What a run shows: short lines on the terminal, everything else in a log file."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import absl.logging
from rich.console import Console
from rich.table import Table

from sllmr.components.evaluator.decision import Change, Decision, Measured
from sllmr.components.llm_comparison.verdict import VectorsVerdict, Verdict
from sllmr.components.llm_scorer.quality.audit import audit_line
from sllmr.components.llm_scorer.quality.canary import canary_line
from sllmr.components.llm_scorer.quality.drift import drift_line
from sllmr.components.llm_scorer.quality.staleness import staleness_line, staleness_warning
from sllmr.components.llm_scorer.results import ScoreAge, ScoringLedger
from sllmr.models.metric_names import LESS_IS_BETTER, MetricName
from sllmr.pipeline.run_summary import PopularityBaseline, SliceSummary

RUNNING = "Component %s is running."
FINISHED = "Component %s is finished."
CACHED = "A cached execution %d is used."
"""What TFX's LocalDagRunner logs around each component (pinned version; a test holds it)."""

OWN_LOGGER = "sllmr"
"""Parent of this project's loggers: their INFO lines reach the terminal, other libraries' only the log file."""


class _StepProgress(logging.Handler):
    """Turns TFX's log of components into one line a step."""

    def __init__(self, console: Console, steps: int):
        super().__init__(logging.INFO)
        self._console = console
        self._steps = steps
        self._started = 0
        self._since = 0.0
        self._cached = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == RUNNING:
            self._started += 1
            self._since = time.monotonic()
            self._cached = False
            self._console.print(f"[bold]\\[{self._started:2d}/{self._steps}] {record.args[0]}[/bold]")  # type: ignore[index]
        elif record.msg == CACHED:
            self._cached = True
        elif record.msg == FINISHED:
            took = "cached" if self._cached else f"{time.monotonic() - self._since:.1f} s"
            self._console.print(f"        {took}", style="dim")


class _OwnLines(logging.Handler):
    """Shows the project's own log lines below their step."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self._console = console
        self.addFilter(lambda record: record.name.split(".")[0] == OWN_LOGGER)

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(f"        {record.getMessage()}", style=style, markup=False, soft_wrap=True)


@contextlib.contextmanager
def run_log(file: pathlib.Path, console: Console, steps: int) -> Iterator[None]:
    """While open, sends every log record to `file`, and progress and the project's own lines to the terminal."""
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
    # Set by the flag and not on the logger, because parsing absl's flags would reset the logger's level.
    absl.logging.set_verbosity(absl.logging.INFO)
    # HTTP clients log a line per request and, at DEBUG, its headers with the API key; the scorer has its own report.
    for name in ("httpx", "httpcore", "openai", "matplotlib", "h5py"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers = before_handlers
        root.setLevel(before_level)
        to_file.close()


def print_scores(console: Console, book: ScoringLedger, age: ScoreAge | None, max_age_days: float | None) -> None:
    """Prints a score table's age and, if known, how far order and planted text sway its scores and how far they moved.

    Args:
        book: of the table.
        age: of its scores; None without scores.
        max_age_days: llm.max_age_days.
    """
    for line in score_lines(book, age):
        console.print(line, soft_wrap=True)
    warning = staleness_warning(age, max_age_days)
    if warning is not None:
        console.print(warning, style="yellow", soft_wrap=True)


def score_lines(book: ScoringLedger, age: ScoreAge | None) -> list[str]:
    """The sentences of print_scores, without the warning."""
    lines = [] if age is None else [staleness_line(age)]
    if book.audit is not None:
        lines.append(audit_line(book.audit))
    if book.canary is not None:
        lines.append(canary_line(book.canary))
    if book.rescore is not None:
        lines.append(drift_line(book.rescore.drift))
    return lines


def print_verdict(console: Console, verdict: Verdict, vectors: VectorsVerdict | None) -> None:
    """Prints whether the LLM helped, with the difference on every slice, and what item vectors do in its place."""
    style = {"helps": "green", "hurts": "red", "not_distinguishable": "yellow"}[verdict.answer]
    console.print(verdict.sentence(), style=style, markup=False, soft_wrap=True)
    table = Table(title="Test AUC with the LLM against without", box=None, padding=(0, 1, 0, 0))
    for column in ("slice", "with", "without", "difference", "95% interval", "users", "rows"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for name, part in verdict.slices.items():
        has_interval = part.lower is not None and part.upper is not None
        table.add_row(
            name,
            four_digits(part.with_llm),
            four_digits(part.without_llm),
            "not measurable" if part.difference is None else f"{part.difference:+.4f}",
            f"{part.lower:+.4f} to {part.upper:+.4f}" if has_interval else "-",
            f"{part.users:,}",
            f"{part.examples:,}",
        )
    console.print(table)
    if vectors is not None:
        console.print(vectors.sentence(), style="dim", markup=False, soft_wrap=True)


def metrics_table(
    metrics: Mapping[str, SliceSummary], popularity: Mapping[str, PopularityBaseline], backbone: str, gate: str | None
) -> Table:
    """AUC by slice beside the popularity baseline and the last blessed model, with counts; fits into 80 columns."""
    table = Table(
        title=f"Test AUC, {backbone}, gate {gate or 'none'}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for column in ("slice", "AUC", "95% interval", "popularity", "last\nblessed", "examples", "positives", "users"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for name, m in metrics.items():
        table.add_row(
            name,
            four_digits(m.auc),
            "not measurable" if m.auc is None else _interval(m),
            four_digits(popularity[name].auc),
            four_digits(m.baseline_auc),
            f"{m.examples:,}",
            f"{m.positives:,}",
            f"{m.users:,}",
        )
    return table


def other_metrics_table(metrics: Mapping[MetricName, Measured]) -> Table:
    """Every metric on the overall slice beside those of popularity and of the last blessed model."""
    table = Table(title=f"All test rows; less is better: {', '.join(LESS_IS_BETTER)}", box=None, padding=(0, 1, 0, 0))
    for column in ("metric", "value", "95% interval", "popularity", "last\nblessed", "users"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, m in metrics.items():
        table.add_row(
            name,
            four_digits(m.value),
            "not measurable" if m.value is None else _interval(m),
            four_digits((m.popularity or Change()).value),
            four_digits((m.last_blessed or Change()).value),
            f"{m.users:,}",
        )
    return table


def four_digits(value: float | None) -> str:
    """A metric in a table; a dash where it is not measurable."""
    return "-" if value is None else f"{value:.4f}"


def _interval(metrics: SliceSummary | Measured) -> str:
    return "-" if metrics.lower is None else f"{metrics.lower:.3f} to {metrics.upper:.3f}"


def below_popularity(metrics: Mapping[str, SliceSummary], popularity: Mapping[str, PopularityBaseline]) -> list[str]:
    """The slices on which popularity orders the test rows better than the model does."""
    return [
        name
        for name, m in metrics.items()
        if m.auc is not None and (baseline := popularity[name].auc) is not None and baseline > m.auc
    ]


def print_decision(
    console: Console, decision: Decision, not_blessed_because: Sequence[str], pushed_path: str | None
) -> None:
    """Prints whether the model is blessed, and each check that failed, is undecided or was skipped, with numbers."""
    for line in decision.sentences("not_measurable"):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    for line in decision.sentences("warned"):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if not not_blessed_because:
        console.print(f"Blessed; pushed to {pushed_path}", style="green", soft_wrap=True)
        return
    console.print("Not blessed; nothing was pushed:", style="yellow")
    for line in not_blessed_because:
        console.print(f"  {line}", markup=False, soft_wrap=True)

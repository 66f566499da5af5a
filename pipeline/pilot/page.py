"""What a pilot says: pilot.html, and a few lines on the terminal."""

import pathlib

import jinja2
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from sllmr.pipeline.page import ACCENT, MUTED, environment, svg
from sllmr.pipeline.pilot.result import PilotReport, Prediction

FILE_NAME = "pilot.html"

_ADVICE = {
    "full": "Score the whole plan",
    "partial": "Score a part of the plan",
    "do_not_spend": "Do not spend money on this LLM",
}


def write(report: PilotReport, file: pathlib.Path) -> None:
    """Renders one self-contained page; it needs no network to be read."""
    plot = svg(
        lambda axes: _plot_predicted(axes, report.predicted), 6.4, 2.2, "Predicted gain by coverage, with its interval"
    )
    page = (
        environment()
        .get_template("pilot.html.j2")
        .render(
            r=report, sentence=sentence(report), plot=jinja2.utils.markupsafe.Markup(plot), cost=cost, duration=duration
        )
    )
    file.write_text(page, encoding="utf-8")


def show(report: PilotReport, console: Console) -> None:
    """Prints the advice and the predictions."""
    table = Table(title="Predicted gain in test AUC")
    for column in ("coverage", "users", "difference", "95% interval", "cost", "time"):
        table.add_column(column, justify="right")
    for part in report.predicted:
        table.add_row(
            f"{part.coverage:.0%}",
            f"{part.users_reached:.1%}",
            f"{part.difference:+.4f}",
            f"{part.lower:+.4f} to {part.upper:+.4f}",
            cost(part.cost_usd),
            duration(part.seconds),
        )
    console.print(table)
    console.print(sentence(report), soft_wrap=True, markup=False)


def sentence(report: PilotReport) -> str:
    """The advice and its reason."""
    slices = f", first {', '.join(report.slices_first)}" if report.recommendation == "partial" else ""
    return f"{_ADVICE[report.recommendation]}{slices}: {report.reason}."


def cost(usd: float | None) -> str:
    """`$1.2345`."""
    return "price unknown" if usd is None else f"${usd:.4f}"


def duration(seconds: float) -> str:
    """`45 s` or `3.5 min`."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _plot_predicted(axes: Axes, predicted: list[Prediction]) -> None:
    for y, part in enumerate(predicted):
        axes.plot([part.lower, part.upper], [y, y], color=ACCENT, linewidth=2)
        axes.plot(part.difference, y, "o", color=ACCENT)
    axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(
        range(len(predicted)), [f"{part.coverage:.0%} of the plan\n{cost(part.cost_usd)}" for part in predicted]
    )
    axes.set_ylim(len(predicted) - 0.5, -0.5)
    axes.set_xlabel("predicted test AUC with the LLM minus without, 95% interval (dotted: no effect)")

"""What a backtest says: backtest.html with one plot, and a few lines on the terminal."""

import pathlib

import jinja2
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from sllmr.components.llm_scorer.quality.drift import drift_line
from sllmr.pipeline.backtest.result import (
    RESCORED,
    SCORED_ONCE,
    BacktestReport,
    MeanDifference,
    SeriesName,
    WindowResult,
)
from sllmr.pipeline.console import four_digits
from sllmr.pipeline.page import ACCENT, MUTED, WARM, environment, svg

FILE_NAME = "backtest.html"

NAMES: dict[SeriesName, str] = {RESCORED: "rescored", SCORED_ONCE: "scored once"}
_COLORS: dict[SeriesName, str] = {RESCORED: ACCENT, SCORED_ONCE: WARM}
_ASIDE: dict[SeriesName, float] = {RESCORED: -0.1, SCORED_ONCE: 0.1}


def write(report: BacktestReport, file: pathlib.Path) -> None:
    """Renders one self-contained page; it needs no network to be read."""
    plot = svg(
        lambda axes: _plot_gains(axes, report),
        8.6,
        3.2,
        "Gain in test AUC of the model with pairs by window, with its interval, for both series",
    )
    text = (
        environment()
        .get_template("backtest.html.j2")
        .render(
            r=report,
            names=NAMES,
            sentences=sentences(report),
            answer=None if report.rescoring is None else report.rescoring.mean.answer,
            unfinished=unfinished(report),
            codes=sorted({window.code for one in report.series.values() for window in one.windows}),
            plot=jinja2.utils.markupsafe.Markup(plot),
            four_digits=four_digits,
            signed=signed,
            interval=interval,
            cost=cost,
            fates=fates,
            drift_line=drift_line,
            moved=moved,
        )
    )
    file.write_text(text, encoding="utf-8")


def show(report: BacktestReport, console: Console) -> None:
    """Prints the gain of each window and the answer."""
    table = Table(title="Test AUC with the LLM minus without, by window", box=None, padding=(0, 1, 0, 0))
    for column in ("test days from", "series", "rows", "difference", "95% interval", "cost"):
        table.add_column(column, justify="left" if column in ("test days from", "series") else "right")
    for period in report.periods:
        for name, one in report.series.items():
            for window in (w for w in one.windows if w.number == period.number):
                overall = window.slices["overall"]
                table.add_row(
                    period.test_from,
                    NAMES[name],
                    f"{overall.examples:,}",
                    signed(overall.difference),
                    interval(overall.lower, overall.upper),
                    cost(window.cost_usd),
                )
    console.print(table)
    for line in (*unfinished(report), *sentences(report)):
        console.print(line, soft_wrap=True, markup=False)


def sentences(report: BacktestReport) -> list[str]:
    """Whether scoring again pays, then what the LLM gains in each series; empty before the first window."""
    found = []
    if (rescoring := report.rescoring) is not None:
        mean = rescoring.mean
        lead = {
            "helps": "Scoring again helps",
            "hurts": "Scoring again hurts",
            "not_distinguishable": "Whether scoring again helps is not distinguishable on this much test data",
        }[mean.answer]
        found.append(
            f"{lead}: the AUC of the model with rescored pairs minus that of the model with the pairs of window 1 is "
            f"{_mean(mean)}. It cost {cost(rescoring.cost_usd)} and {rescoring.requests:,} requests."
        )
    for name, one in report.series.items():
        if (gain := one.mean.get("overall")) is not None:
            found.append(f"With the LLM minus without, {NAMES[name]}: {_mean(gain)}.")
    return found


def unfinished(report: BacktestReport) -> list[str]:
    """Which series lacks windows, and why."""
    return [
        f"The series {NAMES[name]} has {len(one.windows)} of {len(report.periods)} windows"
        + (f": {one.ended_because}." if one.ended_because else " so far; run the same command to continue.")
        for name, one in report.series.items()
        if len(one.windows) < len(report.periods)
    ]


def _mean(mean: MeanDifference) -> str:
    windows = "1 window" if mean.windows == 1 else f"the mean of {mean.windows} windows"
    return (
        f"{signed(mean.difference)} (95% interval {interval(mean.lower, mean.upper)}; {windows}, {mean.users:,} test "
        "users)"
    )


def signed(value: float | None) -> str:
    """A difference of two AUCs."""
    return "not measurable" if value is None else f"{value:+.4f}"


def interval(lower: float | None, upper: float | None) -> str:
    """Its interval; a dash without one."""
    return "-" if lower is None or upper is None else f"{lower:+.4f} to {upper:+.4f}"


def cost(usd: float | None) -> str:
    """`$1.2345`."""
    return "an unknown price" if usd is None else f"${usd:.4f}"


def fates(window: WindowResult) -> str:
    """What became of the previous window's scoring contexts: kept / scored again / new / gone."""
    if (found := window.rescore) is None:
        return "-"
    return f"{found.kept:,} / {sum(found.scored_again.values()):,} / {found.new:,} / {found.gone:,}"


def moved(window: WindowResult) -> str:
    """How far the train rows lie from the previous window's: features beyond their threshold, and the largest."""
    if not window.drift:
        return "-"
    largest = max(window.drift, key=lambda distance: distance.value / max(distance.threshold, 1e-9))
    beyond = sum(distance.exceeds for distance in window.drift)
    return f"{beyond} of {len(window.drift)} beyond; {largest.feature} {largest.value:.3f}"


def _plot_gains(axes: Axes, report: BacktestReport) -> None:
    for name, one in report.series.items():
        measured = [window for window in one.windows if window.slices["overall"].difference is not None]
        for window in measured:
            overall, x = window.slices["overall"], window.number + _ASIDE[name]
            if overall.lower is not None and overall.upper is not None:
                axes.plot([x, x], [overall.lower, overall.upper], color=_COLORS[name], linewidth=1.5)
        axes.plot(
            [window.number + _ASIDE[name] for window in measured],
            [window.slices["overall"].difference or 0.0 for window in measured],
            "o-",
            color=_COLORS[name],
            linewidth=0.8,
            markersize=5,
            label=NAMES[name],
        )
    axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(
        [period.number for period in report.periods],
        [f"{period.number}\n{period.test_from[:10]}" for period in report.periods],
    )
    axes.set_xlim(0.6, len(report.periods) + 0.4)
    axes.set_xlabel("window, by the first of its test days")
    axes.set_ylabel("AUC with the LLM\nminus without")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)

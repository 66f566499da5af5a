"""report.html: one self-contained page that shows a run."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
import yaml
from matplotlib.axes import Axes

from sllmr.components.llm_comparison.verdict import SliceVerdict
from sllmr.components.llm_scorer.quality.staleness import staleness_warning
from sllmr.models.reliability import ReliabilityCell
from sllmr.models.training.report import GateCell, TrainingReport
from sllmr.pipeline.console import score_lines
from sllmr.pipeline.page import ACCENT, CELL_INK, MUTED, WARM, environment, svg
from sllmr.pipeline.run_summary import RunSummary, StepTime


def write(summary: RunSummary, file: pathlib.Path) -> None:
    """Renders the summary to `file`; needs no network to be read."""
    training, llm, verdict, vectors = summary.training, summary.llm, summary.verdict, summary.vectors_verdict
    scorers = {"the LLM": verdict.slices} if verdict else {}
    if vectors:
        scorers["item vectors"] = vectors.slices
    plots = {
        "verdict": svg(lambda axes: _plot_verdict(axes, scorers), 6.4, 2.4, "What the LLM changes, by slice")
        if scorers
        else "",
        "slices": svg(lambda axes: _plot_slices(axes, summary), 5.2, 2.6, "Test AUC by slice, model and popularity"),
        "gate": svg(lambda axes: _plot_gate(axes, training.gate), 7.2, 3.0, "Mean alpha and how often the LLM agrees")
        if llm
        else "",
        "map": svg(lambda axes: _plot_map(axes, training.reliability), 6.4, 3.4, "Mean alpha by history and popularity")
        if training.reliability
        else "",
        "alpha": svg(lambda axes: _plot_alpha(axes, training.alpha_by_epoch), 4.4, 2.8, "Alpha by epoch")
        if training.alpha_by_epoch
        else "",
        "training": svg(lambda axes: _plot_training(axes, training), 4.4, 2.8, "Validation AUC by epoch"),
        "steps": svg(lambda axes: _plot_steps(axes, summary.steps), 4.8, 2.8, "Seconds by step"),
    }
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            verdict=verdict.sentence() if verdict else "",
            vectors_verdict=vectors.sentence() if vectors else "",
            checks=summary.decision.checks,
            score_lines=score_lines(llm, llm.age) if llm else [],
            score_warning=staleness_warning(llm.age, summary.config.llm.max_age_days) if llm else None,
            too_few_pairs=llm.enough_pairs.sentence() if llm else "",
            overtrusted=overtrusted(training.reliability),
            stopped_early=training.best_epoch == len(training.epochs),
            plots={name: jinja2.utils.markupsafe.Markup(plot) for name, plot in plots.items()},
            set_yaml=yaml.safe_dump(summary.set_keys, sort_keys=False),
            config_yaml=yaml.safe_dump(summary.config.model_dump(mode="json"), sort_keys=False),
        )
    )
    file.write_text(page, encoding="utf-8")


def overtrusted(cells: Sequence[ReliabilityCell]) -> list[str]:
    """Each region whose mean alpha is above the whole interval of how often the LLM is right, in one sentence."""
    if not cells:
        return []
    histories = _names([cell.history_from for cell in cells])
    popularities = _names([cell.popularity_from for cell in cells])
    return [
        f"Histories of {histories[cell.history_from]} and rarer items of "
        f"{popularities[cell.popularity_from]} train positives: alpha is {cell.mean_alpha:.2f}, but "
        f"the LLM is right on {cell.llm_right.lower:.2f} to {cell.llm_right.upper:.2f} of "
        f"{cell.calibration_pairs:,} calibration pairs"
        for cell in cells
        if cell.mean_alpha is not None and cell.llm_right is not None and cell.llm_right.upper < cell.mean_alpha
    ]


def _names(starts: Sequence[int]) -> dict[int, str]:
    """The words for each range by its start."""
    distinct = list(dict.fromkeys(starts))
    return dict(zip(distinct, _ranges(distinct), strict=True))


def write_model_card(summary: RunSummary, file: pathlib.Path) -> None:
    """Renders what a pushed model is, how it was evaluated, and what it must not be used for, as Markdown."""
    file.write_text(environment().get_template("model_card.md.j2").render(s=summary), encoding="utf-8")


def _plot_verdict(axes: Axes, scorers: Mapping[str, Mapping[str, SliceVerdict]]) -> None:
    """The difference that each scorer's pairs make, by slice, with its interval."""
    of_all = list(scorers.values())
    measured = [name for name in of_all[0] if any(slices[name].difference is not None for slices in of_all)]
    for n, (scorer, slices) in enumerate(scorers.items()):
        for y, name in enumerate(measured):
            part, label = slices[name], scorer if y == 0 else None
            place = y + 0.3 * (n - (len(scorers) - 1) / 2)
            _point(axes, place, part.difference, part.lower, part.upper, label, color=(ACCENT, WARM)[n])
    axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(measured)), measured)
    axes.invert_yaxis()
    if len(scorers) > 1:
        axes.legend(frameon=False, loc="best")
    axes.set_xlabel("AUC with pairs minus without, 95% interval by user (dotted: no effect)")


def _point(
    axes: Axes,
    y: float,
    value: float | None,
    lower: float | None,
    upper: float | None,
    label: str | None = None,
    color: str = ACCENT,
) -> None:
    """A value with its interval, if it has one."""
    if lower is not None and upper is not None:
        axes.plot([lower, upper], [y, y], color=color, linewidth=2)
    if value is not None:
        axes.plot(value, y, "o", color=color, label=label)


def _plot_slices(axes: Axes, summary: RunSummary) -> None:
    measured = {name: m for name, m in summary.metrics.items() if m.auc is not None}
    for y, (name, m) in enumerate(measured.items()):
        _point(axes, y, m.auc, m.lower, m.upper, label="model, 95% interval" if y == 0 else None)
        popularity = summary.popularity_baseline[name].auc
        if popularity is not None:
            axes.plot(popularity, y, "x", color=MUTED, label="popularity" if y == 0 else None)
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(measured)), list(measured))
    axes.invert_yaxis()
    axes.set_xlabel("AUC (dotted: chance)")
    axes.legend(frameon=False, loc="best")


def _plot_gate(axes: Axes, cells: Sequence[GateCell]) -> None:
    shown = [cell for cell in cells if cell.pairs]
    for x, cell in enumerate(shown):
        first = x == 0
        axes.bar(x - 0.18, cell.mean_alpha or 0.0, 0.34, color=ACCENT, label="gate alpha, mean" if first else None)
        if cell.llm_accuracy is not None:
            label = "LLM agrees with the user" if first else None
            axes.bar(x + 0.18, cell.llm_accuracy, 0.34, color=WARM, label=label)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(
        range(len(shown)),
        [f"{cell_name(cell)}\n{cell.pairs:,} pairs\n{cell.calibration_pairs:,} labeled" for cell in shown],
    )
    axes.set_ylim(0, 1.25)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(frameon=False, loc="upper right", ncols=2)


def _plot_map(axes: Axes, cells: Sequence[ReliabilityCell]) -> None:
    """alpha as color over history length x popularity; in words how often LLM and model are right."""
    histories = list(dict.fromkeys(cell.history_from for cell in cells))
    popularities = list(dict.fromkeys(cell.popularity_from for cell in cells))
    by_place = {(cell.history_from, cell.popularity_from): cell for cell in cells}
    alpha = np.array(
        [[by_place[h, p].mean_alpha for p in popularities] for h in histories], float
    )  # None becomes NaN: no pairs, no color
    image = axes.imshow(alpha, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, h in enumerate(histories):
        for x, p in enumerate(popularities):
            cell = by_place[h, p]
            if cell.mean_alpha is not None:
                lines = [f"alpha {cell.mean_alpha:.2f}", *_rights(cell)]
                color = "white" if cell.mean_alpha > 0.6 else CELL_INK
                axes.text(x, y, "\n".join(lines), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(popularities)), _ranges(popularities))
    axes.set_yticks(range(len(histories)), _ranges(histories))
    axes.set_xlabel("train positives of the pair's rarer item")
    axes.set_ylabel("earlier positives of the user")
    axes.figure.colorbar(image, ax=axes, label="alpha, mean")


def _rights(cell: ReliabilityCell) -> list[str]:
    """`LLM right .71 to .75` and the same of the model, where measured."""
    return [
        f"{name} right {right.lower:.2f} to {right.upper:.2f}"
        for name, right in (("LLM", cell.llm_right), ("model", cell.model_right))
        if right is not None
    ]


def _ranges(starts: Sequence[int]) -> list[str]:
    """[0, 4, 10] -> 0 to 3, 4 to 9, 10 or more."""
    closed = [f"{start} to {end - 1}" for start, end in itertools.pairwise(starts)]
    return [*closed, f"{starts[-1]} or more"]


def _plot_alpha(axes: Axes, by_epoch: Sequence[Mapping[str, float]]) -> None:
    epochs = range(1, len(by_epoch) + 1)
    for fractions, opacity in ((("0.05", "0.95"), 0.15), (("0.25", "0.75"), 0.3)):
        low, high = ([quantiles[fraction] for quantiles in by_epoch] for fraction in fractions)
        axes.fill_between(epochs, low, high, color=ACCENT, alpha=opacity, linewidth=0)
    axes.plot(epochs, [quantiles["0.5"] for quantiles in by_epoch], "o-", color=ACCENT)
    axes.set_ylim(0, 1)
    axes.set_xticks(list(epochs))
    axes.set_xlabel("epoch")
    axes.set_ylabel("alpha: median, 50% and 90%")


def cell_name(cell: GateCell) -> str:
    """A region of the gate in words: `all`, or short or long history with a tail item or without one."""
    if cell.short_history is None:
        return "all"
    return f"{'short' if cell.short_history else 'long'} history,\n{'a tail item' if cell.tail else 'no tail item'}"


def _plot_training(axes: Axes, training: TrainingReport) -> None:
    auc = [epoch.valid_auc for epoch in training.epochs]
    epochs = range(1, len(auc) + 1)
    axes.plot(epochs, auc, "o-", color=ACCENT)
    axes.axvline(training.best_epoch, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(list(epochs))
    axes.set_xlabel("epoch (dotted: the one that is served)")
    axes.set_ylabel("validation AUC")


def _plot_steps(axes: Axes, steps: Mapping[str, StepTime]) -> None:
    axes.barh(
        range(len(steps)),
        [step.seconds for step in steps.values()],
        color=[MUTED if step.cached else ACCENT for step in steps.values()],
    )
    axes.set_yticks(range(len(steps)), [f"{name} (cached)" if step.cached else name for name, step in steps.items()])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")

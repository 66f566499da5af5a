"""report.html: one self-contained page that shows a run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import yaml
from matplotlib.axes import Axes

from components.llm_scorer.staleness import staleness_warning
from pipeline.console import score_lines
from pipeline.page import ACCENT, MUTED, WARM, environment, svg


def write(summary: Mapping[str, Any], file: pathlib.Path) -> None:
    """Renders `summary` (of pipeline.summary.collect) to `file`; needs no network to be read."""
    plots = {
        "slices": svg(lambda axes: _plot_slices(axes, summary), 5.2, 2.6),
        "gate": svg(lambda axes: _plot_gate(axes, summary["training"]["gate"]), 7.2, 3.0) if summary["llm"] else "",
        "training": svg(lambda axes: _plot_training(axes, summary["training"]), 4.4, 2.8),
        "steps": svg(lambda axes: _plot_steps(axes, summary["steps"]), 4.8, 2.8),
    }
    llm = summary["llm"]
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            s=summary,
            score_lines=score_lines(llm, llm["age"]) if llm else [],
            score_warning=staleness_warning(llm["age"], summary["config"]["llm"]["max_age_days"]) if llm else None,
            plots={name: jinja2.utils.markupsafe.Markup(plot) for name, plot in plots.items()},
            config_yaml=yaml.safe_dump(summary["config"], sort_keys=False),
        )
    )
    file.write_text(page, encoding="utf-8")


def _plot_slices(axes: Axes, summary: Mapping[str, Any]) -> None:
    names = list(summary["metrics"])
    for y, name in enumerate(names):
        m = summary["metrics"][name]
        if m["lower"] is not None:
            axes.plot([m["lower"], m["upper"]], [y, y], color=ACCENT, linewidth=2)
        axes.plot(m["auc"], y, "o", color=ACCENT, label="model, 95% interval" if y == 0 else None)
        popularity = summary["popularity_baseline"].get(name, {}).get("auc")
        if popularity is not None:
            axes.plot(popularity, y, "x", color=MUTED, label="popularity" if y == 0 else None)
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("AUC (dotted: chance)")
    axes.legend(frameon=False, loc="best")


def _plot_gate(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    shown = [cell for cell in cells if cell["pairs"]]
    for x, cell in enumerate(shown):
        first = x == 0
        axes.bar(x - 0.18, cell["mean_alpha"], 0.34, color=ACCENT, label="gate alpha, mean" if first else None)
        if cell["llm_accuracy"] is not None:
            label = "LLM agrees with the user" if first else None
            axes.bar(x + 0.18, cell["llm_accuracy"], 0.34, color=WARM, label=label)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(
        range(len(shown)),
        [f"{cell_name(cell)}\n{cell['pairs']:,} pairs\n{cell['probes']:,} labelled" for cell in shown],
    )
    axes.set_ylim(0, 1.25)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(frameon=False, loc="upper right", ncols=2)


def cell_name(cell: Mapping[str, Any]) -> str:
    """A region of the gate in words: `all`, or short or long history with a tail item or without one."""
    if cell["cold"] is None:
        return "all"
    return f"{'short' if cell['cold'] else 'long'} history,\n{'a tail item' if cell['tail'] else 'no tail item'}"


def _plot_training(axes: Axes, training: Mapping[str, Any]) -> None:
    auc = [epoch["valid_auc"] for epoch in training["epochs"]]
    epochs = range(1, len(auc) + 1)
    axes.plot(epochs, auc, "o-", color=ACCENT)
    axes.axvline(training["best_epoch"], color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xticks(list(epochs))
    axes.set_xlabel("epoch (dotted: the one that is served)")
    axes.set_ylabel("validation AUC")


def _plot_steps(axes: Axes, steps: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(steps)
    axes.barh(
        range(len(names)),
        [steps[name]["seconds"] for name in names],
        color=[MUTED if steps[name]["cached"] else ACCENT for name in names],
    )
    axes.set_yticks(range(len(names)), [f"{name} (cached)" if steps[name]["cached"] else name for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")

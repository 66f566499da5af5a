"""report.html: one self-contained page that shows a run."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.axes import Axes

from components.llm_scorer.staleness import staleness_warning
from pipeline.console import score_lines
from pipeline.page import ACCENT, INK, MUTED, WARM, environment, svg


def write(summary: Mapping[str, Any], file: pathlib.Path) -> None:
    """Renders `summary` (of pipeline.summary.collect) to `file`; needs no network to be read."""
    plots = {
        "slices": svg(lambda axes: _plot_slices(axes, summary), 5.2, 2.6),
        "gate": svg(lambda axes: _plot_gate(axes, summary["training"]["gate"]), 7.2, 3.0) if summary["llm"] else "",
        "map": svg(lambda axes: _plot_map(axes, summary["training"]["reliability"]), 6.4, 3.4)
        if summary["training"]["reliability"]
        else "",
        "alpha": svg(lambda axes: _plot_alpha(axes, summary["training"]["alpha_by_epoch"]), 4.4, 2.8)
        if summary["training"]["alpha_by_epoch"]
        else "",
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


def _plot_map(axes: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    """alpha as colour over history length x popularity; in words how often LLM and model are right."""
    histories, popularities = (list(dict.fromkeys(cell[key] for cell in cells)) for key in _MAP_AXES)
    by_place = {tuple(cell[key] for key in _MAP_AXES): cell for cell in cells}
    alpha = np.array(
        [[by_place[h, p]["mean_alpha"] for p in popularities] for h in histories], float
    )  # None becomes NaN: no pairs, no colour
    image = axes.imshow(alpha, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, h in enumerate(histories):
        for x, p in enumerate(popularities):
            cell = by_place[h, p]
            if cell["mean_alpha"] is not None:
                lines = [f"alpha {cell['mean_alpha']:.2f}", *_rights(cell)]
                colour = "white" if cell["mean_alpha"] > 0.6 else INK
                axes.text(x, y, "\n".join(lines), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(popularities)), _ranges(popularities))
    axes.set_yticks(range(len(histories)), _ranges(histories))
    axes.set_xlabel("train positives of the pair's rarer item")
    axes.set_ylabel("earlier positives of the user")
    axes.figure.colorbar(image, ax=axes, label="alpha, mean")


_MAP_AXES = ("history_from", "popularity_from")


def _rights(cell: Mapping[str, Any]) -> list[str]:
    """`LLM right .71 to .75` and the same of the model, where measured."""
    return [
        f"{name} right {cell[key]['lower']:.2f} to {cell[key]['upper']:.2f}"
        for name, key in (("LLM", "llm_right"), ("model", "model_right"))
        if cell[key] is not None
    ]


def _ranges(starts: Sequence[int]) -> list[str]:
    """[0, 4, 10] -> 0 to 3, 4 to 9, 10 or more."""
    closed = [f"{start} to {end - 1}" for start, end in itertools.pairwise(starts)]
    return [*closed, f"{starts[-1]} or more"]


def _plot_alpha(axes: Axes, by_epoch: Sequence[Mapping[str, float]]) -> None:
    epochs = range(1, len(by_epoch) + 1)
    for shares, opacity in ((("0.05", "0.95"), 0.15), (("0.25", "0.75"), 0.3)):
        low, high = ([quantiles[share] for quantiles in by_epoch] for share in shares)
        axes.fill_between(epochs, low, high, color=ACCENT, alpha=opacity, linewidth=0)
    axes.plot(epochs, [quantiles["0.5"] for quantiles in by_epoch], "o-", color=ACCENT)
    axes.set_ylim(0, 1)
    axes.set_xticks(list(epochs))
    axes.set_xlabel("epoch")
    axes.set_ylabel("alpha: median, 50% and 90%")


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

"""The report's tables of the gates that were fitted: how far alpha spreads, and where it is high and the LLM right."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sllmr.pipeline.ablation.results import Run
from sllmr.pipeline.ablation.statistics import paired_interval

REGIONS: dict[str, tuple[bool | None, bool | None]] = {
    "all pairs": (None, None),
    "short history, tail": (True, True),
    "short history, head": (True, False),
    "long history, tail": (False, True),
    "long history, head": (False, False),
}
"""Heading -> short_history and tail of models.training.report.GateCell."""

ALPHA_MAP_LEGEND = (
    "First line: the mean of alpha over the pairs of a region, over seeds ± the half-width of its 95% interval over "
    "seeds (Student's t; a single seed has none). Second line: the fraction of the region's calibration pairs in which "
    "the LLM prefers the target item, and the number of these pairs, both as means over the seeds. A pair is in the "
    "tail if either item is a long-tail item."
)


class AlphaMap(NamedTuple):
    """The fitted gates of one backbone.

    Attributes:
        backbone: which.
        rows: arm -> number of seeds, and by region the lines of the table cell; empty for a region without pairs.
    """

    backbone: str
    rows: dict[str, tuple[int, dict[str, list[str]]]]


def alpha_maps(
    by_cell: Mapping[tuple[str, str], Sequence[Run]], backbones: Sequence[str], arms: Sequence[str]
) -> list[AlphaMap]:
    """One map for each backbone with a fitted gate.

    Args:
        by_cell: runs of one domain by backbone and arm.
        backbones, arms: in the order of the tables.
    """
    maps = []
    for backbone in backbones:
        rows = {}
        for arm in arms:
            fitted = _fitted(by_cell.get((backbone, arm), []))
            gates = [gate for run in fitted if (gate := run.training.get("gate"))]
            if gates:
                rows[arm] = len(gates), {name: _cell(gates, *region) for name, region in REGIONS.items()}
        if rows:
            maps.append(AlphaMap(backbone, rows))
    return maps


def alpha_spread(runs: Sequence[Run]) -> str | None:
    """`.45 [.21, .73]`: median of alpha over the pairs and its 5% and 95% quantiles, means over seeds; None without a
    gate that was fitted.
    """
    quantiles = [run.training["alpha_quantiles"] for run in _fitted(runs)]
    if not quantiles:
        return None
    low, middle, high = (float(np.mean([q[fraction] for q in quantiles])) for fraction in ("0.05", "0.5", "0.95"))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _fitted(runs: Sequence[Run]) -> list[Run]:
    """The runs whose gate was fitted; a frozen one has no weights."""
    return [run for run in runs if run.training.get("gate_weights")]


def _cell(gates: Sequence[Sequence[Mapping[str, Any]]], short_history: bool | None, tail: bool | None) -> list[str]:
    cells = [cell for gate in gates for cell in gate if (cell["short_history"], cell["tail"]) == (short_history, tail)]
    alphas = [cell["mean_alpha"] for cell in cells if cell["mean_alpha"] is not None]
    if not alphas:
        return []
    # Over seeds alone: the pairs are those that were scored, no sample of users.
    interval = paired_interval(alphas, [0.0] * len(alphas))
    lines = [f"{interval.mean:.3f}"]
    if interval.seeds > 1:
        lines[0] += f" ± {interval.upper - interval.mean:.3f}"
    accuracies = [cell["llm_accuracy"] for cell in cells if cell["llm_accuracy"] is not None]
    if accuracies:
        pairs = np.mean([cell["calibration_pairs"] for cell in cells])
        lines.append(f"LLM right in {np.mean(accuracies):.3f} of {pairs:,.0f}")
    return lines

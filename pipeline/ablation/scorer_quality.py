"""How accurate an LLM has to be: what its pairs add to the same model without pairs, by the accuracy of the scores.

The arms compared differ in their scores alone: `permuted_fraction` of an arm makes them less accurate.
"""

import collections
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from sllmr.pipeline.ablation.arms import TEXT_MATCH
from sllmr.pipeline.ablation.paper import SLICES
from sllmr.pipeline.ablation.results import Run, over_seeds
from sllmr.pipeline.ablation.statistics import Interval
from sllmr.pipeline.page import ACCENT, INK, MUTED, WARM, svg


class ScorerPoint(NamedTuple):
    """One arm: scores of one accuracy.

    Attributes:
        arm: its name.
        seeds: how many.
        accuracy: fraction of the calibration pairs in which the scores prefer the target item, in [0, 1]; mean over
            seeds.
        gains: by slice, test AUC minus that of the arm text_match with the same seed.
    """

    arm: str
    seeds: int
    accuracy: float
    gains: dict[str, Interval]


def scorer_points(runs: Sequence[Run]) -> dict[str, list[ScorerPoint]]:
    """By backbone the arms of one domain that differ in nothing but their scores, the most accurate scores first.

    All points of a backbone are over the same seeds, those that every one of its arms has. Backbones with fewer than
    three such arms are left out.
    """
    alike: dict[tuple[str, str], dict[str, list[Run]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for run in runs:
        arm = run.arm_config
        if arm and arm.get("scores") != "constant" and TEXT_MATCH in run.versus and _accuracy(run) is not None:
            # run.settings already hold the values that tuned_as leads to.
            rest = {key: value for key, value in arm.items() if key not in ("scores", "permuted_fraction", "tuned_as")}
            alike[run.backbone, json.dumps(rest, sort_keys=True) + run.settings][run.arm].append(run)
    result = {}
    for (backbone, _), arms in alike.items():
        seeds = set.intersection(*({run.seed for run in cell} for cell in arms.values()))
        if len(arms) >= 3 and seeds:
            points = [_point([run for run in cell if run.seed in seeds]) for cell in arms.values()]
            result[backbone] = sorted(points, key=lambda point: -point.accuracy)
    return result


def _accuracy(run: Run) -> float | None:
    # The first cell of the gate's report is of all pairs.
    return run.training["gate"][0]["llm_accuracy"] if run.training.get("gate") else None


def _point(runs: Sequence[Run]) -> ScorerPoint:
    gains = {}
    for name in SLICES:
        if interval := over_seeds(run.versus[TEXT_MATCH].get(name) for run in runs):
            gains[name] = interval
    accuracies = [accuracy for run in runs if (accuracy := _accuracy(run)) is not None]
    return ScorerPoint(arm=runs[0].arm, seeds=len(runs), accuracy=float(np.mean(accuracies)), gains=gains)


def scorer_plot(points: Sequence[ScorerPoint], backbone: str) -> str:
    """Gain by accuracy, one line a slice, as an SVG element."""
    colors = dict(zip(SLICES, (ACCENT, INK, WARM), strict=True))

    def draw(axes: Axes) -> None:
        for offset, (name, color) in enumerate(colors.items()):
            taken = [point for point in points if name in point.gains]
            x = [point.accuracy + 0.002 * (offset - 1) for point in taken]
            gains = [point.gains[name] for point in taken]
            axes.plot(x, [gain.mean for gain in gains], "o-", color=color, label=name, markersize=4)
            for place, gain in zip(x, gains, strict=True):
                axes.plot([place, place], [gain.lower, gain.upper], color=color, linewidth=1)
        axes.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xlabel("calibration pairs in which the scores prefer the target item (.5: chance)")
        axes.set_ylabel("AUC minus that of text_match")
        axes.legend(frameon=False, loc="upper left")

    return svg(draw, 6.4, 3.6, f"What pairs add to text_match by the accuracy of their scores, {backbone}")

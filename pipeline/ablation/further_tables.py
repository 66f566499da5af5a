"""The report's tables of the metrics beside AUC: arms by metrics, for each backbone and slice that has any."""

import collections
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sllmr.models.metric_names import LESS_IS_BETTER
from sllmr.pipeline.ablation.arms import NONE, TEXT_MATCH
from sllmr.pipeline.ablation.cell_format import format_auc, format_mean, marked
from sllmr.pipeline.ablation.paper import SLICES
from sllmr.pipeline.ablation.results import Run, over_seeds
from sllmr.pipeline.ablation.statistics import Interval, mean_and_standard_error

COMPARED_WITH = (NONE, TEXT_MATCH)
"""Each arm is compared with these, if they were run before it."""

HEADINGS = {
    "per_user_auc": "AUC by user",
    "log_loss": "log loss, less is better",
    "calibration_error": "calibration error, less is better",
    "sampled_ndcg_at_10": "NDCG@10, sampled items",
    "sampled_hit_rate_at_10": "hit rate@10, sampled items",
    "all_items_ndcg_at_10": "NDCG@10, all items",
    "all_items_hit_rate_at_10": "hit rate@10, all items",
}
"""Metric -> heading of its column, in the order of the columns."""

BASELINES = {"popularity": "popularity", "llm_scorer": "LLM scorer alone"}
"""Baseline -> name of its row, above the arms."""

FURTHER_LEGEND = (
    "Means over the runs that have these metrics (standard error over seeds); then the mean differences to the arms "
    f"{' and '.join(COMPARED_WITH)} of the same seed, with the 95% interval, star, and dagger of the tables above. AUC "
    "by user, log loss, and calibration error are those of the test rows. NDCG and hit rate are those of each user's "
    "first test positive among sampled items, or all items, that the user never interacted with."
)


class FurtherCell(NamedTuple):
    """One arm's metric over its seeds.

    Attributes:
        mean: over the seeds.
        standard_error: of it; None for a single seed.
        differences: by the arm that is compared with.
        less_is_better: whether a negative difference is a gain.
    """

    mean: float
    standard_error: float | None
    differences: dict[str, Interval]
    less_is_better: bool

    @property
    def lines(self) -> list[str]:
        """The lines of the table cell."""
        lines = [format_mean(self.mean, self.standard_error)]
        for arm, interval in self.differences.items():
            lines.append(marked(interval) if arm == NONE else f"{arm}: {marked(interval)}")
        return lines

    @property
    def verdict(self) -> Literal["gain", "loss", "not told apart"]:
        """Whether the arm is better or worse than `none`."""
        verdict = self.differences[NONE].verdict if NONE in self.differences else "not told apart"
        if not self.less_is_better or verdict == "not told apart":
            return verdict
        return "loss" if verdict == "gain" else "gain"


class FurtherTable(NamedTuple):
    """The metrics of one backbone on one slice.

    Attributes:
        backbone, slice_name: which.
        headings: of the columns, by metric.
        baselines: name of the row -> metric -> value, None where there is none.
        rows: arm -> metric -> cell, None where the metric was not measured.
        caption: users and candidates.
    """

    backbone: str
    slice_name: str
    headings: dict[str, str]
    baselines: dict[str, dict[str, str | None]]
    rows: dict[str, dict[str, FurtherCell | None]]
    caption: str


def further_tables(runs: Sequence[Run], backbones: Sequence[str], arms: Sequence[str]) -> list[FurtherTable]:
    """The tables of one domain; none if no run has such metrics."""
    tables = []
    for backbone in backbones:
        by_arm: dict[str, list[Run]] = collections.defaultdict(list)
        for run in runs:
            if run.backbone == backbone and run.further_metrics:
                by_arm[run.arm].append(run)
        found = [run for of_arm in by_arm.values() for run in of_arm]
        for name in SLICES:
            metrics = [m for m in HEADINGS if any(run.further_metrics.get(m, {}).get(name) for run in found)]
            if not metrics:
                continue
            tables.append(
                FurtherTable(
                    backbone=backbone,
                    slice_name=name,
                    headings={metric: HEADINGS[metric] for metric in metrics},
                    baselines=_baselines(found, metrics, name),
                    rows={arm: {m: _cell(by_arm[arm], m, name) for m in metrics} for arm in arms if arm in by_arm},
                    caption=_caption(found, metrics, name),
                )
            )
    return tables


def _cell(runs: Sequence[Run], metric: str, slice_name: str) -> FurtherCell | None:
    measures = [m for run in runs if (m := run.further_metrics.get(metric, {}).get(slice_name))]
    if not measures:
        return None
    mean, standard_error = mean_and_standard_error([measure.value for measure in measures])
    differences = {}
    for arm in COMPARED_WITH:
        if interval := over_seeds(measure.versus.get(arm) for measure in measures):
            differences[arm] = interval
    return FurtherCell(mean, standard_error, differences, metric in LESS_IS_BETTER)


def _baselines(runs: Sequence[Run], metrics: Sequence[str], slice_name: str) -> dict[str, dict[str, str | None]]:
    """Baselines depend on neither backbone nor seed, so each shows the value of the first run that has one."""
    rows = {}
    for baseline, row in BASELINES.items():
        values: dict[str, str | None] = {}
        for metric in metrics:
            measures = [run.further_metrics.get(metric, {}).get(slice_name) for run in runs]
            known = [m.baselines[baseline] for m in measures if m and baseline in m.baselines]
            values[metric] = format_auc(known[0]) if known else None
        if any(values.values()):
            rows[row] = values
    return rows


def _caption(runs: Sequence[Run], metrics: Sequence[str], slice_name: str) -> str:
    parts = []
    for metric in metrics:
        users = {m.users for run in runs if (m := run.further_metrics.get(metric, {}).get(slice_name))}
        parts.append(f"{HEADINGS[metric].partition(', less')[0]}: {' or '.join(f'{n:,}' for n in sorted(users))}")
    rankings = {
        f"{name.replace('_', ' ')}: at most {info.candidates - 1:,} beside the positive, hash {info.hash[:16]}"
        for run in runs
        for name, info in run.rankings.items()
    }
    return f"Users, {'; '.join(parts)}." + "".join(f" Candidates, {ranking}." for ranking in sorted(rankings))

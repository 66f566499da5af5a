"""Selects one arm by validation AUC and compares it with every other on the test rows."""

import collections
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from sllmr.pipeline.ablation.arms import ARMS, LATE_FUSION, NONE
from sllmr.pipeline.ablation.paper import BACKBONES, SLICES
from sllmr.pipeline.ablation.results import Difference, Run, over_seeds
from sllmr.pipeline.ablation.statistics import Interval

_NO_DIFFERENCE = Difference(difference=0.0, standard_error=0.0)


class Kept(NamedTuple):
    """A difference to `none` as a fraction of late fusion's, on one backbone and slice.

    Attributes:
        fraction: ratio of the two sums over the seeds that both have.
        least, most: of the single seeds in which late fusion's difference is above 0.
    """

    fraction: float
    least: float
    most: float


class Tally(NamedTuple):
    """The selected arm against one other, over backbones, domains and slices.

    Attributes:
        seeds: that both have, in the cell with the fewest.
        cells: how many were compared.
        above: in how many its AUC is the higher.
        gains, losses: in how many the interval excludes zero.
    """

    seeds: int
    cells: int
    above: int
    gains: int
    losses: int


class Comparison(NamedTuple):
    """The selected arm on one slice of one domain.

    Attributes:
        domain, slice_name: which.
        others: the arms that it is compared with.
        differences: AUC of the selected arm minus that of the other, by backbone and other arm; None without
            a seed that both have.
        kept: by backbone; None where late fusion's sum is not above 0.
    """

    domain: str
    slice_name: str
    others: list[str]
    differences: dict[str, dict[str, Interval | None]]
    kept: dict[str, Kept | None]


class Selection(NamedTuple):
    """The arm with the best mean validation AUC, one arm for all domains, backbones and seeds.

    Only whole domains take part, those that have every backbone of the matrix; the others answer separate questions.

    Attributes:
        arm: selected among the arms that need no LLM to serve and were run on every backbone of every whole domain.
        valid_auc: of each of these, over the same (domain, backbone, seed), best first.
        shared: how many these are.
        comparisons: by domain and slice.
    """

    arm: str
    valid_auc: dict[str, float]
    shared: int
    comparisons: list[Comparison]

    @property
    def tallies(self) -> dict[str, Tally]:
        """The comparisons summed up, by other arm."""
        found: dict[str, list[Interval]] = collections.defaultdict(list)
        for comparison in self.comparisons:
            for row in comparison.differences.values():
                for arm, interval in row.items():
                    if interval is not None:
                        found[arm].append(interval)
        return {arm: _tally(found[arm]) for arm in in_order(tuple(ARMS), found)}


def in_order(known: Sequence[str], found: Collection[str]) -> list[str]:
    """The names of `found` without repetition: those of `known` in its order, then the others by name."""
    return [name for name in known if name in found] + sorted(set(found) - set(known))


def select_arm(runs: Sequence[Run]) -> Selection | None:
    """Selects the arm with the best validation AUC and compares it with each other; None with fewer than two."""
    by_arm: dict[str, dict[tuple[str, str, int], Run]] = collections.defaultdict(dict)
    for run in runs:
        by_arm[run.arm][run.domain, run.backbone, run.seed] = run
    backbones = {run.backbone for run in runs}
    domains = [
        domain
        for domain in dict.fromkeys(run.domain for run in runs)
        if {run.backbone for run in runs if run.domain == domain} == backbones
    ]
    places = set(itertools.product(domains, backbones))
    everywhere = [
        arm
        for arm, cells in by_arm.items()
        if arm != LATE_FUSION and places <= {(domain, backbone) for domain, backbone, _ in cells}
    ]
    if not places or len(everywhere) < 2:
        return None
    shared = {cell for cell in set.intersection(*(set(by_arm[arm]) for arm in everywhere)) if cell[0] in domains}
    if not shared:
        return None
    means = {arm: float(np.mean([by_arm[arm][cell].valid_auc for cell in shared])) for arm in everywhere}
    valid_auc = dict(sorted(means.items(), key=lambda item: -item[1]))
    best = next(iter(valid_auc))
    comparisons = [_compare(runs, best, domain, slice_name) for domain in domains for slice_name in SLICES]
    return Selection(best, valid_auc, len(shared), comparisons)


def _compare(runs: Sequence[Run], best: str, domain: str, slice_name: str) -> Comparison:
    found: dict[str, dict[str, dict[int, Run]]] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for run in runs:
        if run.domain == domain:
            found[run.backbone][run.arm][run.seed] = run
    backbones = in_order(BACKBONES, found)
    others = in_order(tuple(ARMS), {run.arm for run in runs if run.domain == domain} - {best})
    differences = {
        backbone: {arm: _between(found[backbone][best], found[backbone].get(arm, {}), slice_name) for arm in others}
        for backbone in backbones
    }
    kept = {
        backbone: _kept(found[backbone][best], found[backbone].get(LATE_FUSION, {}), slice_name)
        for backbone in backbones
    }
    return Comparison(domain, slice_name, others, differences, kept)


def _versus_none(run: Run, slice_name: str) -> Difference | None:
    return _NO_DIFFERENCE if run.arm == NONE else run.versus.get(NONE, {}).get(slice_name)


def _kept(own: dict[int, Run], fusion: dict[int, Run], slice_name: str) -> Kept | None:
    pairs = []
    for seed in sorted(own.keys() & fusion.keys()):
        ours, theirs = _versus_none(own[seed], slice_name), _versus_none(fusion[seed], slice_name)
        if ours is not None and theirs is not None:
            pairs.append((ours.difference, theirs.difference))
    headroom = sum(theirs for _, theirs in pairs)
    if headroom <= 0:
        return None
    single = [ours / theirs for ours, theirs in pairs if theirs > 0]
    return Kept(sum(ours for ours, _ in pairs) / headroom, min(single), max(single))


def _tally(intervals: Sequence[Interval]) -> Tally:
    return Tally(
        seeds=min(interval.seeds for interval in intervals),
        cells=len(intervals),
        above=sum(interval.mean > 0 for interval in intervals),
        gains=sum(interval.verdict == "gain" for interval in intervals),
        losses=sum(interval.verdict == "loss" for interval in intervals),
    )


def _between(best: dict[int, Run], other: dict[int, Run], slice_name: str) -> Interval | None:
    """The difference of two arms over the seeds that both have; None where there is none."""
    return over_seeds(_difference(best[seed], other[seed], slice_name) for seed in sorted(best.keys() & other.keys()))


def _difference(run: Run, other: Run, slice_name: str) -> Difference | None:
    """AUC of `run` minus that of `other`.

    Earlier lines hold only comparisons with `none`, and not how two arms vary together. Then the sum of the two
    standard errors is taken, which is never below that of the difference.
    """
    if direct := run.versus.get(other.arm, {}).get(slice_name):
        return direct
    if inverse := other.versus.get(run.arm, {}).get(slice_name):
        return inverse.model_copy(update={"difference": -inverse.difference})
    ours, theirs = _versus_none(run, slice_name), _versus_none(other, slice_name)
    if ours is None or theirs is None:
        return None
    return Difference(
        difference=ours.difference - theirs.difference, standard_error=ours.standard_error + theirs.standard_error
    )

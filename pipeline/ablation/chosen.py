"""The one arm that the validation rows choose, against every other on the test rows."""

import collections
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.ablation.arms import ARMS, LATE_FUSION
from pipeline.ablation.paper import BACKBONES, SLICES
from pipeline.ablation.results import Difference, Run
from pipeline.ablation.statistics import Interval, paired_interval

_NO_DIFFERENCE = Difference(difference=0.0, standard_error=0.0)


class Kept(NamedTuple):
    """A difference to `none` as a share of late fusion's, on one backbone and slice.

    Attributes:
        share: ratio of the two sums over the seeds that both have.
        least, most: of the single seeds in which late fusion's difference is above 0.
    """

    share: float
    least: float
    most: float


class Tally(NamedTuple):
    """The chosen arm against one other, over backbones, domains and slices.

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


class Contest(NamedTuple):
    """The chosen arm on one slice of one domain.

    Attributes:
        domain, slice_name: which.
        others: the arms that it is held against.
        differences: AUC of the chosen arm minus that of the other, by backbone and other arm; None without a seed that
            both have.
        kept: by backbone; None where late fusion's sum is not above 0.
    """

    domain: str
    slice_name: str
    others: list[str]
    differences: dict[str, dict[str, Interval | None]]
    kept: dict[str, Kept | None]


class Choice(NamedTuple):
    """The arm of the best mean validation AUC, one for all whole domains, backbones and seeds.

    A domain is whole that has every backbone of the matrix; others are questions of their own and have no vote.

    Attributes:
        arm: chosen among the arms that need no LLM to serve and were run on every backbone of every whole domain.
        valid_auc: of each of these, over the same (domain, backbone, seed), best first.
        shared: how many these are.
        contests: by domain and slice.
    """

    arm: str
    valid_auc: dict[str, float]
    shared: int
    contests: list[Contest]

    @property
    def tallies(self) -> dict[str, Tally]:
        """The contests summed up, by other arm."""
        found: dict[str, list[Interval]] = collections.defaultdict(list)
        for contest in self.contests:
            for row in contest.differences.values():
                for arm, interval in row.items():
                    if interval is not None:
                        found[arm].append(interval)
        return {arm: _tally(found[arm]) for arm in in_order(tuple(ARMS), found)}


def in_order(known: Sequence[str], found: Collection[str]) -> list[str]:
    """What was found: what is known first, as it stands there, then the others by name."""
    return [name for name in known if name in found] + sorted(set(found) - set(known))


def choose(runs: Sequence[Run]) -> Choice | None:
    """The arm chosen by validation AUC, and what it gains over each other; None unless there are two to choose from."""
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
    contests = [_contest(runs, best, domain, slice_name) for domain in domains for slice_name in SLICES]
    return Choice(best, valid_auc, len(shared), contests)


def _contest(runs: Sequence[Run], best: str, domain: str, slice_name: str) -> Contest:
    found: dict[str, dict[str, dict[int, Difference]]] = collections.defaultdict(lambda: collections.defaultdict(dict))
    for run in runs:
        difference = _NO_DIFFERENCE if run.versus_none is None else run.versus_none.get(slice_name)
        if run.domain == domain and difference is not None:
            found[run.backbone][run.arm][run.seed] = difference
    backbones = in_order(BACKBONES, found)
    others = in_order(tuple(ARMS), {run.arm for run in runs if run.domain == domain} - {best})
    differences = {
        backbone: {arm: _between(found[backbone][best], found[backbone].get(arm, {})) for arm in others}
        for backbone in backbones
    }
    kept = {backbone: _kept(found[backbone][best], found[backbone].get(LATE_FUSION, {})) for backbone in backbones}
    return Contest(domain, slice_name, others, differences, kept)


def _kept(own: dict[int, Difference], fusion: dict[int, Difference]) -> Kept | None:
    seeds = sorted(own.keys() & fusion.keys())
    headroom = sum(fusion[seed].difference for seed in seeds)
    if headroom <= 0:
        return None
    single = [own[seed].difference / fusion[seed].difference for seed in seeds if fusion[seed].difference > 0]
    return Kept(sum(own[seed].difference for seed in seeds) / headroom, min(single), max(single))


def _tally(intervals: Sequence[Interval]) -> Tally:
    return Tally(
        seeds=min(interval.seeds for interval in intervals),
        cells=len(intervals),
        above=sum(interval.mean > 0 for interval in intervals),
        gains=sum(interval.verdict == "gain" for interval in intervals),
        losses=sum(interval.verdict == "loss" for interval in intervals),
    )


def _between(best: dict[int, Difference], other: dict[int, Difference]) -> Interval | None:
    """The difference of two arms from their differences to `none`, over the seeds that both have.

    Both were measured on the same rows, but how the two vary together was not kept: the standard error of a difference
    is at most the sum of the standard errors, and that is what is taken.
    """
    seeds = sorted(best.keys() & other.keys())
    if not seeds:
        return None
    return paired_interval(
        [best[seed].difference - other[seed].difference for seed in seeds],
        [best[seed].standard_error + other[seed].standard_error for seed in seeds],
    )

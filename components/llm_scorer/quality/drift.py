"""How far an LLM's preferences moved between two responses about the same candidates."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

from sllmr.components.llm_scorer.quality.audit import Flips
from sllmr.components.llm_scorer.results import DriftReport
from sllmr.components.scores import ScoreRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """How far two records of one user differ, over the candidates that both scored.

    Attributes:
        candidates: number of shared candidates.
        absolute_change: |llm_score after - llm_score before|, summed over the shared candidates.
        flips: counts of the pairs that both records order strictly.
        tau: Kendall's tau-b of the two orders; None if no candidates are shared or one record ties them all.
    """

    candidates: int
    absolute_change: float
    flips: Flips
    tau: float | None


def drift_between(before: ScoreRecord, after: ScoreRecord) -> Drift:
    """Compares two records over the candidates in common."""
    earlier = dict(zip(before.item_ids, before.llm_scores, strict=True))
    later = dict(zip(after.item_ids, after.llm_scores, strict=True))
    shared = [(earlier[item_id], later[item_id]) for item_id in earlier if item_id in later]
    pairs = flipped = 0
    for (before_a, after_a), (before_b, after_b) in itertools.combinations(shared, 2):
        if before_a != before_b and after_a != after_b:
            pairs += 1
            flipped += (before_a > before_b) != (after_a > after_b)
    return Drift(
        candidates=len(shared),
        absolute_change=math.fsum(abs(score_after - score_before) for score_before, score_after in shared),
        flips=Flips(pairs=pairs, flipped=flipped),
        tau=_kendalls_tau(shared),
    )


def _kendalls_tau(scores: list[tuple[float, float]]) -> float | None:
    """Tau-b, which accounts for ties; None if all scores before, or all after, are equal."""
    if not scores or any(len(set(side)) == 1 for side in zip(*scores, strict=True)):
        return None
    import scipy.stats  # takes over a second

    return float(scipy.stats.kendalltau(*zip(*scores, strict=True)).statistic)


def drift_report(contexts: Iterable[tuple[ScoreRecord, ScoreRecord]]) -> DriftReport:
    """The drift's part of the ledger.

    Args:
        contexts: what was scored before and after, context by context.
    """
    drifts = [drift_between(before, after) for before, after in contexts]
    candidates = sum(drift.candidates for drift in drifts)
    taus = [drift.tau for drift in drifts if drift.tau is not None]
    return DriftReport(
        contexts=len(drifts),
        shared_candidates=candidates,
        mean_absolute_change=math.fsum(d.absolute_change for d in drifts) / candidates if candidates else None,
        mean_kendall_tau=math.fsum(taus) / len(taus) if taus else None,
        contexts_with_tau=len(taus),
        **sum((drift.flips for drift in drifts), Flips()).report().model_dump(),
    )


def drift_line(report: DriftReport) -> str:
    """`drift: 12.5% of 320 pairs changed their order (95%: 9.3% to 16.6%), ...`."""
    if report.flip_rate is None or report.interval_95 is None:
        return f"drift: {report.contexts} contexts scored again, no pair that both scores order"
    low, high = report.interval_95
    tau = report.mean_kendall_tau
    return (
        f"drift: {report.flip_rate:.1%} of {report.pairs} pairs changed their order (95%: {low:.1%} to "
        f"{high:.1%}), scores by {report.mean_absolute_change:.3f} on average, Kendall's tau {tau:.2f}; "
        f"{report.contexts} contexts scored again, {report.shared_candidates} candidates in common"
    )

"""How far an LLM's preferences moved between two answers about the same candidates."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

from components.llm_scorer.audit import Flips
from components.scores import ScoreRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """Between two records of one user, over the candidates that both scored.

    Attributes:
        candidates: how many they share.
        absolute_change: |llm_score after - llm_score before|, summed over these.
        flips: of the pairs that both order strictly.
        tau: Kendall's tau-b of the two orders; None where it is not defined, as one of them ties all.
    """

    candidates: int
    absolute_change: float
    flips: Flips
    tau: float | None


def drift_between(before: ScoreRecord, after: ScoreRecord) -> Drift:
    """Compares two records.

    tau-b = (C - D) / sqrt((n - T_before) (n - T_after)), with C pairs in the same order, D in the opposite one, n
    pairs in all, and T those that are tied before or after.

    Source: Kendall 1945, Biometrika 33.
    """
    earlier = dict(zip(before.item_ids, before.llm_scores, strict=True))
    later = dict(zip(after.item_ids, after.llm_scores, strict=True))
    shared = [(earlier[item_id], later[item_id]) for item_id in earlier if item_id in later]
    same = opposite = strict_before = strict_after = 0
    for (before_a, after_a), (before_b, after_b) in itertools.combinations(shared, 2):
        strict_before += before_a != before_b
        strict_after += after_a != after_b
        if before_a != before_b and after_a != after_b:
            agree = (before_a > before_b) == (after_a > after_b)
            same, opposite = same + agree, opposite + (not agree)
    norm = math.sqrt(strict_before * strict_after)
    return Drift(
        candidates=len(shared),
        absolute_change=math.fsum(abs(score_after - score_before) for score_before, score_after in shared),
        flips=Flips(pairs=same + opposite, flipped=opposite),
        tau=(same - opposite) / norm if norm else None,
    )


def drift_report(contexts: Iterable[tuple[ScoreRecord, ScoreRecord]]) -> dict[str, Any]:
    """The drift's part of ledger.json.

    Args:
        contexts: what was scored before and after, context by context.
    """
    drifts = [drift_between(before, after) for before, after in contexts]
    candidates = sum(drift.candidates for drift in drifts)
    taus = [drift.tau for drift in drifts if drift.tau is not None]
    return {
        "contexts": len(drifts),
        "shared_candidates": candidates,
        **sum((drift.flips for drift in drifts), Flips()).to_json(),
        "mean_absolute_change": math.fsum(d.absolute_change for d in drifts) / candidates if candidates else None,
        "mean_kendall_tau": math.fsum(taus) / len(taus) if taus else None,
        "contexts_with_tau": len(taus),
    }


def drift_line(report: dict[str, Any]) -> str:
    """`drift: 12.5% of 320 pairs changed their order (95%: 9.3% to 16.6%), ...`."""
    if report["flip_rate"] is None:
        return f"drift: {report['contexts']} contexts asked again, no pair that both answers order"
    low, high = report["interval_95"]
    tau = report["mean_kendall_tau"]
    return (
        f"drift: {report['flip_rate']:.1%} of {report['pairs']} pairs changed their order (95%: {low:.1%} to "
        f"{high:.1%}), scores by {report['mean_absolute_change']:.3f} on average, Kendall's tau {tau:.2f}; "
        f"{report['contexts']} contexts asked again, {report['shared_candidates']} candidates in common"
    )

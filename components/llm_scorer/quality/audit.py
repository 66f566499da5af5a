"""Position bias: how often the order of the candidates in the prompt decides which of them the LLM prefers.

The scorer queries a fraction of the contexts, drawn by hash, in two orders, the second the reverse of the first. A pair
flips because of the order, or because of the endpoint's own noise, which temperature 0 and a seed reduce and do not
rule out.
"""

import dataclasses
import itertools
from collections.abc import Iterable

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.results import FlipReport, OrderAuditReport
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.scores import ScoreRecord
from sllmr.models.fractions import wilson

GAP_BOUNDS = (0.1, 0.25, 0.5)
"""Upper bounds of the classes of score gaps by which flips are counted; the last class has none."""

_GAP_CLASSES = (*(f"below {bound:g}" for bound in GAP_BOUNDS), f"{GAP_BOUNDS[-1]:g} or more")


def is_audited(context_id: str, config: LlmConfig) -> bool:
    """Whether a context is queried in two orders; depends on the context and llm.seed alone."""
    return seeded_fraction(config.seed, "audit", context_id) < config.audit.fraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips:
    """Counts of candidate pairs: `pairs` that both responses order strictly, `flipped` of them in opposite orders."""

    pairs: int = 0
    flipped: int = 0

    def __add__(self, other: "Flips") -> "Flips":
        return Flips(pairs=self.pairs + other.pairs, flipped=self.flipped + other.flipped)

    def report(self) -> FlipReport:
        """Counts, flip rate and its 95% interval; both None without pairs."""
        rate = wilson(self.flipped, self.pairs) if self.pairs else None
        return FlipReport(
            pairs=self.pairs,
            flipped=self.flipped,
            flip_rate=None if rate is None else rate.fraction,
            interval_95=None if rate is None else (rate.lower, rate.upper),
        )


def flips_by_gap(record: ScoreRecord) -> dict[str, Flips]:
    """The flips of one context by class of the gap between the two candidates' scores; none without an audit."""
    found: dict[str, Flips] = {}
    candidates = zip(record.first_llm_scores, record.second_llm_scores, record.llm_scores, strict=False)
    for (first_a, second_a, score_a), (first_b, second_b, score_b) in itertools.combinations(candidates, 2):
        if first_a != first_b and second_a != second_b:
            flipped = (first_a > first_b) != (second_a > second_b)
            name = _GAP_CLASSES[sum(abs(score_a - score_b) >= bound for bound in GAP_BOUNDS)]
            found[name] = found.get(name, Flips()) + Flips(pairs=1, flipped=int(flipped))
    return found


class OrderAudit:
    """Sums the flips of a table, record by record."""

    def __init__(self) -> None:
        self._audited: set[str] = set()
        self._flips: dict[str, Flips] = {}

    def add(self, record: ScoreRecord) -> None:
        """Counts one context; nothing where it was not audited."""
        if record.is_audited:
            self._audited.add(record.context_id)
            for name, flips in flips_by_gap(record).items():
                self._flips[name] = self._flips.get(name, Flips()) + flips

    def report(self, picked: Iterable[str]) -> OrderAuditReport | None:
        """The audit's part of the ledger; None if no context was audited or picked for an audit.

        Args:
            picked: ids of the contexts that were to be queried twice.
        """
        unanswered = len(set(picked) - self._audited)
        if not self._audited and not unanswered:
            return None
        return OrderAuditReport(
            contexts=len(self._audited),
            contexts_without_two_responses=unanswered,
            by_score_gap={name: self._flips[name].report() for name in _GAP_CLASSES if name in self._flips},
            **sum(self._flips.values(), Flips()).report().model_dump(),
        )


def audit_line(report: OrderAuditReport) -> str:
    """`order audit: 12.5% of 320 pairs flip when the order is reversed (95%: 9.3% to 16.6%), 10 contexts`."""
    without = report.contexts_without_two_responses
    missing = f"; {without} more contexts have no second response" if without else ""
    if report.flip_rate is None or report.interval_95 is None:
        return f"order audit: no pair is ordered by both responses, {report.contexts} contexts{missing}"
    low, high = report.interval_95
    return (
        f"order audit: {report.flip_rate:.1%} of {report.pairs} pairs flip when the order is reversed "
        f"(95%: {low:.1%} to {high:.1%}), {report.contexts} contexts{missing}"
    )

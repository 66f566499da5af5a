"""How many pairs a plan without llm.budget.pairs scores: enough for the train positives, within money, tokens, time."""

import dataclasses
import math

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimate, expected_seconds
from sllmr.components.pair_yield import POSITIVES_PER_PAIR


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBudget:
    """A number of pairs and where it comes from.

    Attributes:
        pairs: (user, candidate) pairs to score.
        enough: pairs that make one preference pair per POSITIVES_PER_PAIR train positives.
        bound: the key that allows fewer, with its value; empty if none does.
    """

    pairs: int
    enough: int
    bound: str = ""

    @classmethod
    def unbounded(cls, enough: int) -> "PairBudget":
        """As many as are enough."""
        return cls(pairs=enough, enough=enough)

    def __str__(self) -> str:
        if not self.bound:
            return (
                f"{self.pairs:,} pairs, enough for one preference pair per {POSITIVES_PER_PAIR} train positives (set "
                "llm.budget.pairs for another number)"
            )
        return (
            f"{self.pairs:,} pairs, as {self.bound} allows; one preference pair per {POSITIVES_PER_PAIR} train "
            f"positives takes {self.enough:,}: raise it, or set llm.budget.pairs"
        )


def has_bounds(config: LlmConfig) -> bool:
    """Whether money, tokens or time bound a plan without llm.budget.pairs.

    Args:
        config: resolved.
    """
    if config.asks_nobody:
        return False
    budget = config.budget
    return not (budget.max_cost_usd is None and budget.max_tokens is None and config.minutes_at_most is None)


def bounded(enough: int, sample: Estimate, config: LlmConfig) -> PairBudget:
    """The largest number of whole contexts up to `enough` pairs whose requests stay within every bound.

    Args:
        enough: pairs.
        sample: the size of some contexts of the plan, as if no response were cached: what a plan holds must not depend
            on how much of it was scored before.
        config: resolved.
    """
    per_pair: dict[str, tuple[float, float]] = {}  # "key=value" -> (bound, what one pair takes of it)
    if config.budget.max_cost_usd is not None and sample.cost_nano_usd:
        name = f"llm.budget.max_cost_usd={config.budget.max_cost_usd:g}"
        per_pair[name] = config.budget.max_cost_usd * 1e9, sample.cost_nano_usd / sample.pairs
    if config.budget.max_tokens is not None:
        name = f"llm.budget.max_tokens={config.budget.max_tokens}"
        per_pair[name] = config.budget.max_tokens, (sample.usage.prompt + sample.usage.completion) / sample.pairs
    if config.minutes_at_most is not None:
        name = f"llm.budget.max_minutes={config.minutes_at_most:g}"
        per_pair[name] = 60 * config.minutes_at_most, expected_seconds(sample, config)[0] / sample.pairs
    size = config.candidates.per_context
    result = PairBudget.unbounded(enough)
    for name, (bound, taken) in per_pair.items():
        pairs = max(size, math.floor(bound / taken / size) * size)
        if pairs < result.pairs:
            result = PairBudget(pairs=pairs, enough=enough, bound=name)
    return result

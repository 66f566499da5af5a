"""What a plan reaches, and what each fraction of it costs: known before the first request."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts.transforms import Askable
from sllmr.components.llm_scorer.cost.estimate import Estimate, Estimator
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.llm_scorer.strategies import Strategy

FRACTIONS = tuple(tenth / 10 for tenth in range(1, 11))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """How much of a slice a plan contains."""

    planned: int
    of: int

    @property
    def fraction(self) -> float:
        """In [0, 1]; 0 of an empty slice."""
        return self.planned / self.of if self.of else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """The first `fraction` of a plan: its size and cost, and by slice what it reaches.

    Slices: users; contexts with a short history (at most `llm.candidates.short_history_max` earlier positives) and with
    a long one, of all that the train split could yield; tail items and head items as candidates, of the catalog's items
    with a title; calibration contexts, of the contexts planned.
    """

    fraction: float
    size: Estimate
    reached: dict[str, Reached]


def forecast(
    contexts: Sequence[Context],
    catalog: Mapping[str, Item],
    askable: Askable,
    strategy: Strategy,
    config: LlmConfig,
    cache: ResponseCache,
) -> list[Forecast]:
    """The curve of coverage against cost, at FRACTIONS of the plan; the last one is the whole.

    A fraction takes users before second contexts of a user and is otherwise drawn by hash. That is close to the plan of
    a budget of that size, not the same: the strata are filled anew for each budget.

    Args:
        contexts: the whole plan, with user ids.
        config: resolved.
    """
    titled = [item for item in catalog.values() if item.title]
    tail = {item.item_id for item in titled if item.is_tail}
    estimator = Estimator(catalog, strategy, config, cache)
    users: set[str] = set()
    items: set[str] = set()
    counts: Counter[str] = Counter()
    ordered = users_first(contexts)
    curve = []
    done = 0
    for fraction in FRACTIONS:
        end = math.ceil(fraction * len(ordered))
        for context in ordered[done:end]:
            estimator.add(context)
            users.add(context.user_id)
            items.update(candidate.item_id for candidate in context.candidates)
            counts["short" if context.history_length <= config.candidates.short_history_max else "long"] += 1
            counts["calibration_contexts"] += bool(context.target_item_id)
        done = end
        reached = {
            "users": Reached(planned=len(users), of=askable.users),
            "short histories": Reached(planned=counts["short"], of=askable.short_history_contexts),
            "long histories": Reached(planned=counts["long"], of=askable.long_history_contexts),
            "tail items": Reached(planned=len(items & tail), of=len(tail)),
            "head items": Reached(planned=len(items - tail), of=len(titled) - len(tail)),
            "calibration contexts": Reached(planned=counts["calibration_contexts"], of=done),
        }
        curve.append(Forecast(fraction=fraction, size=estimator.total(), reached=reached))
    return curve


def users_first(contexts: Iterable[Context]) -> list[Context]:
    """In an order drawn by hash, in which all users' first contexts come before any user's second."""
    by_hash = sorted(contexts, key=lambda context: seeded_fraction("curve", context.context_id))
    seen: Counter[str] = Counter()
    rounds = []
    for context in by_hash:
        rounds.append(seen[context.user_key])
        seen[context.user_key] += 1
    order = sorted(range(len(by_hash)), key=lambda n: (rounds[n], n))
    return [by_hash[n] for n in order]

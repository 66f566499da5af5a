"""What a plan reaches, and what each share of it costs: told before the first call."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from components.catalog import Item
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.candidates import seeded_fraction
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.estimate import Estimate, Estimator
from components.llm_scorer.exchange import Context
from components.llm_scorer.strategies import Strategy

SHARES = tuple(tenth / 10 for tenth in range(1, 11))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Askable:
    """What the train split holds that could be asked about: users, and contexts by the length of their history."""

    users: int = 0
    cold_contexts: int = 0
    warm_contexts: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """How much of a slice is asked about."""

    asked: int
    of: int

    @property
    def share(self) -> float:
        """In [0, 1]; 0 of an empty slice."""
        return self.asked / self.of if self.of else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """The first `share` of a plan: its size and cost, and by slice what it reaches.

    Slices: users; cold contexts (at most `llm.candidates.cold_max_history` earlier positives) and warm ones, of all
    that the train split could yield; tail items and head items as candidates, of the catalogue's items with a title;
    labelled probes, of the contexts asked about.
    """

    share: float
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
    """The curve of coverage against cost, at SHARES of the plan; the last one is the whole.

    A share takes users before second contexts of a user and is otherwise drawn by hash, which is close to what a budget
    of that share would ask, not the same: the strata are filled anew for each budget.

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
    for share in SHARES:
        end = math.ceil(share * len(ordered))
        for context in ordered[done:end]:
            estimator.add(context)
            users.add(context.user_id)
            items.update(candidate.item_id for candidate in context.candidates)
            counts["cold" if context.history_length <= config.candidates.cold_max_history else "warm"] += 1
            counts["probes"] += bool(context.chosen_item_id)
        done = end
        reached = {
            "users": Reached(asked=len(users), of=askable.users),
            "cold contexts": Reached(asked=counts["cold"], of=askable.cold_contexts),
            "warm contexts": Reached(asked=counts["warm"], of=askable.warm_contexts),
            "tail items": Reached(asked=len(items & tail), of=len(tail)),
            "head items": Reached(asked=len(items - tail), of=len(titled) - len(tail)),
            "labelled probes": Reached(asked=counts["probes"], of=done),
        }
        curve.append(Forecast(share=share, size=estimator.total(), reached=reached))
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

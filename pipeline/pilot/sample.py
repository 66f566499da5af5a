"""Which calibration contexts of the plan a pilot scores. No TensorFlow."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.cost.estimate import Estimator
from sllmr.components.llm_scorer.cost.forecast import users_first
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Context

LEAST_USERS = 30
MOST_USERS = 0.5
"""As a fraction of the users of the train rows: the base model is trained on the others."""


def in_proportion(contexts: Sequence[Context], catalog: Mapping[str, Item], short_history_max: int) -> list[Context]:
    """Orders the calibration contexts so that every prefix has short histories and tail targets in proportion.

    The strata are history length (at most short_history_max, or longer) x popularity of the target item (long-tail, or
    not). Within each, all users' first contexts come before any user's second.
    """
    strata: dict[tuple[bool, bool], list[Context]] = {}
    for context in users_first(context for context in contexts if context.target_item_id):
        is_short = context.history_length <= short_history_max
        strata.setdefault((is_short, catalog[context.target_item_id].is_tail), []).append(context)
    placed = [
        ((n + 0.5) / len(stratum), key, context)
        for key, stratum in sorted(strata.items())
        for n, context in enumerate(stratum)
    ]
    return [context for _, _, context in sorted(placed, key=lambda place: place[:2])]


def within(
    ordered: Sequence[Context], *, users: int, usd: float, contexts: int, estimator: Callable[[], Estimator]
) -> list[Context]:
    """The beginning of `ordered` that a pilot may score.

    Args:
        ordered: of in_proportion.
        users: of the train rows; the pilot takes at most MOST_USERS of them.
        usd: what all responses may cost together, cached ones included; applies if requests have a price above 0.
        contexts: how many to take at most if they have none.
        estimator: makes a fresh one.

    Raises:
        LlmError: fewer than LEAST_USERS users are left.
    """
    few_users = list(_of_few_users(ordered, int(MOST_USERS * users)))
    taken = _affordable(few_users, usd, estimator())
    if taken is None:
        taken = few_users[:contexts]
    found = len({context.user_key for context in taken})
    if found < LEAST_USERS:
        raise LlmError(
            f"a pilot needs calibration contexts of at least {LEAST_USERS} users, got {found}: the plan has "
            f"{len(ordered)} such contexts, {len(few_users)} of them of at most half of its {users} users, and "
            f"{len(taken)} within --usd or --contexts; raise llm.budget.pairs, llm.candidates.calibration_fraction, "
            "--usd or --contexts"
        )
    return taken


def _of_few_users(ordered: Sequence[Context], users: int) -> Iterator[Context]:
    seen: set[str] = set()
    for context in ordered:
        if context.user_key in seen or len(seen) < users:
            seen.add(context.user_key)
            yield context


def _affordable(contexts: Sequence[Context], usd: float, estimator: Estimator) -> list[Context] | None:
    """The beginning whose responses cost at most usd; None if requests cost nothing, or an unknown price."""

    def due(context: Context) -> float | None:
        estimator.add(context)
        size = estimator.total()
        return None if size.cost_nano_usd is None else (size.cost_nano_usd + size.prior_nano_usd) / 1e9

    spent = [due(context) for context in contexts]
    if not any(spent):
        return None
    return [c for c, _ in itertools.takewhile(lambda pair: (pair[1] or 0.0) <= usd, zip(contexts, spent, strict=True))]

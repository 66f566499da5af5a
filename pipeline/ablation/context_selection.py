"""Which scoring contexts a smaller budget keeps: at random, or so that every item is scored about equally often."""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sllmr.models import features
from sllmr.models.base_model import context_fractions
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED

Columns = Mapping[str, npt.ArrayLike]


def fraction_of_contexts(pairs: Columns, fraction: float, by: str = "hash") -> Columns:
    """The pairs of a fraction of the contexts; contexts with the same history count as one.

    Args:
        pairs: models.inputs.load_pairs, [pairs] + shape each.
        fraction: in (0, 1].
        by: `hash`, at random by a hash of the history, so that a smaller fraction is part of a larger one. `coverage`,
            as many contexts: of those with calibration pairs the same ones, because the gate learns from them how often
            users take which items; of the others those that cover the items best, see `covering`.
    """
    if fraction == 1.0:
        return pairs
    keys, context = np.unique(context_fractions(np.asarray(pairs[features.HISTORY_ITEM_INDICES])), return_inverse=True)
    kept = keys < fraction
    if by == "coverage":
        calibrates = np.zeros(len(keys), bool)
        calibrates[context[np.asarray(pairs[features.CALIBRATION_LABEL]) != NOT_CALIBRATION]] = True
        others = np.flatnonzero(~calibrates)
        chosen = covering(_candidates(pairs, context, others), int((kept & ~calibrates).sum()))
        kept &= calibrates
        kept[others[chosen]] = True
    return {name: np.asarray(values)[kept[context]] for name, values in pairs.items()}


def covering(candidates: Sequence[np.ndarray], number: int) -> list[int]:
    """Picks contexts one after the other, each time the one of the highest value.

    The value of a context is the sum over its candidates of 1 / (1 + n), where n is how many of the contexts picked so
    far have the candidate, too: each further score of an item counts less. Of equal values the first context is picked.

    Args:
        candidates: item indices of each context.
        number: of contexts to pick.

    Returns:
        Their positions, in the order in which they were picked.
    """
    times = np.zeros(1 + max((int(items.max()) for items in candidates), default=0), np.int64)
    queue = [(-float(len(items)), position) for position, items in enumerate(candidates)]
    heapq.heapify(queue)
    picked: list[int] = []
    while queue and len(picked) < number:
        # Values only fall, so the queue holds upper bounds: a value that is still above all bounds is the highest.
        _, position = heapq.heappop(queue)
        items = candidates[position]
        value = -float((1 / (1 + times[items])).sum()), position
        if queue and value > queue[0]:
            heapq.heappush(queue, value)
            continue
        picked.append(position)
        times[items] += 1
    return picked


def _candidates(pairs: Columns, context: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """The distinct items of the pairs of each wanted context."""
    items = np.concatenate([np.asarray(pairs[prefix + features.ITEM_INDEX]) for prefix in (PREFERRED, OTHER)])
    of_contexts = np.unique(np.stack([np.tile(context, 2), items], axis=1), axis=0)
    starts = np.searchsorted(of_contexts[:, 0], np.stack([wanted, wanted + 1]))
    return [of_contexts[start:end, 1] for start, end in starts.T]

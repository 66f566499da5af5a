"""The slices every AUC is shown on, and the rule that puts a test row into each."""

from typing import Literal, get_args

from sllmr.models import features

SliceName = Literal["overall", "cold", "warm", "tail", "head", "unseen"]
SLICES: tuple[SliceName, ...] = get_args(SliceName)

_RULES: dict[str, tuple[str, int] | None] = {
    "overall": None,
    "cold": (features.IS_COLD, 1),
    "warm": (features.IS_COLD, 0),
    "tail": (features.IS_TAIL, 1),
    "head": (features.IS_TAIL, 0),
    "unseen": (features.ITEM_TRAIN_COUNT, 0),
}


def slice_rule(name: str) -> tuple[str, int] | None:
    """The feature and the value that a row of the slice has; None for all rows.

    Tail and head go by the row's own item, positive or negative alike: tail positives against any negatives would
    measure popularity. Unseen are items without a train positive. What makes a row cold is configured in data.cold.
    """
    return _RULES[name]


def slice_of(feature: str, value: str) -> str:
    """The inverse of slice_rule."""
    return next(name for name, rule in _RULES.items() if rule and (rule[0], str(rule[1])) == (feature, value))

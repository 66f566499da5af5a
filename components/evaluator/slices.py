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

    A row is in tail or head by its own item, whether positive or negative: comparing tail positives with all negatives
    would measure popularity. The slice unseen holds items without a train positive. data.cold defines a cold row.
    """
    return _RULES[name]


def slice_of(feature: str, value: str) -> str:
    """The inverse of slice_rule."""
    return next(name for name, rule in _RULES.items() if rule and (rule[0], str(rule[1])) == (feature, value))

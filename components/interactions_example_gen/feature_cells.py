"""Reads cells of declared features; a cell that breaks a rule raises RowError."""

import datetime
import math
from typing import Any

from sllmr.components.interactions_example_gen.cells import RowError, line_of, list_of, text_of
from sllmr.models.declared_features import LIST, NUMERIC, DeclaredFeature, Value

BAD_FEATURE = "bad_feature"

MAX_VALUE_CHARACTERS = 200
_LARGEST = 3.4e38  # of a float32


def parse_feature(value: Any, feature: DeclaredFeature) -> Value | None:
    """The value of one cell; None where it is missing: empty, null-like, or an empty list.

    Raises:
        RowError: the cell is not of the feature's kind, or is not one that the configuration allows.
    """
    if feature.kind == NUMERIC:
        return _number(value, feature)
    if feature.kind == LIST:
        return _texts(value, feature) or None
    if isinstance(value, (list, tuple, dict)):
        raise _error(feature, "must be one text", value, f"write one, or declare {feature.name} as a list")
    return _text(value, feature) or None


def _number(value: Any, feature: DeclaredFeature) -> float | None:
    is_missing = not isinstance(value, (list, tuple, dict)) and not line_of(value)
    if is_missing:
        return None
    number = math.nan
    if not isinstance(value, datetime.date):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
    if not abs(number) <= _LARGEST:
        fix = "write it with a decimal point and without a unit, or leave the cell empty if it is missing"
        raise _error(feature, "must be a finite number", value, fix)
    bounds = (("min", "least", feature.min, -1), ("max", "most", feature.max, 1))
    for key, most, bound, sign in bounds:
        if bound is not None and sign * number > sign * bound:
            fix = f"correct the cell or data.features.{feature.table}.{feature.name}.{key}"
            raise _error(feature, f"must be at {most} {bound:g}", value, fix)
    return number


def _texts(value: Any, feature: DeclaredFeature) -> tuple[str, ...]:
    parts = list_of(value)
    if parts is None:
        parts = text_of(value).split(feature.separator)
    texts: dict[str, None] = {}
    for part in parts:
        if isinstance(part, (list, tuple, dict)):
            raise _error(feature, "must be a list of texts", value, f"write a{feature.separator}b, or a JSON list")
        text = _text(part, feature)
        if text:
            texts[text] = None
    return tuple(texts)[: feature.max_values]


def _text(value: Any, feature: DeclaredFeature) -> str:
    # 17.0 is how pandas writes the integer 17 after a missing value.
    text = line_of(int(value) if isinstance(value, float) and value.is_integer() else value)
    if len(text) > MAX_VALUE_CHARACTERS:
        fix = "shorten it; longer text belongs to data.item_columns.text"
        raise _error(feature, f"must have at most {MAX_VALUE_CHARACTERS} characters", text[:40] + "...", fix)
    if text and feature.values and text not in feature.values:
        allowed = ", ".join(feature.values[:10])
        key = f"data.features.{feature.table}.{feature.name}.values"
        raise _error(feature, f"must be one of {allowed}", text, f"correct the cell or {key}")
    return text


def _error(feature: DeclaredFeature, rule: str, value: Any, fix: str) -> RowError:
    return RowError(BAD_FEATURE, f"{feature.source} {rule}, got {text_of(value)[:80]!r}; {fix}")

"""Slices by declared features: parses the configured texts, and finds the rows of each slice."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sllmr.models import features
from sllmr.models.declared_features import LIST, NUMERIC, DeclaredFeature, TrainNumbers
from sllmr.models.features import Feature, FeatureSizes, row_features

CROSSED = {
    "cold": (features.IS_COLD, 1),
    "warm": (features.IS_COLD, 0),
    "tail": (features.IS_TAIL, 1),
    "head": (features.IS_TAIL, 0),
}
"""Slices that a feature can be crossed with -> a column, and the value that it has in the rows of the slice."""

_CROSS = " x "
MISSING = "(missing)"

Columns = Mapping[str, npt.NDArray]


class OwnSlices(NamedTuple):
    """One configured text, such as `device` or `price x tail`.

    Attributes:
        text: as configured.
        feature: name of the declared feature.
        crossed: a name of CROSSED, or None.
    """

    text: str
    feature: str
    crossed: str | None


class OwnSlice(NamedTuple):
    """One slice, such as `device=phone` or `price=[10, 25) x tail`.

    Attributes:
        text: the configured text that the slice comes from.
        inside: bool [rows].
    """

    text: str
    inside: npt.NDArray


def parse_slices(text: str) -> OwnSlices:
    """Reads a configured text.

    Raises:
        ValueError: it is neither a name nor a cross of a name with one of CROSSED.
    """
    parts = [part.strip() for part in text.split(_CROSS)]
    crossed = [part for part in parts if part in CROSSED]
    own = [part for part in parts if part not in CROSSED]
    if len(own) != 1 or len(crossed) > 1 or not own[0]:
        raise ValueError(
            f"a slice must be a declared feature, or one crossed with {', '.join(CROSSED)}, got {text!r}; write device"
            " or price x tail"
        )
    return OwnSlices(text, own[0], crossed[0] if crossed else None)


def slice_features(texts: Sequence[str], declared: Sequence[DeclaredFeature]) -> list[DeclaredFeature]:
    """The declared features that slices go by.

    Raises:
        ValueError: a slice names no declared feature, or a standardized one, which has no buckets.
    """
    by_name = {f.name: f for f in declared}
    found = []
    for text in texts:
        name = parse_slices(text).feature
        if name not in by_name:
            known = ", ".join(by_name) or "none"
            raise ValueError(f"a slice must name a declared feature, got {text!r}; data.features declares {known}")
        if by_name[name].is_standardized:
            raise ValueError(f"a slice by a number needs its buckets, got {text!r}; set scaling: buckets on {name}")
        found.append(by_name[name])
    return list(dict.fromkeys(found))


def raw_features(declared: Sequence[DeclaredFeature]) -> list[Feature]:
    """The columns of declared features in a row, without those of the history."""
    of_rows = row_features(FeatureSizes(declared=tuple(declared)))
    return [f for f in of_rows if f.declared is not None and not f.of_history]


def own_slices(
    texts: Sequence[str],
    columns: Columns,
    declared: Sequence[DeclaredFeature],
    numbers: Mapping[str, TrainNumbers],
    min_users: int,
) -> dict[str, OwnSlice]:
    """The slices with enough users, in the order of the texts, then by bucket or by falling number of rows.

    Args:
        texts: as configured.
        columns: [rows] + shape each: USER_ID, those of CROSSED, and the raw features.
        declared: of the model.
        numbers: buckets of its numeric features.
        min_users: distinct users that a slice must have.
    """
    by_name = {f.name: f for f in declared}
    found = {}
    for text in texts:
        wanted = parse_slices(text)
        crossed = np.ones(len(columns[features.USER_ID]), bool)
        if wanted.crossed is not None:
            column, value = CROSSED[wanted.crossed]
            crossed = columns[column] == value
        f = by_name[wanted.feature]
        for value_name, inside in _by_value(columns[f.name], f, numbers, min_users).items():
            both = inside & crossed
            if len(np.unique(columns[features.USER_ID][both])) >= min_users:
                suffix = f"{_CROSS}{wanted.crossed}" if wanted.crossed else ""
                found[f"{f.name}={value_name}{suffix}"] = OwnSlice(text, both)
    return found


def _by_value(
    raw: npt.NDArray, f: DeclaredFeature, numbers: Mapping[str, TrainNumbers], min_users: int
) -> dict[str, npt.NDArray]:
    if f.kind == NUMERIC:
        return _by_bucket(raw, numbers[f.name].boundaries)
    values, counts = np.unique(raw, return_counts=True)
    order = sorted(zip(-counts, values, strict=True))
    # A value with too few rows has too few users. It is skipped, since the masks of many rare values fill the memory.
    by_value = {value.decode(): raw == value for count, value in order if value and -count >= min_users}
    missing = raw == b""
    if f.kind == LIST:
        by_value = {name: inside.any(axis=1) for name, inside in by_value.items()}
        missing = missing.all(axis=1)
    return {**by_value, MISSING: missing}


def _by_bucket(raw: npt.NDArray, boundaries: Sequence[float]) -> dict[str, npt.NDArray]:
    ends = [-np.inf, *(float(np.float32(end)) for end in boundaries), np.inf]
    buckets = {
        f"{'[' if np.isfinite(low) else '('}{low:g}, {high:g})": (raw >= low) & (raw < high)
        for low, high in itertools.pairwise(ends)
        if low < high
    }
    return {**buckets, MISSING: np.isnan(raw)}

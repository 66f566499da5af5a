import math

import numpy as np
import pytest

from sllmr.components.own_slices import MISSING, OwnSlices, own_slices, parse_slices, slice_features
from sllmr.models import features
from sllmr.models.declared_features import DeclaredFeature, TrainNumbers

DEVICE = DeclaredFeature(name="device", table="interaction", kind="categorical")
PRICE = DeclaredFeature(name="price", table="item", kind="numeric", buckets=3)
DAYS = DeclaredFeature(name="days", table="user", kind="numeric", scaling="standard")
TAGS = DeclaredFeature(name="tags", table="item", kind="list", max_values=2)
NUMBERS = {"price": TrainNumbers(boundaries=(2.5, 10.0))}

ROWS = [
    # user, device, price, tags, cold, tail
    (b"a", b"phone", 1.0, (b"x", b"y"), 0, 1),
    (b"a", b"phone", 2.5, (b"x", b""), 0, 0),
    (b"b", b"phone", 9.0, (b"y", b""), 1, 1),
    (b"b", b"desk", 10.0, (b"", b""), 1, 0),
    (b"c", b"desk", math.nan, (b"x", b""), 0, 1),
    (b"c", b"", 4.0, (b"y", b"x"), 0, 1),
]


def columns():
    user, device, price, tags, cold, tail = zip(*ROWS, strict=True)
    return {
        features.USER_ID: np.array(user, object),
        "device": np.array(device, object),
        "price": np.array(price, np.float32),
        "tags": np.array(tags, object),
        features.IS_COLD: np.array(cold),
        features.IS_TAIL: np.array(tail),
    }


def rows_of(*texts, min_users=1):
    found = own_slices(texts, columns(), (DEVICE, PRICE, TAGS), NUMBERS, min_users)
    return {name: (own.text, np.flatnonzero(own.inside).tolist()) for name, own in found.items()}


def test_a_categorical_feature_makes_a_slice_for_each_value_and_for_missing():
    assert rows_of("device") == {
        "device=phone": ("device", [0, 1, 2]),
        "device=desk": ("device", [3, 4]),
        f"device={MISSING}": ("device", [5]),
    }


def test_a_number_makes_a_slice_for_each_bucket_of_the_train_rows():
    assert rows_of("price") == {
        "price=(-inf, 2.5)": ("price", [0]),
        "price=[2.5, 10)": ("price", [1, 2, 5]),
        "price=[10, inf)": ("price", [3]),
        f"price={MISSING}": ("price", [4]),
    }


def test_a_list_puts_a_row_into_the_slice_of_each_of_its_values():
    assert rows_of("tags") == {
        "tags=x": ("tags", [0, 1, 4, 5]),
        "tags=y": ("tags", [0, 2, 5]),
        f"tags={MISSING}": ("tags", [3]),
    }


def test_a_cross_holds_the_rows_of_both():
    assert rows_of("price x tail")["price=[2.5, 10) x tail"] == ("price x tail", [2, 5])
    assert rows_of("warm x device") == {
        "device=phone x warm": ("warm x device", [0, 1]),
        "device=desk x warm": ("warm x device", [4]),
        f"device={MISSING} x warm": ("warm x device", [5]),
    }


def test_slices_of_too_few_users_are_left_out():
    # phone: a and b; desk: b and c; missing: c alone.
    assert list(rows_of("device", min_users=2)) == ["device=phone", "device=desk"]


def test_a_text_is_a_feature_or_a_cross_with_a_built_in_slice():
    assert parse_slices("price x tail") == OwnSlices("price x tail", "price", "tail")
    for text in ("tail", "cold x tail", "device x price", "price x tail x cold", ""):
        with pytest.raises(ValueError, match="must be a declared feature, or one crossed with cold, warm, tail, head"):
            parse_slices(text)


def test_a_slice_needs_a_declared_feature_with_values_or_buckets():
    assert slice_features(["price", "price x tail", "device"], [DEVICE, PRICE]) == [PRICE, DEVICE]
    with pytest.raises(ValueError, match=r"must name a declared feature, got 'color'; data.features declares device"):
        slice_features(["color"], [DEVICE])
    with pytest.raises(ValueError, match="needs its buckets, got 'days'; set scaling: buckets on days"):
        slice_features(["days"], [DAYS])

"""Declared features in the rows: kinds, bad and missing values, versions in time, and what a negative takes."""

import math

import pytest
import tensorflow as tf
from pydantic import ValidationError

from sllmr.components.catalog import ALWAYS, Item, ItemFeatures, Version, read_catalog, values_at, write_catalog
from sllmr.components.interactions_example_gen.cells import RowError
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.feature_cells import parse_feature
from sllmr.components.interactions_example_gen.tables import BadRow, DataError, check_tables, read_items, read_users
from sllmr.models import features
from sllmr.models.declared_features import DeclaredFeature
from sllmr.models.features import FeatureSizes
from sllmr.models.parsing import parsing_spec
from tests.components.interactions_example_gen import market

DAY = 86_400
START = 1_000_000_000


def feature(kind, **keys):
    return DeclaredFeature(name="f", table="item", kind=kind, **keys)


@pytest.mark.parametrize(
    ("cell", "declared", "value"),
    [
        ("red", feature("categorical"), "red"),
        ("  dark \t red ", feature("categorical"), "dark red"),
        (17.0, feature("categorical"), "17"),
        (True, feature("categorical"), "True"),
        ("", feature("categorical"), None),
        ("NULL", feature("categorical"), None),
        ("3.50", feature("numeric"), 3.5),
        (7, feature("numeric"), 7.0),
        (math.nan, feature("numeric"), None),
        ("N/A", feature("numeric"), None),
        ("a|b|a", feature("list"), ("a", "b")),
        ("a;b", feature("list", separator=";"), ("a", "b")),
        ('["a", "b", "c"]', feature("list", max_values=2), ("a", "b")),
        (["a", None, "b"], feature("list"), ("a", "b")),
        ("", feature("list"), None),
        ([], feature("list"), None),
    ],
)
def test_a_cell_is_read_by_its_kind(cell, declared, value):
    assert parse_feature(cell, declared) == value


@pytest.mark.parametrize(
    ("cell", "declared", "problem"),
    [
        ("1,299.00", feature("numeric"), "f must be a finite number, got '1,299.00'; write it with a decimal point"),
        ("inf", feature("numeric"), "f must be a finite number, got 'inf'"),
        ([1.0], feature("numeric"), "f must be a finite number"),
        (
            "-1",
            feature("numeric", min=0),
            "f must be at least 0, got '-1'; correct the cell or data.features.item.f.min",
        ),
        ("9", feature("numeric", max=5), "f must be at most 5, got '9'"),
        (["a"], feature("categorical"), "f must be one text, got .*; write one, or declare f as a list"),
        ("x" * 201, feature("categorical"), "f must have at most 200 characters"),
        ("pink", feature("categorical", values=("red", "blue")), "f must be one of red, blue, got 'pink'"),
        ("red|pink", feature("list", values=("red",)), "f must be one of red, got 'pink'"),
        ([["a"]], feature("list"), "f must be a list of texts"),
    ],
)
def test_a_cell_that_breaks_a_rule_names_rule_value_and_fix(cell, declared, problem):
    with pytest.raises(RowError, match=problem):
        parse_feature(cell, declared)


def test_a_version_holds_from_its_time_until_the_next_one():
    a, b = {"f": "a"}, {"f": "b"}
    assert [values_at([Version(10, a), Version(20, b)], at) for at in (9, 10, 19, 20, 99)] == [{}, a, a, b, b]


def write(directory, table, lines):
    (directory / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return str(directory / f"{table}.csv")


def settings(directory, **tables):
    """Small tables of one user; `tables` replaces their lines."""
    lines = {
        "interactions": ["user_id,item_id,timestamp,device", "u,a,1000000000,phone"],
        "items": ["item_id,title,price", "a,A,3", "b,B,"],
        "users": ["user_id,age", "u,old"],
    }
    return {name: write(directory, name, tables.get(name, lines[name])) for name in lines}


FEATURES = {
    "user": {"age": "categorical"},
    "item": {"price": "numeric"},
    "interaction": {"device": {"kind": "categorical"}},
}


def test_a_bad_cell_names_file_and_row(tmp_path):
    config = DataConfig(**settings(tmp_path, items=["item_id,title,price", "a,A,3", "b,B,cheap"]), features=FEATURES)
    _, bad = read_items([config.items], config)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(f"{config.items}:3: price must be a finite number, got 'cheap'")


def test_items_with_times_come_out_once_with_all_their_versions(tmp_path):
    lines = ["item_id,title,price,valid_from", "a,A,3,2001-09-09", "b,B,1,", "a,A,2,2001-01-01"]
    config = DataConfig(**settings(tmp_path, items=lines), features=FEATURES)
    first, second = read_items([config.items], config)
    assert [version.values for version in first.versions] == [{"price": 2.0}, {"price": 3.0}]
    assert first.versions[1].valid_from == 1_000_000_000_000 - 6_400_000
    assert second.versions == (Version(ALWAYS, {"price": 1.0}),)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("a,Other,2,2001-01-01", "item_changes"),
        ("a,A,2,2001-09-09", "duplicate_item_id"),
        ("a,A,2,soon", "bad_valid_from"),
    ],
)
def test_versions_of_one_item_may_differ_in_features_alone(tmp_path, second, reason):
    lines = ["item_id,title,price,valid_from", "a,A,3,2001-09-09", second]
    config = DataConfig(**settings(tmp_path, items=lines), features=FEATURES)
    bad = [row for row in read_items([config.items], config) if isinstance(row, BadRow)]
    assert [row.reason for row in bad] == [reason]


def test_a_time_within_a_millisecond_holds_from_the_next_one(tmp_path):
    lines = ["user_id,age,valid_from", "u,old,2001-09-09T01:46:40.0004"]
    config = DataConfig(**settings(tmp_path, users=lines), features=FEATURES)
    (row,) = read_users(config.users, config)
    assert row.version.valid_from == 1_000_000_000_001


def test_the_catalog_keeps_versions_and_is_written_as_ever_without(tmp_path):
    items = [
        Item(item_id="a", versions=(Version(ALWAYS, {"tags": ("x", "y")}), Version(5, {"price": 2.5}))),
        Item(item_id="b"),
    ]
    write_catalog(str(tmp_path), items)
    assert read_catalog(str(tmp_path)) == {"a": items[0], "b": items[1]}


def test_item_features_without_a_time_are_refused():
    sizes = FeatureSizes(declared=(feature("numeric"),))
    values = ItemFeatures([Item(item_id="a", versions=(Version(ALWAYS, {"f": 1.0}),))], sizes)
    with pytest.raises(ValueError, match="need the time of the row"):
        values.item("a")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"users": None}, "users and features.user must be set together"),
        ({"features": {"item": {"price": "number"}}, "users": None}, "kind"),
        (
            {"features": FEATURES | {"interaction": {"stars": {"kind": "numeric", "column": "rating"}}}},
            "stars must be known before the user decides",
        ),
        ({"features": FEATURES | {"item": {"age": "categorical"}}}, "features.item.age must have a name of its own"),
        ({"features": FEATURES | {"item": {"the price": "numeric"}}}, "letters, digits and _, got 'the price'"),
    ],
)
def test_declarations_that_cannot_be_meant_are_refused(tmp_path, change, problem):
    with pytest.raises(ValidationError, match=problem):
        DataConfig(**{**settings(tmp_path), "features": FEATURES, **change})


def test_a_configuration_is_read_back_from_its_json(tmp_path):
    config = DataConfig(**settings(tmp_path), features=FEATURES)
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


def test_a_declared_column_that_is_missing_is_noticed_before_the_run(tmp_path):
    config = DataConfig(**settings(tmp_path, users=["user_id,age_band", "u,old"]), features=FEATURES)
    with pytest.raises(DataError, match=r"users.csv must have the column 'age'.*set data.features.user.age.column"):
        check_tables(config)


def shop(directory):
    """The market with versions of users and items, interaction features, and users that no row describes.

    Each interaction's device is its own. A user's age_band and an item's price change at START + 3 days, and once more
    long after all interactions, to values that no row may see.
    """
    chosen = market.interactions()
    tables = market.write_tables(directory, chosen)
    lines = ["user_id,item_id,timestamp,device,hour"]
    for user, items in chosen.items():
        for position, item in enumerate(items):
            hour = "" if position % 4 == 1 else position
            lines.append(f"{user},{item},{START + DAY * position},{user}-{position},{hour}")
    tables["interactions"] = write(directory, "interactions", lines)
    changes = (("", "early"), (START + 3 * DAY, "late"), (START + 99 * DAY, "future"))
    lines = ["user_id,valid_from,age_band"]
    lines += [f"{user},{start},{when}" for user in list(chosen)[3:] for start, when in changes]
    tables["users"] = write(directory, "users", [*lines, "nobody,,early"])
    prices = {"early": 1, "late": 2, "future": 3}
    lines = ["item_id,title,categories,brand,valid_from,price,tags"]
    for n in range(market.ITEMS):
        tags = f"t{n % 3}|all"
        lines += [f"i{n:02},T {n},Leaf {n % 5},Brand {n % 3},{start},{prices[w]},{tags}" for start, w in changes]
    tables["items"] = write(directory, "items", lines)
    return DataConfig(
        **tables,
        features={
            "user": {"age_band": "categorical"},
            "item": {"price": {"kind": "numeric", "history": True}, "tags": {"kind": "list", "max_values": 3}},
            "interaction": {"device": "categorical", "hour": "numeric"},
        },
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from tests.components.interactions_example_gen.test_transforms import prepare

    directory = tmp_path_factory.mktemp("shop")
    config = shop(directory)
    made = prepare(config, directory)
    spec = parsing_spec(features.row_features(config.feature_sizes))
    rows = tf.io.parse_example([row for split in made.splits.values() for row in split], spec)
    return made, {name: values.numpy() for name, values in rows.items()}


@pytest.mark.slow
def test_a_row_sees_the_version_of_its_time_and_never_a_future_one(prepared):
    _, rows = prepared
    is_late = rows[features.TIMESTAMP] >= 1000 * (START + 3 * DAY)
    assert is_late.any()
    assert not is_late.all()
    assert rows["price"].tolist() == [2.0 if late else 1.0 for late in is_late]
    has_row = rows[features.USER_ID] > b"u02"
    expected = [(b"late" if late else b"early") if known else b"" for late, known in zip(is_late, has_row, strict=True)]
    assert rows["age_band"].tolist() == expected
    for prices, items, late in zip(rows["history_price"], rows[features.HISTORY_ITEM_IDS], is_late, strict=True):
        assert all(math.isnan(p) if not i else p == (2.0 if late else 1.0) for p, i in zip(prices, items, strict=True))


@pytest.mark.slow
def test_a_negative_takes_the_request_of_its_positive(prepared):
    _, rows = prepared
    devices = {}
    for row, device in enumerate(rows["device"].tolist()):
        user, position = rows[features.USER_ID][row].decode(), int(rows[features.POSITION][row])
        assert device.decode() == f"{user}-{position - 1}"
        hour = rows["hour"][row]
        assert math.isnan(hour) if (position - 1) % 4 == 1 else hour == position - 1
        devices.setdefault((user, position), []).append(int(rows[features.LABEL][row]))
    assert all(sorted(labels) == [0, 1] for labels in devices.values())


@pytest.mark.slow
def test_the_report_counts_users_without_a_row_and_missing_values(prepared):
    made, rows = prepared
    table = made.report["users_table"]
    assert (table["read"], table["with_row"], table["without_row"], table["without_interaction"]) == (82, 27, 3, 1)
    assert made.report["features"]["price"]["train_missing"] == 0
    missing = sum(made.report["features"]["hour"][f"{split}_missing"] for split in ("train", "valid", "test"))
    assert missing == int(sum(map(math.isnan, rows["hour"])))
    assert any("3 of 30 users have no row in data.users" in notice for notice in made.report["notices"])


@pytest.mark.slow
def test_a_feature_without_a_value_in_train_rows_stops_the_run(tmp_path):
    from tests.components.interactions_example_gen.test_component import execute, outputs

    tables = market.write_tables(tmp_path, market.interactions())
    lines = ["item_id,title,price,valid_from", *(f"i{n:02},T,1,2030-01-01" for n in range(market.ITEMS))]
    config = DataConfig(
        interactions=tables["interactions"],
        items=write(tmp_path, "items", lines),
        features={"item": {"price": "numeric"}},
    )
    with pytest.raises(DataError, match=r"data.features.item.price must have a value in some train row.*or the times"):
        execute(config, outputs(tmp_path / "out"))

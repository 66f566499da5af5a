import datetime
import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.catalog import Item
from components.interactions_example_gen.config import DataConfig
from components.interactions_example_gen.tables import (
    LOW_RATED,
    OBSERVED_NEGATIVE,
    POSITIVE,
    BadRow,
    DataError,
    check_tables,
    parse_timestamp,
    read_interactions,
    read_items,
)

INTERACTIONS = b"user_id,item_id,timestamp\nu1,i1,10\nu1,i2,20\n"
ITEMS = b"item_id,title\ni1,First\ni2,Second\n"


@pytest.fixture
def write(tmp_path):
    """Writes both tables and returns the configuration that reads them."""

    def write_tables(interactions=INTERACTIONS, items=ITEMS, **settings):
        (tmp_path / "interactions.csv").write_bytes(interactions)
        (tmp_path / "items.csv").write_bytes(items)
        return DataConfig(
            interactions=str(tmp_path / "interactions.csv"), items=str(tmp_path / "items.csv"), **settings
        )

    return write_tables


def interactions_of(config):
    return list(read_interactions(config.interactions, config))


def items_of(config):
    return list(read_items([config.items], config))


def test_a_row_carries_its_values_and_its_line(write):
    first, second = interactions_of(write())
    assert (first.user_id, first.item_id, first.timestamp, first.kind, first.row) == (
        "u1",
        "i1",
        10_000,
        POSITIVE,
        2,
    )
    assert second.row == 3


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".parquet.gz"])
def test_every_format_gives_the_same_interactions(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    if "parquet" in suffix:
        table = pa.table({"user_id": ["u1", "u1"], "item_id": ["i1", "i2"], "timestamp": [10, 20]})
        pq.write_table(table, tmp_path / "plain.parquet")
        content = (tmp_path / "plain.parquet").read_bytes()
    else:
        content = INTERACTIONS
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    config = DataConfig(interactions=str(path), items="unused.csv")
    assert [row[:5] for row in interactions_of(config)] == [
        ("u1", "i1", 10_000, 0.0, POSITIVE),
        ("u1", "i2", 20_000, 0.0, POSITIVE),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1400000000", 1_400_000_000_000),
        ("1400000000.25", 1_400_000_000_250),
        ("1400000000123", 1_400_000_000_123),
        ("2014-05-13T16:53:20Z", 1_400_000_000_000),
        ("2014-05-13 16:53:20", 1_400_000_000_000),
        ("2014-05-13T18:53:20+02:00", 1_400_000_000_000),
        (datetime.datetime(2014, 5, 13, 16, 53, 20), 1_400_000_000_000),
        (datetime.date(1970, 1, 2), 24 * 3600 * 1000),
    ],
)
def test_timestamps_are_read_as_seconds_milliseconds_or_iso(value, expected):
    assert parse_timestamp(value) == expected


@pytest.mark.parametrize("value", ["", "yesterday", "-1", "nan", "1400000000123456789", "05 13, 2014"])
def test_other_timestamps_are_refused(value):
    with pytest.raises(ValueError):  # noqa: PT011  the caller writes the message
        parse_timestamp(value)


@pytest.mark.parametrize(
    ("line", "reason", "problem"),
    [
        (
            b"u1,i1,soon",
            "bad_timestamp",
            "timestamp must be Unix seconds, Unix milliseconds or ISO 8601, got 'soon'",
        ),
        (b",i1,10", "empty_id", "user_id must not be empty"),
        (b"u1, ,10", "empty_id", "item_id must not be empty"),
        (b"u1,i1", "wrong_number_of_fields", "must have 3 fields as the header has, got 2"),
        (b"u1,i\xff,10", "invalid_utf8", "item_id must be UTF-8"),
    ],
)
def test_a_malformed_interaction_names_file_row_and_rule_and_costs_only_itself(write, line, reason, problem):
    config = write(b"user_id,item_id,timestamp\nu1,i1,10\n" + line + b"\nu1,i2,20\n")
    good, bad, also_good = interactions_of(config)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
    assert str(bad).startswith(f"{config.interactions}:3: ")
    assert problem in str(bad)
    assert (good.item_id, also_good.item_id, also_good.row) == ("i1", "i2", 4)


def test_a_user_id_is_never_shown(write):
    rows = interactions_of(write(b"user_id,item_id,timestamp\nsecret,i1,soon\nsecret\xff,i1,1\nsecret,i1\n"))
    assert len(rows) == 3
    assert not any("secret" in str(row) for row in rows)


def test_rows_are_counted_as_an_editor_shows_them_after_a_cell_of_two_lines(write):
    config = write(items=b'item_id,title\n"i1","two\nlines"\n\n,missing\n')
    item, bad = items_of(config)
    assert item.title == "two lines"
    assert bad.row == 5


def test_labels_and_ratings_decide_the_kind(write):
    table = b"user_id,item_id,timestamp,label,rating\n"
    table += b"u,a,1,1,5\nu,b,1,0,5\nu,c,1,1,2\nu,d,1,true,3\nu,e,1,no,3\nu,f,1,1,\n"
    *kinds, bad_label, bad_rating = interactions_of(write(table, min_rating=3))
    assert [row.kind for row in kinds] == [POSITIVE, OBSERVED_NEGATIVE, LOW_RATED, POSITIVE]
    assert "label must be 0 or 1, got 'no'" in str(bad_label)
    assert "rating must be a number, got ''" in str(bad_rating)


def test_an_empty_rating_column_is_as_good_as_none(write):
    rows = interactions_of(write(b"user_id,item_id,timestamp,rating\nu,a,1,\nu,b,2,\n"))
    assert [row.kind for row in rows] == [POSITIVE, POSITIVE]


@pytest.mark.parametrize(("column", "settings"), [("order", {}), ("seq_pos", {}), ("n", {"order": "n"})])
def test_a_column_orders_equal_timestamps(write, column, settings):
    table = f"user_id,item_id,timestamp,{column}\nu,a,1,2\nu,b,1,1\n".encode()
    assert [row.order for row in interactions_of(write(table, columns=settings))] == [2.0, 1.0]


def test_an_empty_name_switches_an_optional_column_off(write):
    config = write(b"user_id,item_id,timestamp,order\nu,a,1,A-17\n", columns={"order": ""})
    assert interactions_of(config)[0].order == 0.0


def test_categories_come_most_specific_first_and_are_cut(write):
    table = b"item_id,title,categories\np,,Beauty > Hair > Styling > Gels > Strong\nl,,Comedy|Drama|Comedy\nn,,\n"
    config = write(items=table)
    assert [item.categories for item in items_of(config)] == [
        ("Strong", "Gels", "Styling", "Hair"),
        ("Comedy", "Drama"),
        (),
    ]


def test_a_parquet_list_keeps_its_order_and_nulls_are_empty(tmp_path):
    path = tmp_path / "items.parquet"
    table = {
        "item_id": ["a", "b"],
        "title": ["A", None],
        "categories": [["x", "y"], None],
        "brand": [None, "B"],
    }
    pq.write_table(pa.table(table), path)
    config = DataConfig(interactions="unused.csv", items=str(path))
    assert items_of(config) == [
        Item(item_id="a", title="A", categories=("x", "y")),
        Item(item_id="b", title="", brand="B"),
    ]


def test_bytes_that_are_not_utf8_cost_one_row_of_parquet(tmp_path):
    path = tmp_path / "items.parquet"
    titles = pa.array([b"good", b"b\xffd"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": titles}), path)
    good, bad = read_items([str(path)], DataConfig(interactions="unused.csv", items=str(path)))
    assert good.title == "good"
    assert (bad.reason, bad.row) == ("invalid_utf8", 1)


def test_further_text_is_joined(write):
    config = write(items=b"item_id,title,a,b,c\ni,T,one,,three\n", item_columns={"text": ["a", "b", "c"]})
    assert items_of(config)[0].text == "one. three"


def test_a_repeated_item_id_names_its_first_place(write):
    config = write(items=b"item_id,title\ni1,A\ni2,B\ni1,C\n")
    *items, bad = items_of(config)
    assert [item.title for item in items] == ["A", "B"]
    assert (bad.reason, bad.row) == ("duplicate_item_id", 4)
    assert f"got 'i1' again after {config.items}:2" in str(bad)


def test_a_byte_order_mark_is_not_part_of_the_first_name(write):
    assert len(interactions_of(write(b"\xef\xbb\xbf" + INTERACTIONS))) == 2


@pytest.mark.parametrize(
    ("interactions", "settings", "message"),
    [
        (b"", {}, "must start with a header, but it is empty"),
        (
            b"user,item_id,timestamp\n",
            {},
            "must have the column 'user_id', but its columns are user, item_id, timestamp; set",
        ),
        (
            INTERACTIONS,
            {"columns": {"label": "clicked"}},
            "'clicked'.*set data.columns.label to the right one",
        ),
        (INTERACTIONS, {"columns": {"order": "n"}}, "set data.columns.order"),
        (INTERACTIONS, {"min_rating": 4}, r"data.min_rating = 4.0 needs a rating column"),
        (INTERACTIONS, {"item_columns": {"text": ["colour"]}}, "'colour'.*set data.item_columns.text"),
        (b"a,a\n", {}, "column names must be unique, got 'a' twice"),
        (b"\xff\xfeu\x00", {}, "the header must be UTF-8 text"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_before_the_run(write, interactions, settings, message):
    with pytest.raises(DataError, match=message):
        check_tables(write(interactions, **settings))


def test_a_missing_file_names_the_key(write):
    config = write().model_copy(update={"interactions": "/nowhere/*.csv"})
    with pytest.raises(DataError, match=r"data.interactions must name at least one file, got '/nowhere/\*.csv'"):
        check_tables(config)


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"must end in one of .csv, .csv.gz, .parquet, .parquet.gz"):
        check_tables(DataConfig(interactions="unused.csv", items=str(tmp_path / "t.json")))


def test_a_file_that_is_not_gzip_says_so(tmp_path):
    (tmp_path / "items.csv.gz").write_bytes(ITEMS)
    with pytest.raises(DataError, match=r"must be gzip as its name says, but is not; remove the suffix .gz"):
        check_tables(DataConfig(interactions="unused.csv", items=str(tmp_path / "items.csv.gz")))


def test_a_truncated_gzip_file_says_so(tmp_path):
    path = tmp_path / "items.csv.gz"
    lines = b"".join(b"i%d,title number %d\n" % (i, i * 7919) for i in range(2000))
    path.write_bytes(gzip.compress(b"item_id,title\n" + lines)[:-500])
    with pytest.raises(DataError, match="must be a whole gzip file"):
        list(read_items([str(path)], DataConfig(interactions="unused.csv", items=str(path))))


def test_a_file_that_is_not_parquet_says_so(tmp_path):
    path = tmp_path / "items.parquet"
    path.write_bytes(ITEMS)
    with pytest.raises(DataError, match="must be Parquet"):
        check_tables(DataConfig(interactions="unused.csv", items=str(path)))


def test_an_open_quote_names_the_line_where_it_opens(write):
    config = write(items=b'item_id,title\ni1,A\ni2,"open\ni3,C\n')
    with pytest.raises(DataError, match=r"items.csv:3: must be CSV"):
        items_of(config)

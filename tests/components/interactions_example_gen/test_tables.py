import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sllmr.components.catalog import Item
from sllmr.components.interactions_example_gen.config import DataConfig, ItemColumns
from sllmr.components.interactions_example_gen.tables import (
    LOW_RATED,
    MAX_TEXT_CHARACTERS,
    OBSERVED_NEGATIVE,
    POSITIVE,
    BadRow,
    DataError,
    ItemCells,
    UnknownItems,
    catalog_notices,
    catalog_problem,
    check_tables,
    read_interactions,
    read_items,
)

INTERACTIONS = b"user_id,item_id,timestamp\nu1,i1,1400000010\nu1,i2,1400000020\n"
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
        1_400_000_010_000,
        POSITIVE,
        2,
    )
    assert second.row == 3


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".parquet.gz"])
def test_every_format_gives_the_same_interactions(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    if "parquet" in suffix:
        table = pa.table(
            {"user_id": ["u1", "u1"], "item_id": ["i1", "i2"], "timestamp": [1_400_000_010, 1_400_000_020]}
        )
        pq.write_table(table, tmp_path / "plain.parquet")
        content = (tmp_path / "plain.parquet").read_bytes()
    else:
        content = INTERACTIONS
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    config = DataConfig(interactions=str(path), items="unused.csv")
    assert [row[:5] for row in interactions_of(config)] == [
        ("u1", "i1", 1_400_000_010_000, 0.0, POSITIVE),
        ("u1", "i2", 1_400_000_020_000, 0.0, POSITIVE),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "problem"),
    [
        (
            b"u1,i1,soon",
            "bad_timestamp",
            "timestamp must be Unix seconds, milliseconds, microseconds or nanoseconds, or ISO 8601, got 'soon'",
        ),
        (b",i1,1400000010", "empty_id", "user_id must not be empty"),
        (b"u1, ,1400000010", "empty_id", "item_id must not be empty"),
        (b"u1,i1", "wrong_number_of_fields", "must have 3 fields as the header has, got 2"),
        (b"u1,i\xff,1400000010", "invalid_utf8", "item_id must be UTF-8"),
    ],
)
def test_a_malformed_interaction_names_file_row_and_rule_and_costs_only_itself(write, line, reason, problem):
    config = write(b"user_id,item_id,timestamp\nu1,i1,1400000010\n" + line + b"\nu1,i2,1400000020\n")
    good, bad, also_good = interactions_of(config)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
    assert str(bad).startswith(f"{config.interactions}:3: ")
    assert problem in str(bad)
    assert (good.item_id, also_good.item_id, also_good.row) == ("i1", "i2", 4)


def test_a_user_id_is_never_shown(write):
    rows = interactions_of(write(b"user_id,item_id,timestamp\nsecret,i1,soon\nsecret\xff,i1,1400000000\nsecret,i1\n"))
    assert len(rows) == 3
    assert not any("secret" in str(row) for row in rows)


def test_rows_are_counted_as_an_editor_shows_them_after_a_cell_of_two_lines(write):
    config = write(items=b'item_id,title\n"i1","two\nlines"\n\n,missing\n')
    item, bad = items_of(config)
    assert item.title == "two lines"
    assert bad.row == 5


def test_labels_and_ratings_decide_the_kind(write):
    table = b"user_id,item_id,timestamp,label,rating\n"
    cells = ("a,{t},1,5", "b,{t},0,5", "c,{t},1,2", "d,{t},true,3", "e,{t},-1,3", "f,{t},1,")
    table += "".join(f"u,{row.format(t=1_400_000_001)}\n" for row in cells).encode()
    *kinds, bad_label, bad_rating = interactions_of(write(table, min_rating=3))
    assert [row.kind for row in kinds] == [POSITIVE, OBSERVED_NEGATIVE, LOW_RATED, POSITIVE]
    assert "label must be 0 or 1, got '-1'" in str(bad_label)
    assert "rating must be a number, got ''" in str(bad_rating)


def test_a_rating_with_a_decimal_comma_is_refused_by_that_name(write):
    table = b'user_id,item_id,timestamp,rating\nu,a,1400000001,"4,5"\nu,b,1400000002,4.5\n'
    bad, good = interactions_of(write(table, min_rating=4))
    assert "got '4,5'; write it with a decimal point" in str(bad)
    assert good.kind == POSITIVE


@pytest.mark.parametrize(("column", "settings"), [("order", {}), ("seq_pos", {}), ("n", {"order": "n"})])
def test_a_column_orders_equal_timestamps(write, column, settings):
    table = f"user_id,item_id,timestamp,{column}\nu,a,1400000001,2\nu,b,1400000001,1\n".encode()
    assert [row.order for row in interactions_of(write(table, columns=settings))] == [2.0, 1.0]


def test_an_empty_name_switches_an_optional_column_off(write):
    config = write(b"user_id,item_id,timestamp,order\nu,a,1400000001,A-17\n", columns={"order": ""})
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
        (b"", {}, "must hold a table, but the file is empty"),
        (b"\nu,i,1\n", {}, "must start with a header, but its first line is empty"),
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
        (
            b"caf\xe9,user_id\n",
            {},
            r"the header must be UTF-8 text.*'café' as windows-1252.*set data.csv.encoding: windows-1252",
        ),
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


def test_an_open_quote_costs_its_own_line_alone(write):
    config = write(items=b'item_id,title\ni1,A\ni2,"open\ni3,C\ni4,"quoted, twice"\n')
    first, bad, *rest = items_of(config)
    assert (bad.row, bad.reason) == (3, "malformed_quotes")
    assert [item.item_id for item in (first, *rest)] == ["i1", "i3", "i4"]


def test_a_list_of_paths_in_parquet_is_read_as_paths(tmp_path):
    path = tmp_path / "items.parquet"
    paths = [[["Beauty", "Hair"], ["Gifts"]], [["Toys"]]]
    pq.write_table(pa.table({"item_id": [1, 2], "title": ["A", "B"], "categories": paths}), path)
    config = DataConfig(interactions="unused.csv", items=str(path))
    assert [item.categories for item in items_of(config)] == [("Hair", "Beauty", "Gifts"), ("Toys",)]


def test_moments_of_parquet_keep_their_nanoseconds(tmp_path):
    path = tmp_path / "i.parquet"
    times = pa.array([1_709_280_000_000_000_002, 1_709_280_000_000_000_001], pa.timestamp("ns"))
    pq.write_table(pa.table({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times}), path)
    rows = interactions_of(DataConfig(interactions=str(path), items="unused.csv"))
    assert [(row.timestamp, row.nanoseconds) for row in rows] == [(1_709_280_000_000, 2), (1_709_280_000_000, 1)]


def test_an_unknown_item_is_told_from_the_same_id_in_another_form():
    unknown = UnknownItems(frozenset({"25", "007"}))
    assert "which holds '25': the same id with .0" in unknown.problem("25.0")
    assert "which holds '007': the same id with other zero padding" in unknown.problem("7")
    assert unknown.problem("8").endswith("got '8'; add it or remove the row (the ids there look like '007')")


def test_missing_values_in_words_count_as_empty_and_are_named(write):
    config = write(items=b"item_id,title,brand\ni1,nan,NULL\ni2,Second,Acme\ni3,None,nan\n")
    cells = ItemCells()
    items = list(read_items([config.items], config, cells))
    assert [(item.title, item.brand) for item in items] == [("", ""), ("Second", "Acme"), ("", "")]
    assert catalog_notices(items, cells) == [
        "2 cells of 'brand' in data.items hold a missing value in words (nan, None, NULL, \\N) and count as empty",
        "2 cells of 'title' in data.items hold a missing value in words (nan, None, NULL, \\N) and count as empty",
    ]


def catalog_of(write, *categories):
    rows = "".join(f'i{n},T{n},"{text}"\n' for n, text in enumerate(categories))
    config = write(items=f"item_id,title,categories\n{rows}".encode())
    cells = ItemCells()
    return list(read_items([config.items], config, cells)), cells, config


def test_categories_with_another_separator_end_the_reading_with_both_answers(write):
    _, cells, config = catalog_of(write, *(f"Beauty;Branch {n % 3}" for n in range(12)))
    problem = catalog_problem(cells, config)
    assert "got 'Beauty;Branch 0' as one category; set data.item_columns.list_separator: \";\"" in problem
    for separator in (";", "|"):
        decided = config.model_copy(update={"item_columns": ItemColumns(list_separator=separator)})
        assert catalog_problem(cells, decided) is None


@pytest.mark.parametrize("form", [repr, json.dumps])
def test_the_text_of_lists_is_no_other_separator(write, form):
    lists = [["Beauty", "Makeup", f"Face {n}"] for n in range(12)]
    rows = "".join(f"i{n},T,{csv_cell(form(names))}\n" for n, names in enumerate(lists))
    config = write(items=f"item_id,title,categories\n{rows}".encode())
    cells = ItemCells()
    items = list(read_items([config.items], config, cells))
    assert catalog_problem(cells, config) is None
    assert [item.categories for item in items] == [tuple(names) for names in lists]


def csv_cell(text):
    return '"' + text.replace('"', '""') + '"'


def test_a_catalog_whose_items_share_no_category_is_questioned(write):
    items, cells, _ = catalog_of(write, *(f"the story of number {n}" for n in range(12)))
    (notice,) = catalog_notices(items, cells)
    assert "12 of 12 items share no category with another item" in notice
    items, cells, _ = catalog_of(write, *(f"Books > Number {n}" for n in range(12)))
    assert catalog_notices(items, cells) == []


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("<b>Tea</b> &amp; cake {n}", r"12 cells of 'title' .* hold HTML \('<b>Tea</b> &amp; cake 0'\)"),
        ("CrÃ¨me {n}", r"12 cells of 'title' .* read as another encoding \('CrÃ¨me 0' was 'Crème 0'\)"),
        ("Product", r"12 of 12 items have the title 'Product': no prompt can tell them apart"),
        ("i{n}", r"12 of 12 items have their item_id as title"),
        ("", r"12 of 12 items have no title"),
    ],
)
def test_titles_that_say_nothing_or_the_wrong_thing_are_named(write, title, words):
    rows = "".join(f"i{n},{title.format(n=n)}\n" for n in range(12))
    config = write(items=f"item_id,title\n{rows}".encode())
    cells = ItemCells()
    (notice,) = catalog_notices(list(read_items([config.items], config, cells)), cells)
    assert re.search(words, notice)


def test_ordinary_titles_need_no_word(write):
    titles = ("Tea <3", "R&D", "Café", "Über & unter", "5 < 6 > 4", *(f"Title {n}" for n in range(9)))
    config = write(items="".join(["item_id,title\n", *(f"i{n},{t}\n" for n, t in enumerate(titles))]).encode())
    cells = ItemCells()
    assert catalog_notices(list(read_items([config.items], config, cells)), cells) == []


def test_text_and_brand_of_a_table_reach_the_catalog(write):
    config = write(
        items=b'item_id,title,brand,description\ni1,T,Acme,"long\nwords"\n', item_columns={"text": ["description"]}
    )
    (item,) = items_of(config)
    assert (item.brand, item.text) == ("Acme", "long words")


def test_the_text_of_an_item_is_bounded(write):
    config = write(items=b"item_id,title,a\ni,T," + b"word " * 10_000 + b"\n", item_columns={"text": ["a"]})
    assert len(items_of(config)[0].text) <= MAX_TEXT_CHARACTERS

"""No column that may decide something is passed over without a word."""

import re

import pytest
import yaml

from sllmr.components.interactions_example_gen.columns import check_tables
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.files import DataError
from sllmr.components.interactions_example_gen.tables import LOW_RATED, OBSERVED_NEGATIVE, POSITIVE, read_interactions


@pytest.fixture
def configure(tmp_path):
    def write(extra=(), item_columns=(), cells=(), **settings):
        header = ["user_id", "item_id", "timestamp", *extra]
        rows = [["u", f"i{n}", str(1_700_000_000 + n), value] for n, value in enumerate(cells)]
        (tmp_path / "interactions.csv").write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
        (tmp_path / "items.csv").write_text(",".join(["item_id", "title", *item_columns]) + "\n")
        return DataConfig.model_validate(
            {"interactions": str(tmp_path / "interactions.csv"), "items": str(tmp_path / "items.csv"), **settings}
        )

    return write


def unread(config, table):
    return next(columns for columns in check_tables(config) if columns.table == table)


LABELS = [
    "Label",
    "LABEL",
    "click",
    "clicked",
    "is_click",
    "isClick",
    "is_clicked",
    "target",
    "purchased",
    "liked",
    "y",
]
RATINGS = ["rating", "Rating", "stars", "overall", "user_rating", "review_score"]
EVENTS = ["event", "event_type", "eventType", "action", "behavior", "behavior_type", "type"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, "a label") for n in LABELS] + [(n, "a rating") for n in RATINGS] + [(n, "a type of event") for n in EVENTS],
)
def test_a_column_that_may_decide_stops_the_run_and_each_line_it_offers_decides(configure, name, kind):
    with pytest.raises(DataError, match=re.escape(f"the column '{name}' looks like {kind}")) as caught:
        check_tables(configure([name]))
    offered = [yaml.safe_load(line)["data"] for line in str(caught.value).splitlines()[1:]]
    assert len(offered) == 2
    for settings in offered:
        check_tables(configure([name], **settings))


@pytest.mark.parametrize(
    ("name", "cells", "line"),
    [
        ("outcome", ["yes", "no"], {"columns": {"label": "outcome"}}),
        (
            "feedback_type",
            ["view", "cart", "buy"],
            {"columns": {"event_type": "feedback_type"}, "positive_event_types": ["buy"]},
        ),
        ("rating", ["PG-13", "R"], {"columns": {"event_type": "rating"}, "positive_event_types": ["PG-13"]}),
        ("stars", ["1", "10"], {"columns": {"rating": "stars"}, "min_rating": 8}),
        ("overall", ["1.0", "5.0"], {"columns": {"rating": "overall"}, "min_rating": 4}),
        ("target", ["1", "5", "3"], {"columns": {"rating": "target"}, "min_rating": 4}),
    ],
)
def test_the_line_that_is_offered_fits_the_values(configure, name, cells, line):
    with pytest.raises(DataError, match="Write one of") as caught:
        check_tables(configure([name], cells=cells))
    assert yaml.safe_load(str(caught.value).splitlines()[1])["data"] == line
    config = configure([name], cells=cells, **line)
    check_tables(config)
    assert not any(hasattr(row, "problem") for row in read_interactions(config.interactions, config))


@pytest.mark.parametrize("name", ["kind", "status", "op"])
def test_a_column_that_holds_what_users_do_stops_the_run_whatever_its_name(configure, name):
    with pytest.raises(DataError, match=r'looks like a type of event [^$]*positive_event_types: \["purchase"\]'):
        check_tables(configure([name], cells=["view", "add_to_cart", "purchase"]))
    check_tables(configure([name], cells=["view", "add_to_cart", "purchase"], columns={"ignore": [name]}))
    check_tables(configure([name], cells=["open", "closed", "pending"]))


def test_a_column_of_two_values_that_decides_nothing_is_named(configure):
    (notice,) = unread(configure(["gift"], cells=["0", "1", "0"]), "interactions").notices
    assert "'gift' of data.interactions holds only 0 and 1 and decides nothing" in notice
    assert "data.columns.label: gift reads it" in notice
    assert unread(configure(["gift"], cells=["1", "1", "1"]), "interactions").notices == ()


def test_columns_without_a_name_are_no_columns(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title,,\ni1,First,,\n")
    (tmp_path / "a.csv").write_text(",user_id,item_id,timestamp\n0,u,i1,2024-01-01\n")
    columns = check_tables(DataConfig(interactions=str(tmp_path / "a.csv"), items=str(tmp_path / "items.csv")))
    assert [part.names for part in columns] == [(), ()]


@pytest.mark.parametrize(
    ("header", "fix"),
    [
        ("# exported today", "remove the first line, which looks like a comment"),
        ("'user_id','item_id','timestamp'", "the fields are in single quotes"),
        ("user_id^item_id^timestamp", 'set data.csv.separator: "^"'),
        ("user_id\x01item_id\x01timestamp", r'set data.csv.separator: "\x01"'),
        ("user_id item_id timestamp", 'set data.csv.separator: " "'),
        ("ann,shoe,yesterday", "or put a header line with the names of the columns first"),
    ],
)
def test_a_header_that_is_none_is_named_with_its_cure(tmp_path, header, fix):
    (tmp_path / "items.csv").write_text("item_id,title\n")
    (tmp_path / "a.csv").write_text(header + "\n")
    with pytest.raises(DataError, match=re.escape(fix)):
        check_tables(DataConfig(interactions=str(tmp_path / "a.csv"), items=str(tmp_path / "items.csv")))


def test_the_values_of_such_a_column_are_shown(configure):
    with pytest.raises(DataError, match=r"looks like a type of event \(view, cart, buy\), and nothing says"):
        check_tables(configure(["event"], cells=["view", "cart", "view", "buy"]))


@pytest.mark.parametrize(
    "name", ["event_time", "click_time", "rating_count", "purchase_date", "price", "session_id", "country", "quantity"]
)
def test_other_columns_are_listed_and_stop_nothing(configure, name):
    assert unread(configure([name]), "interactions").names == (name,)


def test_a_label_decides_alone_and_the_others_are_named(configure):
    columns = unread(configure(["label", "rating", "event"]), "interactions")
    assert columns.names == ("rating", "event")
    assert len(columns.notices) == 2


def test_event_types_decide_which_rows_are_positives(configure):
    config = configure(
        ["event"], cells=["view", "buy", "cart", ""], columns={"event_type": "event"}, positive_event_types=["buy"]
    )
    *rows, bad = read_interactions(config.interactions, config)
    assert [row.kind for row in rows] == [LOW_RATED, POSITIVE, LOW_RATED]
    assert bad.reason == "missing_event_type"


@pytest.mark.parametrize("settings", [{"columns": {"event_type": "event"}}, {"positive_event_types": ["buy"]}])
def test_event_types_need_a_column_and_the_positive_ones(settings):
    with pytest.raises(ValueError, match="must be set together"):
        DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", **settings})


def test_a_rating_column_needs_a_limit():
    with pytest.raises(ValueError, match=r"set data\.min_rating, or data\.columns\.rating: ''"):
        DataConfig(interactions="a.csv", items="b.csv", columns={"rating": "stars"})


def test_a_mapped_label_is_read(configure):
    config = configure(["Label"], cells=["0", "1"], columns={"label": "Label"})
    assert [row.kind for row in read_interactions(config.interactions, config)] == [OBSERVED_NEGATIVE, POSITIVE]


def test_a_rating_that_is_none_is_not_read(configure):
    config = configure(["rating"], cells=["PG-13", "R"], columns={"rating": ""})
    check_tables(config)
    assert [row.kind for row in read_interactions(config.interactions, config)] == [POSITIVE, POSITIVE]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("genres", "categories"),
        ("category", "categories"),
        ("Categories", "categories"),
        ("tags", "categories"),
        ("manufacturer", "brand"),
        ("Brand", "brand"),
        ("description", "text"),
    ],
)
def test_a_column_that_could_be_read_of_an_item_is_named_with_its_key(configure, name, key):
    columns = unread(configure(item_columns=[name]), "items")
    assert columns.names == (name,)
    assert f"'{name}'" in columns.notices[0]
    assert f"data.item_columns.{key}: " in columns.notices[0]
    value = [name] if key == "text" else name
    config = configure(item_columns=[name])
    read = config.model_copy(update={"item_columns": config.item_columns.model_copy(update={key: value})})
    assert unread(read, "items").names == ()


def test_parts_with_other_columns_are_refused(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n")
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp,label\n")
    (tmp_path / "b.csv").write_text("timestamp,user_id,item_id,price\n")
    config = DataConfig(interactions=str(tmp_path / "[ab].csv"), items=str(tmp_path / "items.csv"))
    with pytest.raises(DataError, match=r"b.csv lacks label and adds price, compared with .*a.csv"):
        check_tables(config)


def test_parts_may_order_their_columns_differently(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n")
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "b.csv").write_text("timestamp,user_id,item_id\n")
    check_tables(DataConfig(interactions=str(tmp_path / "[ab].csv"), items=str(tmp_path / "items.csv")))


@pytest.mark.parametrize(("name", "key"), [("UserId", "user_id"), ("visitorid", "user_id"), ("USER_ID", "user_id")])
def test_a_required_column_of_another_name_is_suggested(tmp_path, name, key):
    (tmp_path / "items.csv").write_text("item_id,title\n")
    (tmp_path / "a.csv").write_text(f"{name},item_id,timestamp\n")
    with pytest.raises(DataError, match=f"set data.columns.{key}: {name}"):
        check_tables(DataConfig(interactions=str(tmp_path / "a.csv"), items=str(tmp_path / "items.csv")))

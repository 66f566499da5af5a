"""Times, ids and categories of single cells."""

import datetime
import json

import pytest

from sllmr.components.interactions_example_gen.cells import (
    RowError,
    canonical_id,
    id_difference,
    line_of,
    other_separator,
    parse_categories,
    parse_id,
    parse_timestamp,
)
from sllmr.components.interactions_example_gen.config import DataConfig

MOMENT = datetime.datetime(2024, 3, 1, 8, 0, tzinfo=datetime.UTC)
SECONDS = int(MOMENT.timestamp())
NANOSECONDS = SECONDS * 10**9


def configure(**item_columns):
    return DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", "item_columns": item_columns})


@pytest.mark.parametrize(
    "value",
    [
        SECONDS,
        str(SECONDS),
        f"{SECONDS}.0",
        float(SECONDS),
        str(SECONDS * 1000),
        SECONDS * 10**6,
        str(SECONDS * 10**6),
        str(NANOSECONDS),
        float(NANOSECONDS),
        "2024-03-01T08:00:00Z",
        "2024-03-01 08:00:00",
        "2024-03-01 08:00:00 UTC",
        "2024-03-01 08:00:00.000 GMT",
        "2024-03-01 08:00:00 utc",
        "2024-03-01T09:00:00+01:00",
        MOMENT,
        MOMENT.replace(tzinfo=None),
    ],
)
def test_one_moment_in_every_form_is_the_same_moment(value):
    assert parse_timestamp(value) == NANOSECONDS


def test_a_date_is_its_midnight():
    midnight = NANOSECONDS - 8 * 3600 * 10**9
    assert parse_timestamp("2024-03-01") == parse_timestamp(datetime.date(2024, 3, 1)) == midnight


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (str(NANOSECONDS + 1), str(NANOSECONDS + 2)),
        (str(SECONDS * 10**6 + 1), str(SECONDS * 10**6 + 2)),
        (f"{SECONDS}.000000001", f"{SECONDS}.000000002"),
        ("2024-03-01T08:00:00.000000001Z", "2024-03-01T08:00:00.000000002 UTC"),
    ],
)
def test_moments_within_a_millisecond_stay_apart(first, second):
    assert NANOSECONDS < parse_timestamp(first) < parse_timestamp(second) < NANOSECONDS + 10**6


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("20240301", "looks like a date and not like seconds; write 2024-03-01$"),
        (20240301, "looks like a date and not like seconds; write 2024-03-01$"),
        ("20240301.0", "looks like a date"),
        ("202403010800", "looks like a date and not like seconds; write 2024-03-01 08:00:00"),
        ("20240301080000", "looks like a date and not like seconds; write 2024-03-01 08:00:00"),
        ("2024", "looks like a year"),
        ("45352", "spreadsheet's serial date; write 2024-03-01"),
        ("45352.333", "spreadsheet's serial date"),
        ("0", "would lie in 1970"),
        ("7", "would lie in 1970"),
        ("475000", "hours since 1970; multiply by 3600"),
        ("28488000", "minutes since 1970; multiply by 60"),
        ("19783", "days since 1970; multiply by 86400"),
        ("01032024", "looks like a date and not like seconds; write 2024-03-01$"),
        (1032024, "looks like a date and not like seconds; write 2024-03-01$"),
        ("240301", "looks like a date and not like seconds; write 2024-03-01$"),
        ("2460370.83", "looks like a Julian day"),
        ("133537536000000000", "looks like a Windows file time"),
        ("13353753600000000", "looks like a WebKit time"),
        ("638448480000000000", ".NET ticks"),
        ("-1", "before 1970"),
        ("9999-12-31", "9999 looks like a stand-in"),
        ("0001-01-01T00:00:00", "0001 looks like a stand-in"),
        ("1970-01-01", "1970 looks like a stand-in"),
        (datetime.datetime(9999, 12, 31), "9999 looks like a stand-in"),
        ("1.70928E+09", "has lost digits"),
        ("nan", "is missing"),
        ("", "is missing"),
        (True, "name another column"),
        ("yesterday", "write it as one of these"),
        ("05 13, 2014", "write it as one of these"),
        ("2024-03-01 08:00:00 CET", "a named zone cannot be read; write the offset"),
        ("2024-03-01 08:00:00 Europe/Berlin", "a named zone cannot be read; write the offset"),
        ("03/04/2024 08:00", "the day and the month cannot be told apart"),
        ("2024/03/01 08:00:00", "write 2024-03-01 08:00:00"),
        ("01.03.2024 08:00", "write 2024-03-01 08:00:00"),
        ("2024-03-01 08:00:00 PM", "write 2024-03-01 20:00:00"),
        ("Fri, 01 Mar 2024 08:00:00 GMT", "write 2024-03-01 08:00:00"),
        ("Fri Mar 01 08:00:00 +0000 2024", "write 2024-03-01 08:00:00"),
        ("Mar 1, 2024", "write 2024-03-01"),
        ("2024-03", "a month is too coarse"),
        ("1,709,280,000", "without separators of thousands"),
        ("'1709280000'", "without quotes"),
        ("1709280000,5", "with a decimal point"),
    ],
)
def test_what_is_no_time_is_refused_with_a_hint(value, hint):
    with pytest.raises(ValueError, match=hint):
        parse_timestamp(value)


def test_a_configured_unit_reads_small_numbers():
    assert parse_timestamp("7", "seconds") == 7 * 10**9
    assert parse_timestamp("20240301", "milliseconds") == 20240301 * 10**6
    with pytest.raises(ValueError, match=r"correct data.timestamp_unit"):
        parse_timestamp(str(NANOSECONDS), "seconds")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (" ", "empty_id"),
        (None, "empty_id"),
        ("nan", "null_like_id"),
        ("none", "null_like_id"),
        (float("nan"), "null_like_id"),
        ("None", "null_like_id"),
        ("\\N", "null_like_id"),
        ("NULL", "null_like_id"),
        ("a\nb", "control_character_in_id"),
        ("a\tb", "control_character_in_id"),
        ("a\x00", "control_character_in_id"),
        ("['a', 'b']", "id_is_a_list"),
        (["a", "b"], "id_is_a_list"),
        ("1.23457E+12", "id_with_exponent"),
    ],
)
def test_what_is_no_id_is_a_bad_row(value, reason):
    with pytest.raises(RowError) as caught:
        parse_id(value, "item_id")
    assert caught.value.reason == reason
    assert "item_id must" in caught.value.problem


@pytest.mark.parametrize(
    ("got", "known", "words"),
    [
        ("25.0", "25", "the same id with .0"),
        ("25", "25.0", "the same id with .0"),
        ("7", "007", "other zero padding"),
        ("0007", "007", "other zero padding"),
        ("b00abc", "B00ABC", "letter case"),
        ("'25", "25", "quotes or invisible characters"),
        ('="25"', "25", "quotes or invisible characters"),
        ("b'25'", "25", "quotes or invisible characters"),
        ("25\u200b", "25", "quotes or invisible characters"),
        ("1,025", "1025", "punctuation"),
        ("shoe_red", "shoe-red", "punctuation"),
    ],
)
def test_an_id_in_another_form_is_recognized(got, known, words):
    assert canonical_id(got) == canonical_id(known)
    assert words in id_difference(got, known)


@pytest.mark.parametrize(("one", "other"), [("25", "250"), ("25.5", "25"), ("a", "b"), ("0", "00a")])
def test_other_ids_stay_other_ids(one, other):
    assert canonical_id(one) != canonical_id(other)


@pytest.mark.parametrize("value", ["nan", "None", "\\N", "NULL", float("nan"), None, " "])
def test_a_missing_title_is_empty(value):
    assert line_of(value) == ""


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Beauty > Hair > Gels", ("Gels", "Hair", "Beauty")),
        ("Beauty>Hair>Gels", ("Gels", "Hair", "Beauty")),
        ("Beauty -> Hair => Gels", ("Gels", "Hair", "Beauty")),
        ("Comedy|Drama|Comedy", ("Comedy", "Drama")),
        ("['Beauty', 'Makeup']", ("Beauty", "Makeup")),
        ('["Beauty", "Makeup"]', ("Beauty", "Makeup")),
        ("('Beauty', 'Makeup')", ("Beauty", "Makeup")),
        ("{'Makeup', 'Beauty'}", ("Beauty", "Makeup")),
        ("[['Beauty', 'Hair'], ['Gifts']]", ("Hair", "Beauty", "Gifts")),
        (json.dumps([{"id": 16, "name": "Animation"}, {"id": 35, "name": "Comedy"}]), ("Animation", "Comedy")),
        ("[{'id': 16, 'name': 'Animation'}]", ("Animation",)),
        ("[]", ()),
        ("nan", ()),
        ("['nan', 'Hair']", ("Hair",)),
        ("(unsorted)", ("(unsorted)",)),
        ("array(['Hair', 'Face'], dtype=object)", ("Hair", "Face")),
        ("\"['Hair', 'Face']\"", ("Hair", "Face")),
        (["Beauty", None, "Makeup"], ("Beauty", "Makeup")),
        ([["Beauty", "Hair"], ["Gifts"]], ("Hair", "Beauty", "Gifts")),
        ("Arts, Crafts & Sewing", ("Arts, Crafts & Sewing",)),
    ],
)
def test_categories_in_every_form_become_names(cell, expected):
    assert parse_categories(cell, configure()) == expected


@pytest.mark.parametrize(
    "cell",
    [
        "['Beauty' 'Makeup']",
        "[Beauty, Makeup]",
        "['Beauty', 'Mak",
        '{"a": 1}',
        "[[['a']]]",
        "[1, {2: 3}]",
        "array(['a' 'b'])",
    ],
)
def test_the_text_of_a_list_that_cannot_be_read_is_refused(cell):
    with pytest.raises(RowError, match="categories must be a path, a list") as caught:
        parse_categories(cell, configure())
    assert caught.value.reason == "bad_categories"


@pytest.mark.parametrize(
    ("separator", "key"),
    [
        (";", "list_separator"),
        (",", "list_separator"),
        ("/", "path_separator"),
        (" &gt; ", "path_separator"),
        ("\n", "list_separator"),
        ("→", "path_separator"),
        ("，", "list_separator"),
        ("__", "path_separator"),
    ],
)
def test_another_separator_is_recognized_by_names_that_come_again(separator, key):
    cells = [separator.join(("Beauty", f"Branch {n % 3}", f"Leaf {n % 7}")) for n in range(20)]
    assert other_separator(cells, configure()) == (separator.strip() or separator, key)
    assert other_separator(cells, configure(**{key: separator})) is None
    assert parse_categories(cells[0], configure(**{key: separator}))[1] == "Branch 0"


@pytest.mark.parametrize(
    "cells",
    [
        ["Arts, Crafts & Sewing", "Clothing, Shoes & Jewelry", "Patio, Lawn & Garden"] * 5,
        ["Beauty > Hair, Body", "Beauty > Hair, Face"] * 5,
        ["Comedy|Drama", "Comedy|Crime"] * 5,
        ["Comedy", "Drama"] * 9,
    ],
)
def test_names_with_commas_are_no_lists(cells):
    assert other_separator(cells, configure()) is None


@pytest.mark.parametrize(
    "item_id", ["1234e567", "12E10", "nancy", "0", "-7", "a b", "[sale]", "{uuid}", "None of these"]
)
def test_unusual_ids_are_ids(item_id):
    assert parse_id(f" {item_id} ", "item_id") == item_id

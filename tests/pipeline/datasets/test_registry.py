"""Each public data set from a sample in its published layout: counts, rows, and that a run reads the tables."""

import csv
import gzip
import pathlib

import pytest
import yaml

from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.tables import (
    LOW_RATED,
    BadRow,
    check_tables,
    read_interactions,
    read_items,
)
from sllmr.pipeline import cli
from sllmr.pipeline.datasets.registry import DATASETS
from tests.pipeline.datasets.samples import RATED, SAMPLES, USERS

INTERACTIONS = USERS * RATED


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs `sllmr data` on a sample; returns what it printed, and the rows of each table by name."""

    def run(name, change=lambda options: None):
        folder = tmp_path / name
        folder.mkdir()
        options = SAMPLES[name](folder)
        change({pathlib.Path(option).name: pathlib.Path(option) for option in options if option[0] == "/"})
        status = cli.main(["data", name, *options, "--output", str(folder / "out")])
        printed = capsys.readouterr()
        tables = {}
        for path in (folder / "out").glob("*.csv.gz"):
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                tables[path.name.removesuffix(".csv.gz")] = list(csv.reader(file))
        return status, printed, tables

    return run


def counts_of(printed):
    lines = [line.partition(": ") for line in printed.out.partition("data:\n")[0].splitlines()]
    return {name.replace(" ", "_"): int(count) for name, _, count in lines if int(count)}


ALL = {"users": USERS, "items": RATED, "interactions": INTERACTIONS}
MISSING = {
    "items_without_row": 1,
    "items_without_title": 1,
    "items_without_categories": 1,
    "items_without_interaction": 1,
}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("movielens-1m", ALL | MISSING),
        ("movielens-25m", ALL | MISSING),
        ("recbole", ALL | MISSING),
        ("amazon-2018", {**ALL, **MISSING, "items_without_brand": 1, "meta_lines": 5, "items_without_interaction": 0}),
        (
            "rees46",
            {
                **ALL,
                "events_view": 10,
                "events_cart": 5,
                "events_remove_from_cart": 5,
                "events_purchase": 5,
                **dict.fromkeys(("items_without_title", "items_without_categories", "items_without_brand"), 1),
            },
        ),
        (
            "hm",
            {
                **ALL,
                **MISSING,
                "repeated_on_the_day": 1,
                "users_without_row": 1,
                "users_without_interaction": 1,
            },
        ),
    ],
)
def test_the_counts_are_exact(prepare, name, counts):
    status, printed, _ = prepare(name)
    assert status == 0, printed.err
    assert counts_of(printed) == {what: count for what, count in counts.items() if count}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_run_reads_the_tables_by_the_lines_that_are_printed(prepare, name):
    _, printed, tables = prepare(name)
    section = yaml.safe_load("data:\n" + printed.out.partition("data:\n")[2])["data"]
    config = DataConfig.model_validate(section)
    check_tables(config)
    interactions = list(read_interactions(config.interactions, config))
    items = list(read_items([config.items], config))
    assert not [row for row in (*interactions, *items) if isinstance(row, BadRow)]
    assert len(interactions) == INTERACTIONS
    assert len({row.user_id for row in interactions}) == USERS
    assert {row.item_id for row in interactions} == {item.item_id for item in items}
    assert [len(item.categories) > 0 for item in items].count(False) == 1
    assert len(tables["interactions"]) == INTERACTIONS + 1


def test_every_data_set_that_is_read_from_files_has_a_sample():
    elsewhere = {"movielens-100k", "amazon-2014", "amazon-2023"}  # test_movielens.py, test_amazon.py
    assert DATASETS.keys() - elsewhere == SAMPLES.keys()


@pytest.mark.parametrize(
    ("name", "table", "row"),
    [
        ("movielens-1m", "interactions", ["1", "1", "2", "978300001"]),
        ("movielens-1m", "items", ["1", "Les Misérables (1991)", "Drama|Children's"]),
        ("movielens-1m", "users", ["4", "F", "50-55", "college/grad student", "48064"]),
        ("movielens-25m", "items", ["4", "The Matrix (1999)", "Drama|Sci-Fi"]),
        ("movielens-25m", "items", ["3", "Untitled", "Drama|Sci-Fi"]),
        ("movielens-25m", "items", ["5", "", ""]),
        ("amazon-2018", "items", ["B1", "Comb 1", "Beauty > Hair Care", "OPI", "1.50"]),
        ("rees46", "interactions", ["1", "1", "2019-10-01T00:00:01Z", "view", "1.99"]),
        ("rees46", "items", ["1", "jbl headphone", "electronics > audio > headphone", "jbl", "1.99"]),
        ("rees46", "items", ["5", "", "", "", "5.99"]),
        ("hm", "interactions", ["c1", "0108775011", "2018-09-20", "0.001", "2"]),
        (
            "hm",
            "items",
            [
                "0108775011",
                "Strap top 1",
                "Ladieswear > Womens Everyday Basics > Garment Upper body > Vest top",
                "Black",
                "Solid",
                "Jersey Basic",
                "Jersey Basic",
                "Jersey top, narrow",
            ],
        ),
        ("hm", "users", ["c1", "1", "1", "ACTIVE", "Regularly", "24.0", "52043ee2"]),
        ("hm", "users", ["c2", "0", "0", "ACTIVE", "Regularly", "", "52043ee2"]),
        ("hm", "users", ["c4", "", "", "", "", "", ""]),
        ("recbole", "interactions", ["1", "1", "881250001.0", "2"]),
        ("recbole", "items", ["1", 'Song "1"', "rock|pop", "1.5"]),
        ("recbole", "users", ["5", "25", "M"]),
    ],
)
def test_a_row_reads_as_the_publisher_means_it(prepare, name, table, row):
    _, _, tables = prepare(name)
    assert row in tables[table]


def test_users_are_a_table_of_user_id_and_columns(prepare):
    for name in ("movielens-1m", "hm", "recbole"):
        _, printed, tables = prepare(name)
        header, *users = tables["users"]
        assert header[0] == "user_id"
        assert len(users) == len({user[0] for user in users}) == USERS
        assert {user[0] for user in users} == {row[0] for row in tables["interactions"][1:]}
        assert "  # users: " in printed.out


def test_events_are_weighted_by_the_lines_that_are_printed(prepare):
    _, printed, _ = prepare("rees46")
    config = DataConfig.model_validate(yaml.safe_load(printed.out[printed.out.index("data:") :])["data"])
    found = list(read_interactions(config.interactions, config))
    assert {row.weight for row in found if row.kind != LOW_RATED} == {0.2, 0.5, 1.0}
    assert sum(row.kind == LOW_RATED for row in found) == 5


def replaced(name, old, new, count=1):
    def change(files):
        content = files[name].read_bytes()
        assert old in content
        files[name].write_bytes(content.replace(old, new, count))

    return change


def cut(name):
    def change(files):
        files[name].write_bytes(gzip.compress(files[name].read_bytes())[:-20])

    return change


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (
            "movielens-1m",
            replaced("ratings.dat", b"1::1::2::", b"1::1::good::"),
            "ratings.dat:1: Rating must be a number, got 'good'",
        ),
        (
            "movielens-1m",
            replaced("ratings.dat", b"2::2::3::", b"2::2::"),
            "ratings.dat:2: a row must have 4 fields, separated by '::', got 3",
        ),
        (
            "movielens-1m",
            replaced("users.dat", b"::18::", b"::19::"),
            "users.dat:2: Age must be among 1, 18, 25, 35, 45, 50, 56, got '19'",
        ),
        (
            "movielens-1m",
            replaced("users.dat", b"::3::", b"::21::"),
            "users.dat:3: Occupation must be a code from 0 to 20, got '21'",
        ),
        (
            "movielens-25m",
            replaced("ratings.csv", b"userId", b"user"),
            "ratings.csv:1: the header must name userId, got 'user,movieId,rating,timestamp'",
        ),
        ("movielens-25m", replaced("movies.csv", b'(1995)"', b"(1995)"), "movies.csv: after line"),
        (
            "movielens-25m",
            replaced("movies.csv", "é".encode(), b"\xe9"),
            "movies.csv: after line 0: must be utf-8, but: invalid",
        ),
        ("movielens-25m", cut("ratings.csv"), "ratings.csv: after line"),
        ("movielens-25m", lambda files: files["movies.csv"].unlink(), "movies.csv must be a file, but does not exist"),
        ("movielens-25m", lambda files: files["movies.csv"].write_bytes(b"PK\x03\x04"), "got a zip archive; unpack it"),
        ("movielens-25m", lambda files: files["movies.csv"].write_bytes(b""), "movies.csv must hold rows, got none"),
        (
            "movielens-25m",
            lambda files: files["ratings.csv"].write_text("userId,movieId,rating,timestamp\n"),
            "must hold interactions, got none",
        ),
        (
            "amazon-2018",
            replaced("X_5.json", b'"asin"', b'"as"'),
            "X_5.json:1: must be one record as published, but the field 'asin'",
        ),
        ("rees46", replaced("2019-Nov.csv", b",purchase,", b",refund,"), "2019-Nov.csv:"),
        (
            "rees46",
            replaced("2019-Oct.csv", b" UTC", b""),
            "2019-Oct.csv:2: event_time must be a time such as 2019-10-01 00:00:00 UTC, got",
        ),
        (
            "hm",
            replaced("t.csv", b"2018-09-24", b"2018-09-19"),
            "t.csv:26: t_dat must not lie before that of the row above, 2018-09-23",
        ),
        ("hm", replaced("t.csv", b",c1,", b",,"), "t.csv:2: customer_id must not be empty;"),
        ("hm", replaced("customers.csv", b"24.0", b"old"), "customers.csv:2: age must be a number, got 'old'"),
        (
            "recbole",
            replaced("x.inter", b"rating:float", b"rating"),
            "x.inter:1: the header must give each column a type",
        ),
        (
            "recbole",
            replaced("x.inter", b"timestamp:float", b"time:float"),
            "x.inter:1: the header must name timestamp",
        ),
        (
            "recbole",
            replaced("x.item", b"name:token_seq", b"label:token_seq"),
            "x.item:1: the header must name a title",
        ),
        ("recbole", replaced("x.item", b"\t1.5", b"\tloud"), "x.item:2: loud:float must be a number, got 'loud'"),
    ],
)
def test_a_damaged_file_is_named_with_row_and_rule_and_leaves_no_partial_table(prepare, name, change, problem):
    status, printed, tables = prepare(name, change)
    assert status == 1
    assert problem in printed.err
    assert ";" in printed.err  # the fix
    assert not tables.keys() - {"interactions", "items"}

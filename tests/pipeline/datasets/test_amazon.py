import csv
import gzip
import json

import pytest

from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.tables import Interaction, read_interactions, read_items
from sllmr.pipeline.datasets import amazon
from sllmr.pipeline.datasets.amazon import (
    DownloadError,
    download_amazon_2014,
    prepare_amazon,
)
from sllmr.pipeline.datasets.tables import SourceError

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1400000000, "reviewText": 'x, "y"'},
    {"reviewerID": "A1", "asin": "B2", "overall": 1.0, "unixReviewTime": 1400086400},
    {"reviewerID": "A2", "asin": "B3", "overall": 3.0, "unixReviewTime": 1400000000},
]
META_2014 = [
    {"asin": "B9", "title": "Nobody reviewed it"},
    {
        "asin": "B1",
        "title": 'Shampoo &amp; Conditioner,\n "Mint"',
        "categories": [["Beauty"], ["Beauty", "Hair Care", "Shampoo | Rinse"]],
        "brand": "L&#39;Or",
    },
    {"asin": "B2", "price": 3.5, "related": {"also_bought": ["B1"]}},
]


def write_lines(path, lines):
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def files_2014(tmp_path):
    reviews = write_lines(tmp_path / "reviews_X_5.json.gz", map(json.dumps, REVIEWS_2014))
    # The published meta lines are Python literals with single quotes.
    meta = write_lines(tmp_path / "meta_X.json.gz", map(repr, META_2014))
    return reviews, meta


def rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_2014_files_become_two_tables(files_2014, tmp_path):
    prepared = prepare_amazon(2014, *files_2014, tmp_path / "data")
    assert rows(prepared.interactions) == [
        ["user_id", "item_id", "rating", "timestamp"],
        ["A1", "B1", "5.0", "1400000000"],
        ["A1", "B2", "1.0", "1400086400"],
        ["A2", "B3", "3.0", "1400000000"],
    ]
    assert rows(prepared.items) == [
        ["item_id", "title", "categories", "brand", "price"],
        ["B1", 'Shampoo & Conditioner, "Mint"', "Beauty > Hair Care > Shampoo / Rinse", "L'Or", ""],
        ["B2", "", "", "", "3.5"],
        ["B3", "", "", "", ""],
    ]
    assert {name: count for name, count in prepared.counts.items() if count} == {
        "users": 2,
        "items": 3,
        "interactions": 3,
        "meta_lines": 3,
        "items_without_row": 1,
        "items_without_title": 2,
        "items_without_categories": 2,
        "items_without_brand": 2,
    }


def test_a_run_reads_the_prepared_tables(files_2014, tmp_path):
    prepared = prepare_amazon(2014, *files_2014, tmp_path / "data")
    config = DataConfig(interactions=str(prepared.interactions), items=str(prepared.items))
    assert all(isinstance(row, Interaction) for row in read_interactions(config.interactions, config))
    first = next(read_items([config.items], config))
    assert first.categories == ("Shampoo / Rinse", "Hair Care", "Beauty")


def test_the_2023_files_become_two_tables(tmp_path):
    reviews = [{"user_id": "A1", "asin": "V1", "parent_asin": "P1", "rating": 4, "timestamp": 1588687728923}]
    reviews += [{**reviews[0], "parent_asin": "P2", "timestamp": 1588687728924}]
    meta = [
        {
            "parent_asin": "P1",
            "title": "Comb",
            "categories": ["Beauty", "Tools"],
            "store": "S",
            "details": {"Brand": "B"},
        },
        {
            "parent_asin": "P2",
            "title": None,
            "main_category": "All Beauty",
            "categories": [],
            "store": "S",
            "details": {},
        },
    ]
    prepared = prepare_amazon(
        2023,
        write_lines(tmp_path / "X.jsonl", map(json.dumps, reviews)),
        write_lines(tmp_path / "meta_X.jsonl", map(json.dumps, meta)),
        tmp_path / "data",
    )
    assert rows(prepared.interactions)[1:] == [
        ["A1", "P1", "4.0", "1588687728923"],
        ["A1", "P2", "4.0", "1588687728924"],
    ]
    assert rows(prepared.items)[1:] == [
        ["P1", "Comb", "Beauty > Tools", "B", ""],
        ["P2", "", "All Beauty", "S", ""],
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"reviewerID": "A1", "asin"', "JSONDecodeError"),
        ('{"reviewerID": "A1", "overall": 5.0, "unixReviewTime": 1}', "the field 'asin' is missing"),
        ("[1]", "ValueError: it is no JSON object"),
    ],
)
def test_a_bad_review_names_file_and_line_and_leaves_no_table(files_2014, tmp_path, line, problem):
    reviews = write_lines(tmp_path / "bad.json.gz", [json.dumps(REVIEWS_2014[0]), line])
    with pytest.raises(SourceError, match=f"bad.json.gz:2: must be one record as published, but {problem}"):
        prepare_amazon(2014, reviews, files_2014[1], tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_bad_meta_line_names_file_and_line(files_2014, tmp_path):
    meta = write_lines(tmp_path / "meta.json", [repr(META_2014[0]), "{'asin': 'B1', 'title': "])
    with pytest.raises(SourceError, match=r"meta.json:2: must be one record as published, but SyntaxError"):
        prepare_amazon(2014, files_2014[0], meta, tmp_path / "data")


def test_files_that_cannot_be_read_are_named(files_2014, tmp_path):
    with pytest.raises(SourceError, match=r"absent.json.gz must be a file"):
        prepare_amazon(2014, tmp_path / "absent.json.gz", files_2014[1], tmp_path / "data")
    (tmp_path / "plain.json.gz").write_text("{}\n")
    with pytest.raises(SourceError, match=r"plain.json.gz must be a whole gzip file"):
        prepare_amazon(2014, tmp_path / "plain.json.gz", files_2014[1], tmp_path / "data")


def test_a_download_takes_both_files_and_keeps_what_is_there(files_2014, tmp_path, monkeypatch):
    monkeypatch.setattr(amazon, "URL_2014", files_2014[0].parent.as_uri())
    target = tmp_path / "downloads"
    reviews, meta = download_amazon_2014("X", target)
    assert (reviews.read_bytes(), meta.read_bytes()) == tuple(path.read_bytes() for path in files_2014)
    reviews.write_bytes(b"kept")
    assert download_amazon_2014("X", target)[0].read_bytes() == b"kept"


def test_a_download_without_a_way_says_what_to_do_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(amazon, "URL_2014", (tmp_path / "nowhere").as_uri())
    with pytest.raises(DownloadError, match=r"reviews_X_5.json.gz must be reachable.*name the local files instead"):
        download_amazon_2014("X", tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_category_is_a_name_and_no_path(tmp_path):
    with pytest.raises(DownloadError, match="category must be letters and underscores"):
        download_amazon_2014("../X", tmp_path)


REVIEW_2018 = {"overall": 5.0, "verified": True, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1400000000}
META_2018 = {
    "category": ["Beauty", "Nails"],
    "title": "<span>Polish</span>",
    "brand": "OPI",
    "asin": "B1",
    "also_buy": [],
}
REVIEW_2023 = {"user_id": "A1", "asin": "V1", "parent_asin": "P1", "rating": 4, "timestamp": 1588687728923}
META_2023 = {"parent_asin": "P1", "title": "Comb", "categories": [], "store": "S", "details": None}


def test_the_2018_files_become_two_tables(tmp_path):
    metas = [
        META_2018 | {"price": "$1,234.50", "category": ["Beauty", "Nails", "</span></span></span>"]},
        {
            "asin": "B2",
            "category": [],
            "title": "var aPageStart = (new Date()).getTime();",
            "price": ".a-box{margin:0}",
        },
        {"asin": "B3", "category": ["Beauty"], "title": "Comb", "price": "$3.00 - $9.00"},
        META_2018,
    ]
    prepared = prepare_amazon(
        2018,
        write_lines(
            tmp_path / "X_5.json.gz", [json.dumps(REVIEW_2018 | {"asin": asin}) for asin in ("B1", "B2", "B3")]
        ),
        write_lines(tmp_path / "meta_X.json.gz", map(json.dumps, metas)),
        tmp_path / "data",
    )
    assert rows(prepared.interactions)[1] == ["A1", "B1", "5.0", "1400000000"]
    assert rows(prepared.items)[1:] == [
        ["B1", "Polish", "Beauty > Nails", "OPI", "1234.50"],
        ["B2", "", "", "", ""],
        ["B3", "Comb", "Beauty", "", ""],
    ]
    assert prepared.counts["repeated_item_rows"] == 1


@pytest.mark.parametrize(
    ("year", "review", "meta", "release"),
    [
        (2014, REVIEW_2018, META_2018, 2018),
        (2014, REVIEWS_2014[0], META_2018, 2018),
        (2014, REVIEWS_2014[0], META_2018 | {"asin": "B7"}, 2018),
        (2014, REVIEW_2023, META_2023, 2023),
        (2018, REVIEWS_2014[0], META_2018, 2014),
        (2018, REVIEW_2018, META_2023, 2023),
        (2023, REVIEW_2018, META_2018, 2018),
        (2023, REVIEW_2023, META_2018, 2018),
        (2023, REVIEWS_2014[0], META_2023, 2014),
    ],
)
def test_another_release_is_named(tmp_path, year, review, meta, release):
    reviews = write_lines(tmp_path / "reviews.json", [json.dumps(review)])
    metas = write_lines(tmp_path / "meta.json", [json.dumps(meta)])
    with pytest.raises(
        SourceError, match=f"json:1: this is the {release} release; for that: sllmr data amazon-{release} "
    ):
        prepare_amazon(year, reviews, metas, tmp_path / "data")


@pytest.mark.parametrize("year", [2014, 2018, 2023])
@pytest.mark.parametrize("line", ["A39HTATAQ9V7YF,0205616461,5.0,1369699200", "user_id,parent_asin,rating,timestamp"])
def test_a_file_of_ratings_only_is_named(tmp_path, year, line):
    reviews = write_lines(tmp_path / "ratings.csv", [line])
    with pytest.raises(SourceError, match="this is a file of ratings only, and already a table"):
        prepare_amazon(year, reviews, write_lines(tmp_path / "meta.json", []), tmp_path / "data")


@pytest.mark.parametrize("details", [{"Brand": "B"}, json.dumps({"Brand": "B"})])
def test_details_of_2023_are_an_object_or_its_text(tmp_path, details):
    prepared = prepare_amazon(
        2023,
        write_lines(tmp_path / "X.jsonl", [json.dumps(REVIEW_2023)]),
        write_lines(tmp_path / "meta_X.jsonl", [json.dumps(META_2023 | {"details": details})]),
        tmp_path / "data",
    )
    assert rows(prepared.items)[1] == ["P1", "Comb", "", "B", ""]

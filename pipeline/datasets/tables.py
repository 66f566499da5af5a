"""What every preparation leaves: gzipped CSV tables of interactions, items and maybe users, and its counts."""

import collections
import contextlib
import csv
import gzip
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sllmr.models.errors import UserError

INTERACTIONS_FILE = "interactions.csv.gz"
ITEMS_FILE = "items.csv.gz"
USERS_FILE = "users.csv.gz"


class SourceError(UserError):
    """A published file is not in its published form; the message names the file and the line."""


class PreparedTables(NamedTuple):
    """Paths of the tables, and what was counted on the way by name.

    Attributes:
        interactions, items: paths.
        counts: by name.
        users: path; None for a data set that says nothing of its users.
    """

    interactions: pathlib.Path
    items: pathlib.Path
    counts: dict[str, int]
    users: pathlib.Path | None = None


class TableRows(NamedTuple):
    """A table to write. An interaction begins with the ids of user and item, any other row with its own id."""

    header: Sequence[str]
    rows: Iterable[Sequence[object]]


def prepare_tables(
    directory: str | os.PathLike[str],
    interactions: TableRows,
    items: TableRows,
    users: TableRows | None = None,
    counts: collections.Counter[str] | None = None,
) -> PreparedTables:
    """Writes the tables in one pass over each: the interactions, then the items and the users that occur in them.

    If an id is repeated, its first row stays. An id that occurs in interactions and has no row gets one of empty cells.

    Args:
        directory: where the tables go.
        interactions, items, users: iterated over in this order.
        counts: the caller's own counts, which are returned with those made here.

    Raises:
        SourceError: there is no interaction, or the rows raise it.
    """
    target = pathlib.Path(directory).expanduser()
    counts = collections.Counter() if counts is None else counts
    counts.update(dict.fromkeys(("users", "items", "interactions"), 0))  # now, because counts are printed in this order
    user_ids: set[object] = set()
    item_ids: set[object] = set()

    def counted() -> Iterator[Sequence[object]]:
        for row in interactions.rows:
            user_ids.add(row[0])
            item_ids.add(row[1])
            counts["interactions"] += 1
            yield row
        if not counts["interactions"]:
            raise SourceError("the files must hold interactions, got none; name the right files")

    interactions_path = write_table(target / INTERACTIONS_FILE, interactions.header, counted())
    items_path = write_table(target / ITEMS_FILE, items.header, _those_of(item_ids, items, "item", counts))
    users_path = None
    if users is not None:
        users_path = write_table(target / USERS_FILE, users.header, _those_of(user_ids, users, "user", counts))
    counts["users"], counts["items"] = len(user_ids), len(item_ids)
    return PreparedTables(interactions_path, items_path, dict(counts), users_path)


_COUNTED_IF_EMPTY = ("title", "categories", "brand")


def _those_of(
    ids: set[object], table: TableRows, what: str, counts: collections.Counter[str]
) -> Iterator[Sequence[object]]:
    empty = {name: table.header.index(name) for name in _COUNTED_IF_EMPTY if name in table.header}
    counts.update({f"{what}s_without_row": 0, **{f"{what}s_without_{name}": 0 for name in empty}})
    waiting = set(ids)
    for row in table.rows:
        if row[0] in waiting:
            waiting.remove(row[0])
            for name, index in empty.items():
                counts[f"{what}s_without_{name}"] += not row[index]
            yield row
        else:
            counts[f"repeated_{what}_rows" if row[0] in ids else f"{what}s_without_interaction"] += 1
    for missing in sorted(map(str, waiting)):
        yield (missing, *[""] * (len(table.header) - 1))
    counts[f"{what}s_without_row"] += len(waiting)
    for name in empty:
        counts[f"{what}s_without_{name}"] += len(waiting)


def write_table(path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> pathlib.Path:
    """Writes a CSV, gzipped if its name ends in .gz, all or nothing.

    A file that already has this content keeps its modification time, so that a cached run stays valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        # No name and no time in the gzip header: the same rows give the same bytes.
        with (
            open(part, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
            if path.suffix == ".gz"
            else contextlib.nullcontext(raw) as content,
            io.TextIOWrapper(content, encoding="utf-8", newline="") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        if not (path.is_file() and path.read_bytes() == part.read_bytes()):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path

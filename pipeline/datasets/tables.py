"""What every preparation leaves: two gzipped CSV tables and its counts."""

import csv
import gzip
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

INTERACTIONS_FILE = "interactions.csv.gz"
ITEMS_FILE = "items.csv.gz"


class SourceError(ValueError):
    """A published file is not in its published form; the message names the file and the line."""


class PreparedTables(NamedTuple):
    """Paths of the two tables, and what was counted on the way by name."""

    interactions: pathlib.Path
    items: pathlib.Path
    counts: dict[str, int]


def write_table(path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> pathlib.Path:
    """Writes a gzipped CSV, all or nothing.

    A file that has the same content already is left alone, with its time of change: a cached run stays valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        # No name and no time in the gzip header: the same rows give the same bytes.
        with (
            open(part, "wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        if not (path.is_file() and path.read_bytes() == part.read_bytes()):
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path

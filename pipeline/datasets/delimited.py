"""Published files of delimited text, read row by row and checked against their documented layout."""

import csv
import dataclasses
import gzip
import html
import io
import math
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sllmr.pipeline.datasets.tables import SourceError

_ZIP, _GZIP = b"PK\x03\x04", b"\x1f\x8b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file is published.

    Attributes:
        columns: names of the columns that are read; without a header, of all columns in their order.
        separator: between the fields; one or more characters, such as `::`.
        has_header: whether the first line names the columns.
        quotes: whether fields may stand in double quotes.
        encoding: of the text.
    """

    columns: tuple[str, ...]
    separator: str = ","
    has_header: bool = True
    quotes: bool = True
    encoding: str = "utf-8-sig"


class Record:
    """One row of a published file.

    Args:
        place: `file:line`.
        cells: by column.
    """

    def __init__(self, place: str, cells: dict[str, str]) -> None:
        self.place = place
        self._cells = cells

    def text(self, column: str) -> str:
        """A cell in one line, without HTML entities."""
        return clean(self._cells[column])

    def id(self, column: str) -> str:
        """A cell that must not be empty.

        Raises:
            SourceError: it is empty.
        """
        value = self._cells[column].strip()
        if not value:
            raise self.error(column, "must not be empty")
        return value

    def number(self, column: str, *, may_be_empty: bool = False) -> str:
        """A cell that is a finite number, as it is written.

        Raises:
            SourceError: it is not a finite number.
        """
        value = self._cells[column].strip()
        if may_be_empty and not value:
            return ""
        try:
            is_finite = math.isfinite(float(value))
        except ValueError:
            is_finite = False
        if not is_finite:
            raise self.error(column, "must be a number")
        return value

    def error(self, column: str, rule: str) -> SourceError:
        """The error of a cell that breaks a rule. It does not repeat cells that may be user ids."""
        shown = "" if "user" in column.lower() or "customer" in column.lower() else f", got {self._cells[column]!r}"
        return SourceError(f"{self.place}: {column} {rule}{shown}; fetch the file again, or correct the row")


def clean(text: Any) -> str:
    """Text in one line, without HTML entities; empty for None."""
    return " ".join(html.unescape(str(text or "")).split())


def category_path(levels: Sequence[Any]) -> str:
    """The cell of a category path, `Beauty > Face`, from its names, the root first.

    Empty names are left out. Separators inside a name are replaced: `|` by `/`, ` > ` by ` / `.
    """
    names = (clean(level).replace("|", "/").replace(" > ", " / ") for level in levels)
    return " > ".join(name for name in names if name)


def category_list(names: Sequence[Any]) -> str:
    """The cell of a category list, `Comedy|Drama`, from its names; empty names are left out, `|` in one becomes `/`."""
    return "|".join(name for name in (clean(name).replace("|", "/") for name in names) if name)


def read_records(path: pathlib.Path, layout: Layout) -> Iterator[Record]:
    """Every row of a file, plain or gzipped.

    Raises:
        SourceError: the file is missing, empty, broken, a zip archive or in another encoding, columns are missing, or a
            row has a wrong number of fields.
    """
    path = path.expanduser()
    header: list[str] = []
    for line, cells in _rows(path, layout):
        if not header:
            header = cells if layout.has_header else list(layout.columns)
            missing = [name for name in layout.columns if name not in header]
            if missing:
                found = layout.separator.join(cells)[:200]
                raise SourceError(
                    f"{path}:{line}: the header must name {', '.join(missing)}, got {found!r}; name the file of that"
                    " layout, or fetch it again"
                )
            if layout.has_header:
                continue
        if len(cells) != len(header):
            raise SourceError(
                f"{path}:{line}: a row must have {len(header)} fields, separated by {layout.separator!r}, got"
                f" {len(cells)}; fetch the file again, or correct the row"
            )
        yield Record(f"{path}:{line}", dict(zip(header, cells, strict=True)))
    if not header:
        raise SourceError(f"{path} must hold rows, got none; fetch the file again")


def read_header(path: pathlib.Path, layout: Layout) -> list[str]:
    """The first row of a file.

    Raises:
        SourceError: as read_records; or the file is empty.
    """
    path = path.expanduser()
    for _, cells in _rows(path, layout):
        return cells
    raise SourceError(f"{path} must hold rows, got none; fetch the file again")


def _rows(path: pathlib.Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    if not path.is_file():
        raise SourceError(f"{path} must be a file, but does not exist; correct the path")
    with open(path, "rb") as raw:
        start = raw.read(4)
        raw.seek(0)
        if start == _ZIP:
            raise SourceError(f"{path} must be an unpacked file, got a zip archive; unpack it and name the file in it")
        source: Any = gzip.GzipFile(fileobj=raw) if start[:2] == _GZIP else raw
        lines = io.TextIOWrapper(source, encoding=layout.encoding, newline="")
        line = 0
        try:
            if len(layout.separator) > 1:
                for line, text in enumerate(lines, start=1):
                    if text.strip():
                        yield line, text.rstrip("\r\n").split(layout.separator)
                return
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quotes else csv.QUOTE_NONE
            reader = csv.reader(lines, delimiter=layout.separator, quoting=quoting, strict=True)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, cells
        except UnicodeDecodeError as error:
            encoding = layout.encoding.removesuffix("-sig")
            raise SourceError(
                f"{path}: after line {line}: must be {encoding}, but: {error.reason}; fetch the file again"
            ) from None
        except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{path}: after line {line}: must be whole, but: {error}; fetch the file again") from None

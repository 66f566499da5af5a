"""Finds and reads the files of a table: CSV and Parquet, plain or gzip, row by row.

A problem of a whole file raises DataError; a problem of one row comes out in its place as a RowError.
"""

import codecs
import collections
import csv
import glob
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sllmr.components.interactions_example_gen.cells import RowError
from sllmr.components.interactions_example_gen.config import CsvConfig
from sllmr.components.interactions_example_gen.encoding import readings, wide_encoding
from sllmr.models.errors import UserError

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")

MAX_LINES_OF_A_ROW = 10_000
"""A longer row is taken for one with an open quote; the lines that it swallowed are read again as rows."""

_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "Parquet",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"ARROW1": "Arrow (Feather)",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "PDF",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
"""First bytes of what is often found under another name."""


class DataError(UserError):
    """The input tables break a rule; the message names the file, the row, the rule, the value and the fix."""


def table_paths(pattern: str, key: str) -> list[str]:
    """Files of a path, a folder of parts or a glob, sorted.

    Args:
        pattern: a path, a folder (its files, without those whose names start with `_` or `.`), or a glob; `**`
            matches folders. Brackets that name a file or folder are taken literally.
        key: the configuration key that holds it, for errors.

    Raises:
        DataError: no such file, or a suffix that is not one of SUFFIXES.
    """
    if os.path.isdir(pattern):
        paths = _parts_of(pattern, key)
    elif os.path.exists(pattern):
        paths = [pattern]
    else:
        matches = glob.glob(pattern, recursive=True) or glob.glob(pattern.replace("[", "[[]"), recursive=True)
        paths = [path for path in sorted(matches) if os.path.isfile(path) and _is_part(path)]
    if not paths:
        hint = ""
        if "$" in pattern:
            hint = " (an environment variable in it is not set)"
        elif parent := _first_missing(pattern):
            hint = f" ({parent} does not exist)"
        raise DataError(
            f"{key} must name at least one file, got {pattern!r}, which matches none{hint}; correct the path"
        )
    for path in paths:
        if not path.lower().endswith(SUFFIXES):
            fix = "convert or rename it"
            if path.lower().removesuffix(".gz").endswith((".tsv", ".tab")):
                fix = 'rename it to end in .csv and set data.csv.separator: "\\t"'
            elif path.lower().removesuffix(".gz").endswith((".txt", ".dat", ".data", ".psv")):
                fix = "if it is text with a header, rename it to end in .csv and set data.csv.separator"
            raise DataError(f"{key} must end in one of {', '.join(SUFFIXES)}, got {path!r}; {fix}")
        if not os.access(path, os.R_OK):
            raise DataError(f"{key} must be readable, got {path!r}; change its permissions")
    return paths


def _is_part(path: str) -> bool:
    return not os.path.basename(path).startswith(("_", "."))


def _parts_of(folder: str, key: str) -> list[str]:
    entries = sorted(entry.path for entry in os.scandir(folder) if _is_part(entry.path))
    folders = [path for path in entries if os.path.isdir(path)]
    if folders:
        raise DataError(
            f"{key} = {folder!r} is a folder that holds folders, such as {os.path.basename(folders[0])}; write"
            f" {os.path.join(folder, '**', '*.parquet')} (or *.csv), whose parts must hold every column themselves"
        )
    if not entries:
        raise DataError(f"{key} = {folder!r} is a folder without files; name the folder that holds the parts")
    return entries


def _first_missing(pattern: str) -> str | None:
    """The first folder above `pattern` that does not exist; None if a wildcard comes before it."""
    missing = None
    parent = os.path.dirname(pattern)
    while parent and not os.path.exists(parent):
        missing, parent = parent, os.path.dirname(parent)
    return missing if missing and not glob.has_magic(missing) else None


def open_table(path: str, settings: CsvConfig, key: str) -> "CsvTable | ParquetTable":
    """The file as a table, its header read.

    Args:
        path: of the file.
        settings: how it is written, if it is CSV.
        key: of the settings for errors, data.csv or data.items_csv.

    Raises:
        DataError: not in the format that its name says.
    """
    packed = path.lower().endswith(".gz")
    is_csv = path.lower().removesuffix(".gz").endswith(".csv")
    _check_format(path, packed=packed, is_csv=is_csv, settings=settings, key=key)
    return CsvTable(path, settings, key) if is_csv else ParquetTable(path)


def _check_format(path: str, *, packed: bool, is_csv: bool, settings: CsvConfig, key: str) -> None:
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise DataError(f"{path} must hold a table, but the file is empty; write it again")
    found = next((name for start, name in _FORMATS.items() if head.startswith(start)), None)
    if packed:
        if found != "gzip":
            what = f"is {found}" if found else "is not"
            raise DataError(f"{path} must be gzip as its name says, but {what}; remove the suffix .gz")
        try:
            with gzip.open(path) as file:
                head = file.read(64)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} must be a whole gzip file, but: {error}; write or fetch it again") from None
        found = next((name for start, name in _FORMATS.items() if head.startswith(start)), None)
    suffix = (".csv" if is_csv else ".parquet") + (".gz" if packed else "")
    if is_csv:
        wide = wide_encoding(head) if found is None else None
        configured = codecs.lookup(settings.encoding).name
        if wide is not None or configured.startswith(("utf-16", "utf-32")):
            _check_wide(path, wide or "utf-8", configured, key)
            return
        if found == "gzip" and packed:
            raise DataError(f"{path} must be CSV packed once, but is gzip within gzip; unpack it once")
        if found is not None:
            fixes = {
                "Parquet": f"rename it to end in {suffix.replace('.csv', '.parquet')}",
                "gzip": "add the suffix .gz to its name",
            }
            raise DataError(
                f"{path} must be CSV as its name says, but is {found}; {fixes.get(found, 'export the table as CSV')}"
            )
        start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml", b"{", b"[")):
            what = "HTML or XML" if start.startswith(b"<") else "JSON"
            raise DataError(f"{path} must be CSV as its name says, but is {what}; export the table as CSV")
    elif found != "Parquet":
        what = f"is {found}" if found else "looks like text" if head.isascii() else "is not"
        fix = f"rename it to end in {suffix.replace('.parquet', '.csv')}" if head.isascii() else "write it again"
        raise DataError(f"{path} must be Parquet as its name says, but {what}; {fix}")


def _check_wide(path: str, found: str, configured: str, key: str) -> None:
    if configured == found or (found in ("utf-16", "utf-32") and configured.startswith(found)):
        return
    raise DataError(
        f"{path} must be {configured.upper()} text, but looks like {found.upper()}; set {key}.encoding: {found}"
        f"{_other_table(key)}, or write it as {configured.upper()}"
    )


def _other_table(key: str) -> str:
    """The part of a fix about the other table, which may share the settings."""
    if key == "data.csv":
        return " (and data.items_csv if the items are written otherwise)"
    return " (data.csv for both tables)"


class _Lines:
    """The lines of a file for csv.reader, those of the current row kept so that they can be read again."""

    def __init__(self, file: io.TextIOBase) -> None:
        self._file = file
        self._again: collections.deque[str] = collections.deque()
        self.row: list[str] = []
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._file)
        self.number += 1
        self.row.append(line)
        if len(self.row) > MAX_LINES_OF_A_ROW:
            raise csv.Error(f"a row has more than {MAX_LINES_OF_A_ROW} lines")
        return line

    def start_row(self) -> int:
        """Forgets the last row; returns the number of the next line."""
        self.row.clear()
        return self.number + 1

    def read_again(self) -> None:
        """Gives back all lines of the current row but the first."""
        self._again.extendleft(reversed(self.row[1:]))
        self.number -= len(self.row) - 1
        del self.row[1:]


class CsvTable:
    """A CSV file with a header, quoted as RFC 4180 says."""

    def __init__(self, path: str, settings: CsvConfig, key: str) -> None:
        self.path = path
        self._settings = settings
        self._key = key
        csv.field_size_limit(2**31 - 1)
        opener = gzip.open if path.lower().endswith(".gz") else open
        # Bytes that are not text become lone surrogates, so that only their own row is refused and not the file.
        self._file = opener(path, "rt", encoding=settings.encoding, errors="surrogateescape", newline="")
        try:
            self._lines = _Lines(self._file)
            self._reader = self._new_reader()
            self.columns = self._header()
        except BaseException:
            self._file.close()
            raise

    def _new_reader(self) -> Any:
        separator = self._settings.separator
        if not self._settings.quotes:
            return csv.reader(self._lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(self._lines, delimiter=separator, strict=True)

    def _header(self) -> list[str]:
        try:
            header = self._next()
        except csv.Error as error:
            raise DataError(f"{self.path}:1: must be CSV, but: {error}; check the header's quotes") from None
        if not header:
            raise DataError(f"{self.path} must start with a header, but its first line is empty; write the table again")
        header[0] = header[0].removeprefix("\ufeff")
        columns = [name.strip() for name in header]
        if columns and len(columns[0]) > 1 and columns[0][0] == columns[0][-1] == '"':  # quotes after a byte order mark
            columns[0] = columns[0][1:-1]
        for name in columns:
            if not is_text(name):
                raise DataError(
                    f"{self.path}:1: the header must be {self._settings.encoding.upper()} text, got {name!r};"
                    f" {self._encoding_fix(name, show=True)}"
                )
            if name and columns.count(name) > 1:
                raise DataError(f"{self.path}:1: column names must be unique, got {name!r} twice; rename one")
        return columns

    def __enter__(self) -> "CsvTable":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _next(self) -> list[str] | None:
        """The next row's cells; None at the end. Raises csv.Error for a malformed row."""
        try:
            return next(self._reader, None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.path} must be a whole gzip file, but: {error}; write or fetch it again") from None
        except UnicodeError as error:
            raise DataError(
                f"{self.path}: after line {self._lines.number}: must be {self._settings.encoding} text, but: {error};"
                f" correct {self._key}.encoding"
            ) from None

    def rows(self, columns: Sequence[str | None]) -> Iterator[tuple[int, tuple | RowError]]:
        """Yields the line number and the cells of `columns` for each row; a cell is None if its column is None.

        A row with a malformed quote, or with a wrong number of fields, loses only its first line, as a RowError: the
        lines that an open quote swallowed are read again.
        """
        indices = [None if name is None else self.columns.index(name) for name in columns]
        width = len(self.columns)
        while True:
            number = self._lines.start_row()
            try:
                cells = self._next()
            except csv.Error as error:
                self._lines.read_again()
                self._reader = self._new_reader()
                problem = (
                    f"a row must be CSV, but: {error}; check its quotes, or set data.csv.quotes: false if they mean"
                )
                yield number, RowError("malformed_quotes", problem + " nothing")
                continue
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            if len(cells) != width:
                self._lines.read_again()
                problem = (
                    f"a row must have {width} fields as the header has, got {len(cells)}; {_width_fix(cells, width)}"
                )
                yield number, RowError("wrong_number_of_fields", problem)
                continue
            values = tuple(None if index is None else cells[index] for index in indices)
            yield number, self._checked(columns, values)

    def _checked(self, columns: Sequence[str | None], values: tuple) -> tuple | RowError:
        for column, value in zip(columns, values, strict=True):
            if isinstance(value, str) and not is_text(value):
                # The interactions hold user ids, which no error repeats.
                fix = self._encoding_fix(value, show=self._key != "data.csv")
                return RowError("invalid_utf8", f"{column} must be {self._settings.encoding.upper()} text; {fix}")
        return values

    def _encoding_fix(self, text: str, *, show: bool) -> str:
        found = readings(text.encode(errors="surrogateescape"))
        setting = f"set {self._key}.encoding"
        if not found:
            return f"{setting} to the one it was written in{_other_table(self._key)}, or save it as UTF-8"
        if not show:
            return f"{setting} to the right one of {', '.join(found)}{_other_table(self._key)}"
        shown = ", ".join(f"{reading[:40]!r} as {name}" for name, reading in found.items())
        return f"it reads {shown}: {setting}: {next(iter(found))}, or the one that reads right{_other_table(self._key)}"


def _width_fix(cells: list[str], width: int) -> str:
    if len(cells) == width + 1 and not cells[-1]:
        return "rows end with a separator that the header lacks: add one to the header"
    if any("\x00" in cell for cell in cells):
        return "it holds NUL bytes, as a crash leaves them: write the file again"
    return "check its quotes"


def is_text(text: str) -> bool:
    """Whether every byte of it could be decoded."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ParquetTable:
    """A Parquet file. Cells keep their type."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = _plain_file(path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} must be a whole gzip file, but: {error}; write or fetch it again") from None
        try:
            self._table = pq.ParquetFile(self._file)
        except (pa.ArrowException, OSError) as error:
            self._file.close()
            raise DataError(f"{path} must be Parquet, but: {error}; write or fetch it again") from None
        self.columns = list(self._table.schema_arrow.names)

    def __enter__(self) -> "ParquetTable":
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()
        self._file.close()

    def rows(self, columns: Sequence[str | None]) -> Iterator[tuple[int, tuple | RowError]]:
        """As CsvTable.rows, with 0-based row numbers."""
        names = list(dict.fromkeys(name for name in columns if name is not None))
        number = 0
        try:
            for batch in self._table.iter_batches(batch_size=16_384, columns=names):
                cells = {name: _cells(batch.column(name)) for name in names}
                empty = [None] * batch.num_rows
                for values in zip(*(empty if name is None else cells[name] for name in columns), strict=True):
                    yield number, _checked(columns, values)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: after row {number}: must be Parquet, but: {error}; write or fetch it again"
            ) from None


def _checked(columns: Sequence[str | None], values: tuple) -> tuple | RowError:
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, str) and not is_text(value):
            return RowError("invalid_utf8", f"{column} must be UTF-8 text; write the file again")
    return values


def _cells(column: pa.Array) -> list:
    """Cells of one column; empty where null, lone surrogates for bytes that are not UTF-8 as in CsvTable."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    cells = ("" if cell is None else cell for cell in column.to_pylist())
    return [cell.decode(errors="surrogateescape") if isinstance(cell, bytes) else cell for cell in cells]


def _plain_file(path: str) -> Any:
    """The file, or an anonymous unpacked copy: Parquet is read from its end, which gzip cannot do."""
    if not path.lower().endswith(".gz"):
        return open(path, "rb")
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed with the table
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, copy)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy

"""Reads the two tables row by row and checks every row; needs neither Beam nor TFX.

A problem of a whole file raises DataError. A problem of one row comes out as a BadRow in its place, and the
caller decides: see DataConfig.on_bad_row.
"""

import csv
import datetime
import glob
import gzip
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from components.catalog import Item
from components.interactions_example_gen.config import ORDER_COLUMNS, DataConfig, iso_to_milliseconds

POSITIVE = 1
OBSERVED_NEGATIVE = 0
LOW_RATED = -1
"""Kinds of interaction: chosen; labelled 0; not labelled 0, but rated below DataConfig.min_rating."""

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")
MILLISECONDS_FROM = 1e11
TIMESTAMP_LIMIT = 1e14


class DataError(ValueError):
    """The input tables break a rule; the message names the file, the row, the rule, the value and the fix."""


class BadRow(NamedTuple):
    """One row that was not used.

    Attributes:
        file: as configured.
        row: line of a CSV file as an editor counts them, or 0-based row of a Parquet file.
        reason: short name, the key in the report.
        problem: rule, value and fix; never a user id.
    """

    file: str
    row: int
    reason: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.problem}"


class Interaction(NamedTuple):
    """One valid row of the interactions.

    Attributes:
        user_id, item_id: not empty.
        timestamp: Unix milliseconds.
        order: within equal timestamps; 0 without such a column.
        kind: POSITIVE, OBSERVED_NEGATIVE or LOW_RATED.
        file, row: as in BadRow.
    """

    user_id: str
    item_id: str
    timestamp: int
    order: float
    kind: int
    file: str
    row: int


def table_paths(pattern: str, key: str) -> list[str]:
    """Files of a path or glob, sorted.

    Args:
        pattern: a path or glob.
        key: the configuration key that holds it, for errors.

    Raises:
        DataError: no such file, or a suffix that is not one of SUFFIXES.
    """
    paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
        raise DataError(f"{key} must name at least one file, got {pattern!r}, which matches none; correct the path")
    for path in paths:
        if not path.lower().endswith(SUFFIXES):
            raise DataError(f"{key} must end in one of {', '.join(SUFFIXES)}, got {path!r}; convert or rename it")
    return paths


def check_tables(config: DataConfig) -> None:
    """Checks what can be checked at once: files, suffixes, headers, columns. For use before a run.

    Raises:
        DataError: the first problem found.
    """
    for path in table_paths(config.items, "data.items"):
        with _open(path) as table:
            _item_columns(table, config)
    for path in table_paths(config.interactions, "data.interactions"):
        with _open(path) as table:
            _interaction_columns(table, config)


def read_interactions(path: str, config: DataConfig) -> Iterator[Interaction | BadRow]:
    """Every row of one interactions file, in the order of the file.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    with _open(path) as table:
        columns = _interaction_columns(table, config)
        for number, values in table.rows(columns):
            if isinstance(values, _RowError):
                yield BadRow(path, number, values.reason, values.problem)
                continue
            try:
                yield _interaction(values, config, path, number)
            except _RowError as error:
                yield BadRow(path, number, error.reason, error.problem)


def read_items(paths: Iterable[str], config: DataConfig) -> Iterator[Item | BadRow]:
    """Every item of all files. Repeated ids come out as BadRow, the first one stays.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    first_places: dict[str, str] = {}
    for path in paths:
        with _open(path) as table:
            columns = _item_columns(table, config)
            for number, values in table.rows(columns):
                if isinstance(values, _RowError):
                    yield BadRow(path, number, values.reason, values.problem)
                    continue
                try:
                    item = _item(values, config)
                except _RowError as error:
                    yield BadRow(path, number, error.reason, error.problem)
                    continue
                if item.item_id in first_places:
                    problem = (
                        f"item_id must be unique, got {item.item_id!r} again after"
                        f" {first_places[item.item_id]}; remove one of the two"
                    )
                    yield BadRow(path, number, "duplicate_item_id", problem)
                    continue
                first_places[item.item_id] = f"{path}:{number}"
                yield item


def parse_timestamp(value: Any) -> int:
    """Unix milliseconds of Unix seconds, milliseconds (from 1e11 on), ISO 8601, or a date type of Parquet.

    Raises:
        ValueError: none of these.
    """
    if isinstance(value, datetime.datetime):
        return iso_to_milliseconds(value.isoformat())
    if isinstance(value, datetime.date):
        return iso_to_milliseconds(value.isoformat())
    try:
        number = float(value)
    except (TypeError, ValueError):
        return iso_to_milliseconds(str(value).strip())
    if not 0 <= number < TIMESTAMP_LIMIT:
        raise ValueError(value)
    return round(number if number >= MILLISECONDS_FROM else number * 1000)


def parse_categories(value: Any, config: DataConfig) -> tuple[str, ...]:
    """Categories of one cell, most specific first, without repetitions, at most `sizes.categories`.

    A path turns round: its last level is the most specific. A list keeps its order.
    """
    columns = config.item_columns
    parts = value if isinstance(value, (list, tuple)) else _text(value).split(columns.list_separator)
    names: dict[str, None] = {}
    for part in parts:
        for level in reversed(_text(part).split(columns.path_separator)):
            if level.strip():
                names[level.strip()] = None
    return tuple(names)[: config.sizes.categories]


class _RowError(Exception):
    """A rule that a row breaks; becomes a BadRow where file and row are known."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem


def _interaction(values: Sequence[Any], config: DataConfig, path: str, number: int) -> Interaction:
    user_id, item_id, timestamp, label, rating, order = values
    user_id, item_id = _text(user_id).strip(), _text(item_id).strip()
    if not user_id or not item_id:
        column = config.columns.item_id if user_id else config.columns.user_id
        raise _RowError("empty_id", f"{column} must not be empty; fill it in or remove the row")
    try:
        milliseconds = parse_timestamp(timestamp)
    except (ValueError, OverflowError):
        raise _RowError(
            "bad_timestamp",
            f"{config.columns.timestamp} must be Unix seconds, Unix milliseconds or ISO 8601, got"
            f" {timestamp!r}; write it as one of these",
        ) from None
    kind = POSITIVE
    if config.min_rating is not None or (rating is not None and rating != ""):
        number_rated = _number(rating, "bad_rating", "rating")
        if config.min_rating is not None and number_rated < config.min_rating:
            kind = LOW_RATED
    if label is not None and not _label(label):
        kind = OBSERVED_NEGATIVE
    rank = 0.0 if order is None else _number(order, "bad_order", "the order within equal timestamps")
    return Interaction(user_id, item_id, milliseconds, rank, kind, path, number)


def _item(values: Sequence[Any], config: DataConfig) -> Item:
    item_id, title, categories, brand, *text = values
    item_id = _text(item_id).strip()
    if not item_id:
        column = config.item_columns.item_id
        raise _RowError("empty_id", f"{column} must not be empty; fill it in or remove the row")
    return Item(
        item_id=item_id,
        title=_line(title),
        categories=parse_categories(categories, config),
        brand=_line(brand),
        text=". ".join(line for line in map(_line, text) if line),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _line(value: Any) -> str:
    return " ".join(_text(value).split())


def _number(value: Any, reason: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _RowError(reason, f"{what} must be a number, got {value!r}; correct the cell or map no column to it")
    return number


_LABELS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def _label(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _LABELS:
        raise _RowError("bad_label", f"label must be 0 or 1, got {value!r}; correct the cell or map no column to it")
    return _LABELS[text]


def _interaction_columns(table: "_CsvTable | _ParquetTable", config: DataConfig) -> list[str | None]:
    columns = config.columns
    if config.min_rating is not None and not _optional(table, columns.rating, "data.columns.rating", ("rating",)):
        raise DataError(
            f"{table.path}: data.min_rating = {config.min_rating} needs a rating column; the columns are"
            f" {', '.join(table.columns)}; set data.columns.rating or remove data.min_rating"
        )
    return [
        _required(table, columns.user_id, "data.columns.user_id"),
        _required(table, columns.item_id, "data.columns.item_id"),
        _required(table, columns.timestamp, "data.columns.timestamp"),
        _optional(table, columns.label, "data.columns.label", ("label",)),
        _optional(table, columns.rating, "data.columns.rating", ("rating",)),
        _optional(table, columns.order, "data.columns.order", ORDER_COLUMNS),
    ]


def _item_columns(table: "_CsvTable | _ParquetTable", config: DataConfig) -> list[str | None]:
    columns = config.item_columns
    return [
        _required(table, columns.item_id, "data.item_columns.item_id"),
        _required(table, columns.title, "data.item_columns.title"),
        _optional(table, columns.categories, "data.item_columns.categories", ("categories",)),
        _optional(table, columns.brand, "data.item_columns.brand", ("brand",)),
        *(_required(table, name, "data.item_columns.text") for name in columns.text),
    ]


def _required(table: "_CsvTable | _ParquetTable", name: str, key: str) -> str:
    if name not in table.columns:
        raise DataError(
            f"{table.path} must have the column {name!r}, but its columns are {', '.join(table.columns)};"
            f" set {key} to the right one"
        )
    return name


def _optional(table: "_CsvTable | _ParquetTable", name: str | None, key: str, defaults: Sequence[str]) -> str | None:
    if name:
        return _required(table, name, key)
    if name == "":
        return None
    return next((default for default in defaults if default in table.columns), None)


def _open(path: str) -> "_CsvTable | _ParquetTable":
    return _CsvTable(path) if path.lower().removesuffix(".gz").endswith(".csv") else _ParquetTable(path)


class _CsvTable:
    """A CSV file with a header, UTF-8, comma-separated, quoted as RFC 4180 says."""

    def __init__(self, path: str) -> None:
        self.path = path
        opener = gzip.open if path.lower().endswith(".gz") else open
        # Bytes that are not UTF-8 become lone surrogates, so that they cost their own row and not the file.
        self._file = opener(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")
        self._reader = csv.reader(self._file, strict=True)
        try:
            header = self._next()
        except DataError:
            self._file.close()
            raise
        if not header:
            self._file.close()
            raise DataError(f"{path} must start with a header, but it is empty; write the table again")
        header[0] = header[0].removeprefix("\ufeff")
        self.columns = [name.strip() for name in header]
        problem = next((name for name in self.columns if not _is_utf8(name)), None)
        repeated = next((name for name in self.columns if self.columns.count(name) > 1), None)
        if problem is not None or repeated is not None:
            self._file.close()
        if problem is not None:
            raise DataError(f"{path}:1: the header must be UTF-8 text, got {problem!r}; save the file as UTF-8 CSV")
        if repeated is not None:
            raise DataError(f"{path}:1: column names must be unique, got {repeated!r} twice; rename one")

    def __enter__(self) -> "_CsvTable":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _next(self) -> list[str] | None:
        start = self._reader.line_num + 1
        try:
            return next(self._reader, None)
        except gzip.BadGzipFile:
            raise DataError(f"{self.path} must be gzip as its name says, but is not; remove the suffix .gz") from None
        except (EOFError, zlib.error) as error:
            raise DataError(f"{self.path} must be a whole gzip file, but: {error}; write or fetch it again") from None
        except csv.Error as error:
            raise DataError(f"{self.path}:{start}: must be CSV, but: {error}; check its quotes") from None

    def rows(self, columns: Sequence[str | None]) -> Iterator[tuple[int, tuple | _RowError]]:
        """Row number and the cells of `columns`; None where no column is asked for."""
        indices = [None if name is None else self.columns.index(name) for name in columns]
        width = len(self.columns)
        while True:
            number = self._reader.line_num + 1
            cells = self._next()
            if cells is None:
                return
            if not cells:  # a blank line
                continue
            if len(cells) != width:
                problem = f"a row must have {width} fields as the header has, got {len(cells)}; check its quotes"
                yield number, _RowError("wrong_number_of_fields", problem)
                continue
            yield (
                number,
                _checked(columns, tuple(None if index is None else cells[index] for index in indices)),
            )


def _checked(columns: Sequence[str | None], values: tuple) -> tuple | _RowError:
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, str) and not _is_utf8(value):
            return _RowError("invalid_utf8", f"{column} must be UTF-8 text; save the file as UTF-8")
    return values


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _ParquetTable:
    """A Parquet file. Cells keep their type."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = _plain_file(path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} must be gzip as its name says, but: {error}; remove the suffix .gz") from None
        try:
            self._table = pq.ParquetFile(self._file)
        except pa.ArrowInvalid as error:
            self._file.close()
            raise DataError(f"{path} must be Parquet, but: {error}; write or fetch it again") from None
        self.columns = list(self._table.schema_arrow.names)

    def __enter__(self) -> "_ParquetTable":
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()
        self._file.close()

    def rows(self, columns: Sequence[str | None]) -> Iterator[tuple[int, tuple | _RowError]]:
        """As _CsvTable.rows, with 0-based row numbers."""
        names = list(dict.fromkeys(name for name in columns if name is not None))
        number = 0
        for batch in self._table.iter_batches(batch_size=16_384, columns=names):
            cells = {name: _cells(batch.column(name)) for name in names}
            empty = [None] * batch.num_rows
            for values in zip(*(empty if name is None else cells[name] for name in columns), strict=True):
                yield number, _checked(columns, values)
                number += 1


def _cells(column: pa.Array) -> list:
    """Cells of one column; empty where null, lone surrogates for bytes that are not UTF-8 as in _CsvTable."""
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

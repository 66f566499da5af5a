"""Reads a table of scores by user: user_id, item_id, score and optionally scored_at, as columns and not as rows."""

import contextlib
import csv
import dataclasses
import datetime
import functools
import gzip
import io
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import CandidateResult, user_key

USER_COLUMNS = ("user_id", "item_id", "score")
SCORED_AT = "scored_at"
SUFFIXES = (".csv", ".csv.gz", ".parquet", ".parquet.gz")

_BLOCK_BYTES = 16 * 2**20
_ROWS_OF_A_BATCH = 2**17
_YEAR_2100 = 4_102_444_800


@dataclasses.dataclass(frozen=True, eq=False)
class UserScores:
    """Scores by user and item, each pair once.

    Attributes:
        user_ids: distinct users.
        item_ids: distinct items.
        first_rows: int64 [users + 1]; the rows of user n are first_rows[n] to first_rows[n + 1].
        items: int32 [rows], index into item_ids.
        llm_scores: float64 [rows], in [0, 1].
        raw_scores: float64 [rows], as in the file.
        scored_at: int64 [rows], Unix seconds.
        duplicates: number of rows left out because another row has the same user and item; the row with the latest
            scored_at counts, the last one in the file if several have it.
        scaled_from: lowest and highest score of the file if the scores were scaled to [0, 1], else None.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    first_rows: np.ndarray
    items: np.ndarray
    llm_scores: np.ndarray
    raw_scores: np.ndarray
    scored_at: np.ndarray
    duplicates: int
    scaled_from: tuple[float, float] | None

    @property
    def rows(self) -> int:
        """Pairs of user and item."""
        return len(self.items)

    def items_of(self, key: str, seed: int) -> list[str]:
        """Items that a user has scores for, in a fixed order; empty for a user who is not in the table.

        Args:
            key: messages.user_key of the user.
            seed: of the key.
        """
        return [self.item_ids[code] for code in self.items[self._rows_of(key, seed)]]

    def results_of(self, key: str, seed: int) -> dict[str, CandidateResult]:
        """The user's scores by item."""
        rows = self._rows_of(key, seed)
        columns = (self.items[rows], self.llm_scores[rows], self.raw_scores[rows], self.scored_at[rows])
        return {
            self.item_ids[code]: CandidateResult(
                item_id=self.item_ids[code], llm_score=float(score), raw_score=float(raw), scored_at=int(at)
            )
            for code, score, raw, at in zip(*columns, strict=True)
        }

    def _rows_of(self, key: str, seed: int) -> slice:
        keys, users = self._keys(seed)
        place = int(np.searchsorted(keys, key.encode()))
        if place == len(keys) or keys[place] != key.encode():
            return slice(0, 0)
        user = users[place]
        return slice(int(self.first_rows[user]), int(self.first_rows[user + 1]))

    @functools.lru_cache(maxsize=2)  # noqa: B019  replay.read_table keeps one table in a process
    def _keys(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys of the users, and the user of each."""
        keys = np.array([user_key(user_id, seed).encode() for user_id in self.user_ids], dtype="S24")
        order = np.argsort(keys)
        return keys[order], order


def header_of(file: str) -> list[str]:
    """Column names of a CSV or Parquet file, plain or gzip.

    Raises:
        LlmError: it is neither.
    """
    with _opened(file) as (source, is_parquet):
        try:
            if is_parquet:
                return list(pq.read_schema(source).names)
            text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
            return [name.strip() for name in next(csv.reader(text), [])]
        except (UnicodeDecodeError, csv.Error, EOFError, OSError, zlib.error, pa.ArrowException) as error:
            _refuse_file(file, error)


def text_rows(file: str, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str | None, ...]]]:
    """Every row of a file as text: its line in CSV or 0-based row in Parquet, and the cells of `columns`.

    Raises:
        LlmError: the file cannot be read.
    """
    with _opened(file) as (source, is_parquet):
        number = 0 if is_parquet else 2
        try:
            for batch in _batches(source, file, is_parquet=is_parquet, columns=columns):
                for row in zip(*(batch[name].cast(pa.string()).to_pylist() for name in columns), strict=True):
                    yield number, row
                    number += 1
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            _refuse_file(file, error)


def read_user_scores(files: Sequence[str]) -> UserScores:
    """Reads a table of scores by user.

    Scores outside [0, 1] are scaled by the lowest and highest of the whole table: (score - lowest) / (highest -
    lowest). This brings percentages, star ratings and logits alike to [0, 1] and keeps their order.

    Args:
        files: CSV or Parquet, plain or gzip: the parts of one table.

    Raises:
        LlmError: a file cannot be read or lacks a column; a row has no user, no item or no finite score; all scores
            are equal; there is no row.
    """
    parts = [part for file in files for part in _parts(file)]
    table = pa.concat_tables(parts).unify_dictionaries().combine_chunks() if parts else None
    if table is None or not table.num_rows:
        raise LlmError(f"{files[0]} must hold a row for each user and item, got none; write the table again")
    users, items = (table.column(name).chunk(0) for name in ("user_id", "item_id"))
    scores = table.column("score").to_numpy()
    times = table.column(SCORED_AT).to_numpy()
    user_codes, item_codes = users.indices.to_numpy(), items.indices.to_numpy()
    # A stable sort: of rows of one user, item and time the last in the file comes last.
    order = np.lexsort((times, item_codes, user_codes))
    user_codes, item_codes = user_codes[order], item_codes[order]
    is_last = np.ones(len(order), bool)
    is_last[:-1] = (user_codes[1:] != user_codes[:-1]) | (item_codes[1:] != item_codes[:-1])
    raw = scores[order][is_last]
    lowest, highest = float(raw.min()), float(raw.max())
    if lowest == highest and len(raw) > 1:
        raise LlmError(
            f"the scores of {files[0]} must differ, got {lowest:g} in all {len(raw)} rows, which puts no item above "
            "another; write the scores that your model gives"
        )
    is_outside = (lowest < 0 or highest > 1) and lowest < highest
    llm_scores = (raw - lowest) / (highest - lowest) if is_outside else np.clip(raw, 0, 1)
    return UserScores(
        user_ids=users.dictionary.to_pylist(),
        item_ids=items.dictionary.to_pylist(),
        first_rows=np.searchsorted(user_codes[is_last], np.arange(len(users.dictionary) + 1)),
        items=item_codes[is_last],
        llm_scores=llm_scores,
        raw_scores=raw,
        scored_at=times[order][is_last],
        duplicates=int((~is_last).sum()),
        scaled_from=(lowest, highest) if is_outside else None,
    )


def _parts(file: str) -> Iterator[pa.Table]:
    """The file's rows, checked, with ids as dictionaries: a few bytes for each row."""
    default_time = int(os.stat(file).st_mtime)
    with _opened(file) as (source, is_parquet):
        first = 0 if is_parquet else 2
        try:
            for columns in _batches(source, file, is_parquet=is_parquet, columns=(*USER_COLUMNS, SCORED_AT)):
                rows = len(columns["score"])
                yield pa.table(
                    {
                        "user_id": _ids(columns["user_id"], "user_id", file, first),
                        "item_id": _ids(columns["item_id"], "item_id", file, first),
                        "score": _scores(columns["score"], file, first),
                        SCORED_AT: _times(columns[SCORED_AT], file, first)
                        if SCORED_AT in columns
                        else pa.array(np.full(rows, default_time)),
                    }
                )
                first += rows
        except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
            _refuse_file(file, error)


def _batches(source: Any, file: str, *, is_parquet: bool, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """Those of the columns that the file has, some rows at a time; as text if it is CSV."""
    names = header_of(file)
    wanted = [name for name in columns if name in names]
    for name in wanted:
        if names.count(name) > 1:
            raise LlmError(f"{file}: column names must be unique, got {name} twice; rename one")
    if is_parquet:
        batches = pq.ParquetFile(source).iter_batches(batch_size=_ROWS_OF_A_BATCH, columns=wanted)
    else:
        batches = pacsv.open_csv(
            source,
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1, block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    for batch in batches:
        yield {name: batch.column(name) for name in wanted}


def _ids(column: pa.Array, name: str, file: str, first: int) -> pa.DictionaryArray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        raise LlmError(f"{file}: {name} must hold text or integers, got {column.type}; write the ids as text")
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    is_missing = pc.or_kleene(pc.is_null(text), pc.equal(text, ""))
    row = _first(is_missing)
    if row is not None:
        raise LlmError(f"{file}:{first + row}: {name} must not be empty; fill it in or remove the row")
    return pc.dictionary_encode(text)


def _scores(column: pa.Array, file: str, first: int) -> pa.Array:
    def refuse(row: int) -> NoReturn:
        raise LlmError(
            f"{file}:{first + row}: score must be a finite number, got {column[row].as_py()!r}; correct the row or "
            "remove it"
        )

    if pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        raise LlmError(f"{file}: score must hold numbers, got {column.type}; write what your model gives")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    try:
        numbers = pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowInvalid:
        refuse(next(row for row, value in enumerate(column.to_pylist()) if not _is_number(value)))
    # Finite as float32 too, which the score records hold.
    is_finite = pc.fill_null(pc.is_finite(pc.cast(numbers, pa.float32(), safe=False)), False)
    row = _first(pc.invert(is_finite))
    if row is not None:
        refuse(row)
    return numbers


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return "_" not in str(text)


def _times(column: pa.Array, file: str, first: int) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        column = pc.cast(column, pa.timestamp("s"), safe=False).cast(pa.int64())
    encoded = pc.dictionary_encode(column, null_encoding="encode")
    seconds: list[int] = []
    latest = min(_YEAR_2100, time.time() + 86400)
    for place, value in enumerate(encoded.dictionary.to_pylist()):
        second = _unix_seconds(value)
        if second is None or not 0 < second <= latest:
            row = _first(pc.equal(encoded.indices, place))
            raise LlmError(
                f"{file}:{first + (row or 0)}: scored_at must be Unix seconds or ISO 8601, and not in the future, got "
                f"{value!r}; correct the row, or leave the column out"
            )
        seconds.append(second)
    return pa.array(seconds, pa.int64()).take(encoded.indices)


def _unix_seconds(value: Any) -> int | None:
    """Unix seconds of a number in seconds, milliseconds, microseconds or nanoseconds, or of ISO 8601, in UTC."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            moment = datetime.datetime.fromisoformat(str(value).strip())
        except ValueError:
            return None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp())
    if not np.isfinite(number):
        return None
    while number > _YEAR_2100:
        number /= 1000
    return int(number)


def _first(is_wanted: pa.Array) -> int | None:
    """The first row that is true."""
    row = pc.index(is_wanted, True).as_py()
    return None if row < 0 else row


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Any, bool]]:
    """A file, unpacked, and whether it is Parquet: by its first bytes, whatever its name says."""
    with contextlib.ExitStack() as files:
        file: Any = files.enter_context(open(path, "rb"))
        try:
            if _head(file, 2) == b"\x1f\x8b":
                file = files.enter_context(gzip.GzipFile(fileobj=file))
            is_parquet = _head(file, 4) == b"PAR1"
            if is_parquet and isinstance(file, gzip.GzipFile):
                # Parquet is read from its end, which gzip cannot do.
                packed, file = file, files.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(packed, file)
                file.seek(0)
        except (EOFError, OSError, zlib.error) as error:
            _refuse_file(path, error)
        yield file, is_parquet


def _head(file: Any, size: int) -> bytes:
    head = file.read(size)
    file.seek(0)
    return bytes(head)


def _refuse_file(file: str, error: BaseException) -> NoReturn:
    # Arrow quotes the row, and with it a user id.
    problem = re.sub(r"(got \d+): .*", r"\1", str(error), flags=re.DOTALL)
    raise LlmError(
        f"{file} must be a CSV file in UTF-8 or a Parquet file, plain or .gz, and is not: {problem}; write it again"
    ) from None

"""Keeps every response that was ever paid for, by the content of its request.

The reader decides whether a stored response is a hit: one that gives no score is a receipt for the bill, and
its request is queried again. What a newer response replaces is kept as a receipt as well.

The store lies outside of TFX's executions, so a killed, failed or repeated run sends no request twice. It is safe with
several threads and processes. A response is committed to disk before it is used: it is the receipt of paid money, which
must outlive a power cut as it does a killed process. Neither API keys nor user ids occur in it: the address is a hash
and the response is the model's.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from sllmr.components.llm_scorer.store.interface import Content, Statements
from sllmr.components.llm_scorer.store.opening import open_database

FILE_NAME = "responses.sqlite"

_RESPONSES = Content(
    file_name=FILE_NAME,
    name="response cache",
    if_damaged="move it away (its answers will be asked again)",
    if_unusable="a response may be lost",
    is_receipt=True,
)


_COPIED_AT_ONCE = 1000

_Row = tuple[str, str, str, int]
"""Key, value, checksum, answered_at."""


class ResponseCache:
    """Content-addressed store of responses.

    An entry carries a checksum over key, value and time. An entry whose checksum does not match is counted and treated
    as absent; a new response then replaces it.

    Threads that store at the same moment share one commit, so a slow disk delays answers and does not queue them.
    """

    def __init__(self, store: str, *, not_before: int = 0):
        """Opens or creates the cache.

        Args:
            store: a folder, or the URL of a database.
            not_before: answers from before this Unix second count as absent.

        Raises:
            CacheError: the store is damaged, or cannot be used.
        """
        self.store = store
        self._database = open_database(store, _RESPONSES)
        self._not_before = not_before
        self._corrupt: set[str] = set()
        self._corrupt_lock = threading.Lock()
        self._pending: list[_Pending] = []
        self._pending_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._database.create(
            "responses",
            [
                "CREATE TABLE IF NOT EXISTS responses "
                "(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL, answered_at INTEGER NOT "
                "NULL) "
                "WITHOUT ROWID",
                "CREATE TABLE IF NOT EXISTS receipts (key TEXT, value TEXT NOT NULL, checksum TEXT NOT NULL, "
                "answered_at INTEGER NOT NULL, PRIMARY KEY (key, checksum)) WITHOUT ROWID",
            ],
        )
        # In the same commit as what replaces it.
        self._database.keep_replaced("responses", "receipts")
        columns = self._database.as_bytes("value"), self._database.as_bytes("checksum")
        fields = f"{', '.join(columns)}, {self._database.as_integer('answered_at')} FROM"
        self._select = f"SELECT {fields}"
        self._select_rows = f"SELECT {self._database.as_bytes('key')}, {fields}"

    def receipts(self, key: str) -> list[dict[str, Any]]:
        """Responses to the request that were paid for and are not the one that `get` returns."""
        rows = self._database.execute(f"{self._select} receipts WHERE key = ?", (key,))
        entries = (self._entry(key, row) for row in rows)
        return [entry[0] for entry in entries if entry is not None and entry[1] >= self._not_before]

    def receipt_keys(self) -> set[str]:
        """The requests that `receipts` knows of."""
        rows = self._database.execute(f"SELECT DISTINCT {self._database.as_bytes('key')} FROM receipts")
        return {(key or b"").decode("utf-8", "replace") for (key,) in rows}

    def add_receipts(self, responses: Iterable[tuple[str, dict[str, Any]]], answered_at: int) -> None:
        """Stores responses of one moment, a Unix second, for the bill alone."""
        self._insert("receipts", responses, answered_at)

    def get(self, key: str) -> tuple[dict[str, Any], int] | None:
        """The response and the Unix second of its call; None if there is none, or it is damaged or too old."""
        rows = self._database.execute(f"{self._select} responses WHERE key = ?", (key,))
        entry = self._entry(key, rows[0]) if rows else None
        return None if entry is None or entry[1] < self._not_before else entry

    def _entry(self, key: str, row: tuple[Any, ...]) -> tuple[dict[str, Any], int] | None:
        """A stored row as `get` returns it; None, and counted, if its bytes are not those that were stored."""
        value, checksum, answered_at = row
        try:
            text = value.decode()
            if _checksum(key, text, answered_at).encode() == checksum:
                response = json.loads(text)
                if isinstance(response, dict) and isinstance(answered_at, int):
                    return response, answered_at
        except (AttributeError, ValueError, RecursionError):
            pass
        with self._corrupt_lock:
            self._corrupt.add(key)
        return None

    def put(self, key: str, response: dict[str, Any]) -> int:
        """Stores a response; an earlier one becomes a receipt. Returns its time."""
        value, answered_at = _encoded(response), int(time.time())
        pending = _Pending((key, value, _checksum(key, value, answered_at), answered_at))
        with self._pending_lock:
            self._pending.append(pending)
        # While one thread commits, the next ones gather: the first of them to get the lock commits for all.
        with self._commit_lock:
            if not pending.committed:
                self._commit_with_others(pending)
        return answered_at

    def put_all(self, responses: Iterable[tuple[str, dict[str, Any]]], answered_at: int) -> None:
        """Stores many responses of one moment, a Unix second, in one commit."""
        self._insert("responses", responses, answered_at)

    def _insert(self, table: str, responses: Iterable[tuple[str, dict[str, Any]]], answered_at: int) -> None:
        rows = []
        for key, response in responses:
            value = _encoded(response)
            rows.append((key, value, _checksum(key, value, answered_at), answered_at))
        self._database.executemany(_insert(table, 1), rows)

    def _commit_with_others(self, own: "_Pending") -> None:
        with self._pending_lock:
            batch = {own.row[0]: own}
            for pending in self._pending:
                batch.setdefault(pending.row[0], pending)
            # A second response to the same request waits for its own turn: a statement writes a row once.
            self._pending = [pending for pending in self._pending if batch[pending.row[0]] is not pending]
        try:
            # One statement: at each, all other threads of the worker contend for the interpreter.
            fields = [field for pending in batch.values() for field in pending.row]
            self._database.execute(_insert("responses", len(batch)), fields)
        except BaseException:
            # The others try, and raise, for themselves.
            with self._pending_lock:
                self._pending += [pending for pending in batch.values() if pending is not own]
            raise
        for pending in batch.values():
            pending.committed = True

    def copy_to(self, other: "ResponseCache") -> Iterator[int]:
        """Copies responses and receipts of a folder into another store, a part at each step.

        If both have a response to a request, the other store's stays and the folder's becomes a receipt there, unless
        the folder has replaced the other store's since an earlier copy. Damaged rows are left out.

        Yields:
            How many responses were copied since the last step, including those that the other store had already.
        """
        after: bytes | None = b""
        while after is not None:
            rows = self._database.execute(
                f"{self._select_rows} responses WHERE key > CAST(? AS TEXT) ORDER BY key LIMIT {_COPIED_AT_ONCE}",
                (after,),
            )
            last = rows[-1][0] if len(rows) == _COPIED_AT_ONCE else None
            until = ("", ()) if last is None else (" AND key <= CAST(? AS TEXT)", (last,))
            receipts = self._database.execute(
                f"{self._select_rows} receipts WHERE key > CAST(? AS TEXT){until[0]}", (after, *until[1])
            )
            responses = self._sound(rows)
            other._take(responses, self._sound(receipts))
            yield len(responses)
            after = last

    def _sound(self, rows: Iterable[tuple[Any, ...]]) -> list[_Row]:
        """The rows whose bytes are those that were stored."""
        found: list[_Row] = []
        for key_bytes, *row in rows:
            key = key_bytes.decode("utf-8", "replace")
            if self._entry(key, tuple(row)) is not None:
                value, checksum, answered_at = row
                found.append((key, value.decode(), checksum.decode(), answered_at))
        return found

    def _take(self, responses: list[_Row], receipts: list[_Row]) -> None:
        """Stores rows of another cache, all or none."""
        keys = sorted({key for key, *_ in (*responses, *receipts)})
        replaced = {(key, checksum) for key, _, checksum, _ in receipts}
        query = (
            f"SELECT key, checksum FROM responses WHERE key IN ({', '.join('?' * len(keys))}) ORDER BY key"
            f"{self._database.row_lock}"
        )

        def take(statements: Statements) -> None:
            statements.executemany("INSERT INTO responses VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", responses)
            current = dict(statements.execute(query, keys))
            newer = [row for row in responses if (row[0], current[row[0]]) in replaced and current[row[0]] != row[2]]
            statements.executemany(_insert("responses", 1), newer)
            current |= {key: checksum for key, _, checksum, _ in newer}
            statements.executemany(
                "INSERT INTO receipts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [row for row in (*responses, *receipts) if current.get(row[0]) != row[2]],
            )

        if keys:
            self._database.transact(take)

    def take_corrupt(self) -> int:
        """Number of corrupt entries met since the last call."""
        with self._corrupt_lock:
            corrupt, self._corrupt = self._corrupt, set()
        return len(corrupt)

    def close(self) -> None:
        """Closes the calling thread's connection."""
        self._database.close()


class _Pending:
    """A row that waits for its commit."""

    def __init__(self, row: tuple[str, str, str, int]):
        self.row = row
        self.committed = False


def _insert(table: str, rows: int) -> str:
    key = {"responses": "key", "receipts": "key, checksum"}[table]
    return (
        f"INSERT INTO {table} VALUES {', '.join(['(?, ?, ?, ?)'] * rows)} ON CONFLICT ({key}) DO UPDATE SET "
        "value = excluded.value, checksum = excluded.checksum, answered_at = excluded.answered_at"
    )


def _encoded(response: dict[str, Any]) -> str:
    """JSON that UTF-8 can hold: a lone surrogate, as an endpoint may send it, stays escaped."""
    text = json.dumps(response, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(response)
    return text


def _checksum(key: str, value: object, answered_at: object) -> str:
    return hashlib.sha256(f"{key}\n{value}\n{answered_at}".encode()).hexdigest()

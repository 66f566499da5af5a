"""Every answer that was ever paid for, by the content of its request.

One SQLite file in a directory of its own, outside TFX's executions: a killed, failed or repeated run asks
nothing twice. Safe with several threads and processes (write-ahead log, busy time-out); an answer is
committed before it is used, and a commit reaches the disk (synchronous = FULL): it is the receipt of paid money, which
must outlive a power cut as it does a killed process. Neither keys nor user ids occur in it: the address is a hash and
the response is the model's.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from components.llm_scorer.config import LlmError

FILE_NAME = "responses.sqlite"
BUSY_TIMEOUT_S = 60.0
_PAGES_KB = 100
"""Of the database, in each connection's memory. There are two for each thread, and by SQLite's own measure they grow
with the file to 2 MB each; the pages are in the system's cache anyway.
"""


class ResponseCache:
    """Content-addressed store of responses.

    An entry carries a checksum over key and value. One that does not match is counted and treated as absent;
    the fresh answer then replaces it.

    Threads that store at the same moment share one commit, so a slow disk delays answers and does not queue them.
    """

    def __init__(self, directory: str, *, not_before: int = 0):
        """Opens or creates the store.

        Args:
            directory: of the store.
            not_before: answers from before this Unix second count as absent.

        Raises:
            LlmError: the file is not such a store.
        """
        os.makedirs(directory, exist_ok=True)
        self.path = os.path.join(directory, FILE_NAME)
        self._not_before = not_before
        self._corrupt: set[str] = set()
        self._corrupt_lock = threading.Lock()
        self._pending: list[_Pending] = []
        self._pending_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._local = threading.local()
        with self._guard():
            self._connection().execute(
                "CREATE TABLE IF NOT EXISTS responses "
                "(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL, answered_at INTEGER NOT "
                "NULL) "
                "WITHOUT ROWID"
            )

    def get(self, key: str) -> tuple[dict[str, Any], int] | None:
        """The response and the Unix second of its call; None where there is none, or none to be believed."""
        with self._guard():
            row = (
                self._connection()
                .execute("SELECT value, checksum, answered_at FROM responses WHERE key = ?", (key,))
                .fetchone()
            )
        if row is None:
            return None
        value, checksum, answered_at = row
        if _checksum(key, value, answered_at) != checksum:
            with self._corrupt_lock:
                self._corrupt.add(key)
            return None
        if answered_at < self._not_before:
            return None
        return json.loads(value), answered_at

    def put(self, key: str, response: dict[str, Any]) -> int:
        """Stores a response, in place of an earlier one; returns its time."""
        value, answered_at = json.dumps(response, ensure_ascii=False), int(time.time())
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
        rows = []
        for key, response in responses:
            value = json.dumps(response, ensure_ascii=False)
            rows.append((key, value, _checksum(key, value, answered_at), answered_at))
        connection = self._connection()
        with self._guard(), transaction(connection):
            connection.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?)", rows)

    def _commit_with_others(self, own: "_Pending") -> None:
        with self._pending_lock:
            batch, self._pending = self._pending, []
        try:
            # One statement: at each, all other threads of the worker contend for the interpreter.
            rows = ", ".join(["(?, ?, ?, ?)"] * len(batch))
            with self._guard():
                self._connection().execute(
                    f"INSERT OR REPLACE INTO responses VALUES {rows}", [field for p in batch for field in p.row]
                )
        except BaseException:
            # The others try, and raise, for themselves.
            with self._pending_lock:
                self._pending += [pending for pending in batch if pending is not own]
            raise
        for pending in batch:
            pending.committed = True

    def take_corrupt(self) -> int:
        """Number of corrupt entries met since it was last asked for."""
        with self._corrupt_lock:
            corrupt, self._corrupt = self._corrupt, set()
        return len(corrupt)

    def close(self) -> None:
        """Closes the calling thread's connection."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self.path, synchronous="FULL")
        return self._local.connection

    def _guard(self) -> "_CorruptFile":
        return _CorruptFile(self.path)


class _CorruptFile:
    """Turns SQLite's complaint about a damaged file into a sentence."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            raise LlmError(
                f"the response cache {self._path} is damaged ({error}); move it away (its answers will be asked again)"
            ) from None


class _Pending:
    """A row that waits for its commit."""

    def __init__(self, row: tuple[str, str, str, int]):
        self.row = row
        self.committed = False


def connect(path: str, *, synchronous: str = "NORMAL") -> sqlite3.Connection:
    """A connection for one thread, in write-ahead mode. A statement is a transaction of its own, outside of
    `transaction`.

    Args:
        synchronous: FULL: a commit survives a power cut; NORMAL: only the end of the process.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA cache_size = -{_PAGES_KB}")
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Statements that take effect together, with no other change in between."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        yield


def _checksum(key: str, value: object, answered_at: object) -> str:
    return hashlib.sha256(f"{key}\n{value}\n{answered_at}".encode()).hexdigest()

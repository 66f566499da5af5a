"""Every answer that was ever paid for, by the content of its request.

The reader decides whether a stored response is a hit: one that gives no score is a receipt for the bill, and
its request is queried again. What a newer response replaces is kept as a receipt as well.

One SQLite file in a directory of its own, outside TFX's executions: a killed, failed or repeated run asks
nothing twice. Safe with several threads and processes (write-ahead log, busy time-out); an answer is
committed before it is used, and a commit reaches the disk (synchronous = FULL): it is the receipt of paid money, which
must outlive a power cut as it does a killed process. Neither keys nor user ids occur in it: the address is a hash and
the response is the model's.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from sllmr.components.llm_scorer.errors import LlmError
from sllmr.models.errors import LOCAL_DISK, cure_of

FILE_NAME = "responses.sqlite"
BUSY_TIMEOUT_S = 60.0
_PAGES_KB = 100
"""Of the database, in each connection's memory. There are two for each thread, and by SQLite's own measure they grow
with the file to 2 MB each; the pages are in the system's cache anyway.
"""


_SELECT = (
    "SELECT CAST(value AS BLOB), CAST(checksum AS BLOB), CASE typeof(answered_at) WHEN 'integer' THEN answered_at END "
    "FROM"
)
"""As bytes: text that is not UTF-8 would fail in SQLite's module, before the checksum can tell."""


class CacheError(LlmError):
    """A file of the cache's directory cannot be read or written; the message names it, what is wrong and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store:
    """What an SQLite file of the cache's directory is, for messages.

    Attributes:
        name: what the file holds.
        if_damaged: what to do about a damaged file, and what is lost by it.
        if_unusable: what is lost while the file cannot be read or written.
    """

    name: str
    if_damaged: str
    if_unusable: str


_RESPONSES = Store(
    name="response cache",
    if_damaged="move it away (its answers will be asked again)",
    if_unusable="a response may be lost",
)


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
            CacheError: the file is not such a store, or cannot be used.
        """
        make_directory(directory)
        self.path = os.path.join(directory, FILE_NAME)
        self._not_before = not_before
        self._corrupt: set[str] = set()
        self._corrupt_lock = threading.Lock()
        self._pending: list[_Pending] = []
        self._pending_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._local = threading.local()
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS responses "
            "(key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL, answered_at INTEGER NOT "
            "NULL) "
            "WITHOUT ROWID"
        )
        # In the same commit as what replaces it, whoever stores: an earlier version of this code, too.
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS receipts (key TEXT, value TEXT NOT NULL, checksum TEXT NOT NULL, "
            "answered_at INTEGER NOT NULL, PRIMARY KEY (key, checksum)) WITHOUT ROWID"
        )
        self._connection().execute(
            "CREATE TRIGGER IF NOT EXISTS keep_receipt BEFORE INSERT ON responses "
            "WHEN EXISTS (SELECT 1 FROM responses WHERE key = NEW.key) BEGIN "
            "INSERT OR REPLACE INTO receipts SELECT * FROM responses WHERE key = NEW.key; END"
        )

    def receipts(self, key: str) -> list[dict[str, Any]]:
        """Responses to the request that were paid for and are not the one that `get` returns."""
        rows = self._connection().execute(f"{_SELECT} receipts WHERE key = ?", (key,)).fetchall()
        entries = (self._entry(key, row) for row in rows)
        return [entry[0] for entry in entries if entry is not None and entry[1] >= self._not_before]

    def receipt_keys(self) -> set[str]:
        """The requests that `receipts` knows of."""
        rows = self._connection().execute("SELECT DISTINCT CAST(key AS BLOB) FROM receipts")
        return {(key or b"").decode("utf-8", "replace") for (key,) in rows}

    def add_receipts(self, responses: Iterable[tuple[str, dict[str, Any]]], answered_at: int) -> None:
        """Stores responses of one moment, a Unix second, for the bill alone."""
        self._insert("receipts", responses, answered_at)

    def get(self, key: str) -> tuple[dict[str, Any], int] | None:
        """The response and the Unix second of its call; None where there is none, or none to be believed."""
        row = self._connection().execute(f"{_SELECT} responses WHERE key = ?", (key,)).fetchone()
        entry = None if row is None else self._entry(key, row)
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
        connection = self._connection()
        with transaction(connection):
            connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", rows)

    def _commit_with_others(self, own: "_Pending") -> None:
        with self._pending_lock:
            batch, self._pending = self._pending, []
        try:
            # One statement: at each, all other threads of the worker contend for the interpreter.
            rows = ", ".join(["(?, ?, ?, ?)"] * len(batch))
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
            self._local.connection = connect(self.path, _RESPONSES, synchronous="FULL")
        return self._local.connection


class _Pending:
    """A row that waits for its commit."""

    def __init__(self, row: tuple[str, str, str, int]):
        self.row = row
        self.committed = False


class _Connection(sqlite3.Connection):
    """A connection whose statements raise CacheError where the file or its disk is at fault."""

    path: str
    store: Store

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executemany(*arguments)


class _Cursor(sqlite3.Cursor):
    connection: _Connection

    def execute(self, *arguments: Any) -> "_Cursor":
        with self._errors():
            super().execute(*arguments)
        return self

    def executemany(self, *arguments: Any) -> "_Cursor":
        with self._errors():
            super().executemany(*arguments)
        return self

    def fetchone(self) -> Any:
        with self._errors():
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        with self._errors():
            return super().fetchall()

    def __next__(self) -> Any:
        with self._errors():
            return super().__next__()

    def _errors(self) -> "_SqliteErrors":
        return _SqliteErrors(self.connection.path, self.connection.store)


class _SqliteErrors:
    """Turns SQLite's complaint about a file or its disk into a CacheError; a defect of ours stays what it is."""

    def __init__(self, path: str, store: Store):
        self._path = path
        self._store = store

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            return
        cure = next((cure for words, cure in _CURES.items() if words in str(error)), None)
        if type(error) is sqlite3.DatabaseError or cure is None:
            raise CacheError(
                f"the {self._store.name} {self._path} is damaged ({error}); {self._store.if_damaged}"
            ) from None
        raise CacheError(
            f"the {self._store.name} {self._path} cannot be used ({error}): {self._store.if_unusable}; {cure}, and run "
            "again"
        ) from None


_WRITABLE = "make the file and its folder writable"
_FREE_SPACE = "free space on its disk, or move the cache's folder to another one and set cache_dir to it"
_CURES = {
    "is full": _FREE_SPACE,
    "readonly": _WRITABLE,
    "unable to open": _WRITABLE,
    "permission denied": _WRITABLE,
    "authorization": _WRITABLE,
    "locked": "end the process that locks it",
    "disk I/O error": "check its disk and the space left there",
    "locking protocol": "move the cache's folder to a local disk and set cache_dir to it",
}
"""The fix by words of SQLite's messages. Any other operational error is about tables that are not as they were made."""


def connect(path: str, store: Store, *, synchronous: str = "NORMAL") -> sqlite3.Connection:
    """A connection for one thread, in write-ahead mode. A statement is a transaction of its own, outside of
    `transaction`.

    Args:
        store: what the file is.
        synchronous: FULL: a commit survives a power cut; NORMAL: only the end of the process.

    Raises:
        CacheError: here and at every statement, if the file is damaged or its disk is full or read-only.
    """
    with _SqliteErrors(path, store):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, factory=_Connection)
    connection.path, connection.store = path, store
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{_PAGES_KB}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Statements that take effect together, with no other change in between."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if connection.in_transaction:
            connection.rollback()
        raise


@contextlib.contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Raises CacheError for an OSError of the block, which handles the file or folder `path` of the cache alone."""
    try:
        yield
    except OSError as error:
        cure = _FREE_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else cure_of(error) or _WRITABLE
        raise CacheError(f"{path} cannot be used ({error.strerror or error}); {cure}, and run again") from None


@contextlib.contextmanager
def lock_errors(path: str) -> Iterator[None]:
    """Raises CacheError for an OSError of the block, which locks the file `path`; but not where another holds it."""
    try:
        yield
    except (BlockingIOError, PermissionError):
        raise
    except OSError as error:
        raise CacheError(
            f"{path} cannot be locked ({error.strerror or error}); {cure_of(error) or LOCAL_DISK} as cache_dir, and"
            " run again"
        ) from None


def make_directory(directory: str) -> None:
    """Makes the folder of the cache; raises CacheError where it cannot be made."""
    with file_errors(directory):
        os.makedirs(directory, exist_ok=True)


def open_lock(path: str) -> BinaryIO:
    """Opens a file that is locked and never written to; raises CacheError with the fix where it cannot be opened."""
    if os.path.isdir(path):
        raise CacheError(f"the lock {path} must be a file, but is a folder; delete it (nothing is lost), and run again")
    with file_errors(path):
        return open(path, "ab")


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

"""One SQLite file for all threads and processes of a machine.

Write-ahead log and busy time-out: those who read do not wait, and those who write wait for each other.
"""

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from sllmr.components.llm_scorer.store.interface import CacheError, Content, Result, Statements
from sllmr.models.errors import LOCAL_DISK, cure_of

BUSY_TIMEOUT_S = 60.0
_PAGES_KB = 100
"""Page cache of each connection. Each thread has two connections, whose caches would grow with the file to SQLite's
default of 2 MB each; the pages are in the system's cache anyway.
"""


class SqliteDatabase:
    """A Database in a file of its own; each thread has a connection."""

    row_lock = ""
    """BEGIN IMMEDIATE has locked everything."""

    def __init__(self, directory: str, content: Content):
        """
        Raises:
            CacheError: the file is no such database, or cannot be used.
        """
        make_directory(directory)
        self.path = os.path.join(directory, content.file_name)
        self._content = content
        self._local = threading.local()

    def as_bytes(self, column: str) -> str:
        # Text that is not UTF-8 would fail in SQLite's module.
        return f"CAST({column} AS BLOB)"

    def as_integer(self, column: str) -> str:
        return f"CASE typeof({column}) WHEN 'integer' THEN {column} END"

    def create(self, table: str, statements: Sequence[str]) -> None:
        for statement in statements:
            self.execute(statement)

    def keep_replaced(self, table: str, archive: str) -> None:
        # A trigger also fires if an earlier version of this code stores the row.
        self.execute(
            f"CREATE TRIGGER IF NOT EXISTS keep_receipt BEFORE INSERT ON {table} "
            f"WHEN EXISTS (SELECT 1 FROM {table} WHERE key = NEW.key) BEGIN "
            f"INSERT OR REPLACE INTO {archive} SELECT * FROM {table} WHERE key = NEW.key; END"
        )

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._connection().execute(sql, parameters).fetchall()

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        if self._connection().in_transaction:
            with self._errors():
                self._connection().executemany(sql, rows)
        else:
            self.transact(lambda statements: statements.executemany(sql, rows))

    def transact(self, statements: Callable[[Statements], Result]) -> Result:
        self.execute("BEGIN IMMEDIATE")
        try:
            result = statements(self)
            self.execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self._connection().in_transaction:
                self._connection().rollback()
            raise
        return result

    def clock(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            with self._errors():
                self._local.connection = connect(self.path, is_receipt=self._content.is_receipt)
        return self._local.connection

    def _errors(self) -> "_SqliteErrors":
        return _SqliteErrors(self.path, self._content)


def connect(path: str, *, is_receipt: bool) -> sqlite3.Connection:
    """A connection for one thread, in write-ahead mode; a statement is a transaction of its own, unless one was begun.

    Args:
        is_receipt: a commit survives a power cut, and not only the end of the process.
    """
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_receipt else 'NORMAL'}")
        connection.execute(f"PRAGMA cache_size = -{_PAGES_KB}")
    except BaseException:
        connection.close()
        raise
    return connection


class _SqliteErrors:
    """Turns SQLite's errors about a file or its disk into CacheError; other errors are defects of ours and stay."""

    def __init__(self, path: str, content: Content):
        self._path = path
        self._content = content

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if type(error) not in (sqlite3.DatabaseError, sqlite3.OperationalError):
            return
        cure = next((cure for words, cure in _CURES.items() if words in str(error)), None)
        if type(error) is sqlite3.DatabaseError or cure is None:
            raise CacheError(
                f"the {self._content.name} {self._path} is damaged ({error}); {self._content.if_damaged}"
            ) from None
        raise CacheError(
            f"the {self._content.name} {self._path} cannot be used ({error}): {self._content.if_unusable}; {cure}, and "
            "run again"
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

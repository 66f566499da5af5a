"""What the cache, the ledger, and the record of batches need of a database, whichever it is."""

import dataclasses
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from sllmr.components.llm_scorer.errors import LlmError

Result = TypeVar("Result")

_URL = "postgresql://"
_EXAMPLE = f"{_URL}user@host/database"
_HOSTS = re.compile(r"(?:(?:[\w.%-]+|\[[0-9a-fA-F:.]+\])?(?::\d+)?)(?:,(?:[\w.%-]+|\[[0-9a-fA-F:.]+\])?(?::\d+)?)*")


class CacheError(LlmError):
    """What is kept cannot be read or written; the message names the file or the database, what is wrong and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What one SQLite file, or a few tables of PostgreSQL, hold.

    Attributes:
        file_name: of the SQLite file.
        name: what it holds, for messages.
        if_damaged: what to do about a damaged file, and what is lost by it.
        if_unusable: what is lost while it cannot be read or written.
        is_receipt: whether it proves what was paid, so that it must outlive a power cut, not only the process.
    """

    file_name: str
    name: str
    if_damaged: str
    if_unusable: str
    is_receipt: bool


class Statements(Protocol):
    """Runs statements in SQLite's dialect, which hold neither LIKE nor text with a question mark."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Runs a statement; returns its rows, none if it returns nothing."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement for each row of parameters."""
        ...


class Database(Statements, Protocol):
    """Outside of `transact`, each statement is a transaction of its own. Safe with threads and processes.

    Raises:
        CacheError: from every method, if the database cannot be used.
    """

    @property
    def row_lock(self) -> str:
        """Suffix of a SELECT in `transact`: no other transaction may change its rows before this one ends."""
        ...

    def as_bytes(self, column: str) -> str:
        """Expression of a text column's bytes, even if they are not UTF-8."""
        ...

    def as_integer(self, column: str) -> str:
        """Expression of an integer column, NULL if something else is stored."""
        ...

    def create(self, table: str, statements: Sequence[str]) -> None:
        """Makes tables that are not there.

        Args:
            table: the first of them.
            statements: CREATE TABLE IF NOT EXISTS ...
        """
        ...

    def keep_replaced(self, table: str, archive: str) -> None:
        """From now on, a row of `table` that another one replaces is copied to `archive`, in the same transaction."""
        ...

    def transact(self, statements: Callable[[Statements], Result]) -> Result:
        """Runs statements that take effect together, all or none.

        Args:
            statements: called with what runs them, possibly more than once; anything else it does must be repeatable.

        Returns:
            What `statements` returned.
        """
        ...

    def clock(self) -> float:
        """Seconds of a clock that is the same for all who share the database; a time of day set back does not show."""
        ...

    def close(self) -> None:
        """Closes what belongs to the calling thread."""
        ...


class Held(Protocol):
    """A lock that is held."""

    def is_held(self) -> bool:
        """Whether it is still held for sure; a lease expires if this process is suspended."""
        ...

    def release(self) -> None:
        """Lets go."""
        ...


class Locks(Protocol):
    """Locks by key, which threads and processes respect. That of a killed process becomes free."""

    poll_s: float
    """Seconds between two attempts of one who waits."""

    def try_lock(self, key: str) -> Held | None:
        """Takes the lock of a key, unless it is held: then None.

        Args:
            key: hexadecimal digits, at least 15.
        """
        ...

    def is_locked(self, key: str) -> bool:
        """Whether anybody holds the lock of a key."""
        ...

    def close(self) -> None:
        """Closes what belongs to the calling thread, which holds no lock any more, and what `is_locked` opened."""
        ...


def is_shared(store: str) -> bool:
    """Whether a store is a database of several machines and not a folder."""
    return store.startswith(_URL)


def check_url(url: str) -> str:
    """Returns the URL of a shared store after checking it; such a URL holds no secret.

    Raises:
        ValueError: it is no such URL, or holds a password. The message never repeats it.
    """
    problem = (
        f"must be like {_EXAMPLE}, with other characters as %XX, got something else; remove it to keep responses in "
        "cache_dir"
    )
    try:
        parts = urllib.parse.urlsplit(url)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        raise ValueError(problem) from None
    user, _, hosts = parts.netloc.rpartition("@")
    if ":" in user or any("password" in key.lower() for key in query):
        raise ValueError(
            f"must hold no password; write {_EXAMPLE} and put the password into the environment variable PGPASSWORD or "
            "into ~/.pgpass"
        )
    has_database = parts.path.strip("/") or "dbname" in query
    # A password with an unescaped / ? # or @ would end up in any of these.
    rest = parts.path + parts.query + parts.fragment + user
    if not (is_shared(url) and has_database and _HOSTS.fullmatch(hosts)) or "@" in rest or "#" in url:
        raise ValueError(problem)
    return url

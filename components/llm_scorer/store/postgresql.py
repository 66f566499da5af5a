"""PostgreSQL for all workers of several machines.

A process has a few connections for all its threads. If a connection breaks, its transaction is retried until the server
is back, for RETRY_S at most, unless it took effect. To find that out, each transaction writes its number into a row of
its connection, so nothing is added twice. PostgreSQL's own transaction ids would not do: after a crash, another
transaction may get the same one.

Each transaction is committed to disk (PostgreSQL's synchronous_commit) before it counts.
"""

import atexit
import contextlib
import functools
import itertools
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sllmr.components.llm_scorer.store.interface import CacheError, Content, Result, Statements

# TensorFlow exports the symbols of its BoringSSL to the whole process. A client that is loaded after it would call them
# in place of its own OpenSSL, and crash. With this flag its own come first.
_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_DEEPBIND)
try:
    import psycopg
except ImportError as error:
    raise CacheError(
        f"a store at postgresql:// needs the client psycopg, but: {error}; pip install 'psycopg[binary]>=3.2,<4'"
    ) from None
finally:
    sys.setdlopenflags(_flags)

RETRY_S = 60.0
"""How long a worker waits for a server that was there before: a restart, a failover, a network that is interrupted."""

CONNECTIONS = 8
"""Of a process to one server: transactions take milliseconds, and a server has 100 by default for all."""

_OLDEST = 14
_PAUSE_S = (0.1, 1.0)

_SESSION = {
    # A worker that is suspended in a transaction holds its locks no longer than this.
    "idle_in_transaction_session_timeout": "30s",
    # Nor does a machine that disappears silently.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


_MAKING = "SELECT pg_advisory_xact_lock(hashtextextended('sllmr', 0))"
"""Locks the creation of tables: two workers that create one at the same moment would fail."""


class _Connection(psycopg.Connection[Any]):
    """A connection, and its name in the table `commits`."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.client = uuid.uuid4().hex


class Server:
    """The connections of this process to one database."""

    def __init__(self, url: str):
        self.url = url
        self._idle: list[_Connection] = []
        self._numbers = itertools.count()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._was_there = False
        self._created: set[str] = set()
        self._ahead_s: float | None = None

    def transact(self, content: Content, statements: Callable[[Statements], Result]) -> Result:
        """See Database.transact."""
        unsure: tuple[str, int] | None = None
        result: Any = None

        def attempt(connection: _Connection) -> Result:
            nonlocal unsure, result
            if unsure is not None:
                # Waits as long as the commit in doubt may still come, as that one holds the row's lock.
                query = "SELECT number FROM commits WHERE client = %s FOR UPDATE"
                row = connection.execute(query, unsure[:1]).fetchone()
                if row is not None and row[0] == unsure[1]:
                    return result
            unsure, number = None, next(self._numbers)
            with connection.transaction():
                query = "UPDATE commits SET number = %s, at = now() WHERE client = %s"
                if not connection.execute(query, (number, connection.client)).rowcount:
                    raise psycopg.OperationalError("another process has forgotten a connection that was idle for days")
                result = statements(_Cursor(connection))
                unsure = connection.client, number
            return result

        return self.attempt(content, attempt)

    def attempt(self, content: Content, use: Callable[[_Connection], Result]) -> Result:
        """Calls `use` with a connection; retries if the connection breaks or the server asks for it.

        Raises:
            CacheError: the server cannot be reached for RETRY_S, or at once if it was never reached; or it refuses what
                `use` does.
        """
        started, pause_s = time.monotonic(), _PAUSE_S[0]
        while True:
            try:
                with self._connection() as connection:
                    return use(connection)
            except psycopg.Error as error:
                passes = _passes(error)
                if not passes and not isinstance(error, psycopg.ProgrammingError):
                    raise  # a defect of ours
                if not passes or not self._was_there or time.monotonic() - started > RETRY_S:
                    # Those who come next do not wait as long.
                    self._was_there = self._was_there and not passes
                    raise self._error(content, error) from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S[1])

    def create(self, content: Content, first: str, statements: Sequence[str]) -> None:
        """Runs the CREATE statements, unless what they create is there.

        Args:
            first: SQL expression that is NULL unless all of it is there.
        """
        if first in self._created:
            return

        def make(cursor: Statements) -> None:
            cursor.execute(_MAKING)
            if cursor.execute(f"SELECT {first}") == [(None,)]:
                for statement in statements:
                    cursor.execute(statement)

        self.transact(content, make)
        self._created.add(first)

    def clock(self, content: Content) -> float:
        """Seconds of the server's clock, derived from this machine's; each new connection compares the two."""
        if self._ahead_s is None:
            self.attempt(content, lambda connection: None)
        return time.monotonic() + (self._ahead_s or 0.0)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        with self._room:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    def _connect(self) -> _Connection:
        connection = _Connection.connect(
            self.url,
            autocommit=True,
            application_name="sllmr",
            client_encoding="UTF8",
            connect_timeout=10,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=20_000,
        )
        try:
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            names = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items())
            before = time.monotonic()
            row = connection.execute(f"SELECT extract(epoch FROM clock_timestamp()), {names}").fetchone() or (0,)
            ahead_s = float(row[0]) - (before + time.monotonic()) / 2
            encoding = connection.info.parameter_status("server_encoding")
            if connection.info.server_version < _OLDEST * 10_000 or encoding != "UTF8":
                raise CacheError(
                    f"the store {self.url} must be PostgreSQL {_OLDEST} or later with a database in UTF8, got "
                    f"{connection.info.server_version // 10_000} with {encoding}; set another store"
                )
            self._make_commits(connection)
        except BaseException:
            connection.close()
            raise
        self._was_there, self._ahead_s = True, ahead_s
        return connection

    def _make_commits(self, connection: _Connection) -> None:
        """Makes the table of numbers, clears it of connections that were closed long ago, and adds this one's row.

        The row must be there before the first transaction, so that it can be locked: nobody sees or waits for a row
        that a commit in doubt inserts.
        """
        with connection.transaction():
            connection.execute(_MAKING)
            if connection.execute("SELECT to_regclass('commits')").fetchone() == (None,):
                connection.execute(
                    "CREATE TABLE commits (client TEXT PRIMARY KEY, number BIGINT NOT NULL, at TIMESTAMPTZ NOT NULL)"
                )
            connection.execute("DELETE FROM commits WHERE at < now() - interval '7 days'")
            connection.execute("INSERT INTO commits VALUES (%s, -1, now())", (connection.client,))

    def _error(self, content: Content, error: psycopg.Error) -> CacheError:
        words = " ".join(str(error).split()) or type(error).__name__
        return CacheError(
            f"the {content.name} in {self.url} cannot be used ({words}): {content.if_unusable}; {_cure(words)}, and"
            " run again"
        )


class PostgresqlDatabase:
    """A Database in tables of a server."""

    row_lock = " FOR UPDATE"

    def __init__(self, server: Server, content: Content):
        self._server = server
        self._content = content

    def as_bytes(self, column: str) -> str:
        return f"convert_to({column}, 'UTF8')"

    def as_integer(self, column: str) -> str:
        return column

    def create(self, table: str, statements: Sequence[str]) -> None:
        self._server.create(self._content, f"to_regclass('{table}')", statements)

    def keep_replaced(self, table: str, archive: str) -> None:
        # The trigger sees the locked row: if two workers store at the same moment, both responses are kept.
        self._server.create(
            self._content,
            "to_regproc('keep_receipt')",
            [
                "CREATE FUNCTION keep_receipt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"INSERT INTO {archive} SELECT OLD.* ON CONFLICT DO NOTHING; RETURN NEW; END $$",
                f"CREATE TRIGGER keep_receipt BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION keep_receipt()",
            ],
        )

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        if sql.startswith("SELECT"):
            return self._server.attempt(self._content, lambda c: _Cursor(c).execute(sql, parameters))
        return self.transact(lambda statements: statements.execute(sql, parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        rows = list(rows)
        self.transact(lambda statements: statements.executemany(sql, rows))

    def transact(self, statements: Callable[[Statements], Result]) -> Result:
        return self._server.transact(self._content, statements)

    def clock(self) -> float:
        return self._server.clock(self._content)

    def close(self) -> None:
        """Nothing belongs to a thread."""


class _Cursor:
    """Statements on one connection."""

    def __init__(self, connection: _Connection):
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(_translated(sql), tuple(parameters) or None)
        return cursor.fetchall() if cursor.description else []

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_translated(sql), list(rows))


@functools.lru_cache(maxsize=1000)
def _translated(sql: str) -> Any:
    """SQLite's dialect in PostgreSQL's."""
    if sql.startswith("CREATE TABLE"):
        sql = sql.replace("INTEGER", "BIGINT").replace("REAL", "DOUBLE PRECISION")
        if "WITHOUT ROWID" in sql:
            return sql.replace("WITHOUT ROWID", "")
        return sql.replace("(", "(rowid BIGSERIAL, ", 1)
    return sql.replace("?", "%s")


def _passes(error: psycopg.Error) -> bool:
    """Whether a repetition may succeed: the connection is lost, the server starts, a standby takes over, a deadlock."""
    return isinstance(
        error,
        psycopg.OperationalError
        | psycopg.InterfaceError
        | psycopg.errors.ReadOnlySqlTransaction
        | psycopg.errors.IdleInTransactionSessionTimeout,
    )


_CURES = {
    "certificate": "set sslrootcert in the store's URL to the authority of the server's certificate",
    "permission denied for schema": "let its user make tables (GRANT CREATE ON SCHEMA ... TO ...)",
    "password": "set the password in the environment variable PGPASSWORD or in ~/.pgpass",
    "column": "give the store a database of its own",
    "does not exist": "create what is missing, or set another store",
    "too many": "raise the server's max_connections",
    "pg_hba": "let the server accept this machine (pg_hba.conf)",
    "No space left": "free space on the server's disk",
}


def _cure(message: str) -> str:
    found = (cure for words, cure in _CURES.items() if words in message)
    return next(found, "check that the server runs and that the store's URL is right")


_servers: dict[tuple[str, str, int], Server] = {}
_servers_lock = threading.Lock()


def connect_to(url: str, purpose: str = "") -> Server:
    """The process's Server of a URL; one with a purpose has connections of its own."""
    with _servers_lock:
        # A fork must not use its parent's connections.
        return _servers.setdefault((url, purpose, os.getpid()), Server(url))


@atexit.register
def disconnect() -> None:
    """Closes the connections of this process that are not in use."""
    with _servers_lock:
        for (_, _, process), server in _servers.items():
            if process == os.getpid():
                server.close()
        _servers.clear()

"""A store is named by a text: a folder, which holds SQLite files, or the URL of a PostgreSQL database."""

from sllmr.components.llm_scorer.store.file_locks import FileLocks
from sllmr.components.llm_scorer.store.interface import Content, Database, Locks, is_shared
from sllmr.components.llm_scorer.store.sqlite import SqliteDatabase


def open_database(store: str, content: Content) -> Database:
    """Opens or creates what holds `content` in a store.

    Raises:
        CacheError: it cannot be used, or the client of PostgreSQL is not installed.
    """
    if is_shared(store):
        from sllmr.components.llm_scorer.store.postgresql import PostgresqlDatabase, connect_to

        return PostgresqlDatabase(connect_to(store), content)
    return SqliteDatabase(store, content)


def open_locks(store: str, name: str) -> Locks:
    """Opens or creates the locks of that name in a store."""
    if is_shared(store):
        from sllmr.components.llm_scorer.store.leases import Leases
        from sllmr.components.llm_scorer.store.postgresql import connect_to

        return Leases(connect_to(store), name)
    return FileLocks(store, name)

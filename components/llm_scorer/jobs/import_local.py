"""Copies what cache_dir kept before `store` named a database into that database: nothing is paid for twice.

Before a command reads the store, it copies responses, receipts, batches that have ended, and reservations of runs that
have ended. A batch in flight or a run in progress stops the command instead, as two stores would work on the same one.
The files in cache_dir stay as they are.

A copy adds what is missing, so a killed copy, or two at a time, do no harm. The table `imports` of the database lists
the copied files by size and modification time: if a run without `store` changes them, they are copied again.
"""

import contextlib
import logging
import os
import time

from sllmr.components.llm_scorer.batch import state
from sllmr.components.llm_scorer.batch.state import UNDER_WAY, BatchState
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.requests import cache, ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.ledger import copy_reservations, reservations_by_run
from sllmr.components.llm_scorer.store.interface import Content, is_shared
from sllmr.components.llm_scorer.store.opening import open_database
from sllmr.components.llm_scorer.store.sqlite import file_errors

_IMPORTS = Content(
    file_name="",
    name="record of imports",
    if_damaged="",
    if_unusable="the responses in cache_dir stay there",
    is_receipt=True,
)
_PROGRESS_S = 10.0
_logger = logging.getLogger(__name__)


def import_local(cache_directory: str, store: str) -> None:
    """Copies what a folder keeps into a database, unless it was done or the store is the folder.

    Args:
        cache_directory: the folder; need not exist.
        store: of the command.

    Raises:
        LlmError: a batch of the folder is in flight, or a run in progress uses it; the message names the fix.
    """
    if not is_shared(store) or not _files(cache_directory):
        return
    with contextlib.closing(open_database(store, _IMPORTS)) as database:
        database.create("imports", ["CREATE TABLE IF NOT EXISTS imports (files TEXT PRIMARY KEY) WITHOUT ROWID"])

        def is_done() -> bool:
            return bool(database.execute("SELECT 1 FROM imports WHERE files = ?", (_files(cache_directory),)))

        if is_done():
            return
        _check_nothing_is_in_flight(cache_directory, store)
        # Closing the cache folds its write-ahead log into the file, before the file's time is recorded.
        ResponseCache(cache_directory).close()
        if is_done():
            return
        files = _files(cache_directory)
        _copy(cache_directory, store)
        database.execute("INSERT INTO imports VALUES (?) ON CONFLICT DO NOTHING", (files,))


def _files(directory: str) -> str:
    """The files that hold what was paid for, each with size and modification time; empty if there are none."""
    found = []
    with file_errors(directory):
        for name in (cache.FILE_NAME, state.FILE_NAME, ledger.FILE_NAME):
            for path in (os.path.join(os.path.realpath(directory), name + suffix) for suffix in ("", "-wal")):
                with contextlib.suppress(FileNotFoundError):
                    stat = os.stat(path)
                    if stat.st_size:
                        found.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return ", ".join(found)


def _check_nothing_is_in_flight(directory: str, store: str) -> None:
    if os.path.exists(os.path.join(directory, state.FILE_NAME)):
        with contextlib.closing(BatchState(directory)) as batches:
            in_flight = batches.batches(UNDER_WAY)
        if in_flight:
            names = ", ".join(f"{batch.batch_id or batch.name} at {batch.base_url}" for batch in in_flight)
            raise LlmError(
                f"store must not be set to {store} while {directory} has batches in flight, whose requests would be "
                f"paid for twice, got {len(in_flight)}: {names}; remove store, fetch them with sllmr batch or stop them"
                " with sllmr batch --cancel, then set store again"
            )
    if any(run.is_running for run in reservations_by_run(directory)):
        raise LlmError(
            f"store must not be set to {store} while a run has requests in flight that keeps its responses in "
            f"{directory}; wait for it or stop it, and run again"
        )


def _copy(directory: str, store: str) -> None:
    if os.path.exists(os.path.join(directory, state.FILE_NAME)):
        with contextlib.closing(BatchState(directory)) as old, contextlib.closing(BatchState(store)) as new:
            old.copy_to(new)
    copy_reservations(directory, store)
    copied, told_at = 0, time.monotonic()
    with (
        contextlib.closing(ResponseCache(directory)) as old_cache,
        contextlib.closing(ResponseCache(store)) as new_cache,
    ):
        for count in old_cache.copy_to(new_cache):
            copied += count
            if time.monotonic() - told_at > _PROGRESS_S:
                told_at = time.monotonic()
                _logger.info("llm: %s responses of %s copied to %s", f"{copied:,}", directory, store)
    _logger.info("llm: all %s responses of %s are in %s now", f"{copied:,}", directory, store)

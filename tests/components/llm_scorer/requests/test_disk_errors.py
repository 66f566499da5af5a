"""Files of the cache's folder that are damaged, read-only or on a full disk: every message has path, cause and cure."""

import errno
import fcntl
import os
import pathlib
import sqlite3
import threading
from collections.abc import Callable

import pytest

from sllmr.components.llm_scorer.batch.state import Batch, BatchState
from sllmr.components.llm_scorer.messages import CHAT
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.driver import Driver
from sllmr.components.llm_scorer.requests.in_flight import InFlight
from sllmr.components.llm_scorer.requests.ledger import RunLedger, unsettled_reservations
from sllmr.components.llm_scorer.requests.waiting import Waiter
from sllmr.components.llm_scorer.store import sqlite
from sllmr.components.llm_scorer.store.interface import CacheError


def write_response(directory: str) -> None:
    ResponseCache(directory).put("key" * 20, {"text": "x" * 9000})


def write_counters(directory: str) -> None:
    run = RunLedger(directory, "run")
    run.change((), lambda _: {f"counter {n} {'x' * 90}": n for n in range(200)})


def write_batch(directory: str) -> None:
    batch = Batch(name="b", base_url="u", kind=CHAT, requests=200, tokens=1, creation_begun_at=0.0)
    BatchState(directory).add(batch, [f"{n} {'x' * 90}" for n in range(200)])


STORES = pytest.mark.parametrize(
    ("name", "write", "if_damaged"),
    [
        ("responses.sqlite", write_response, "move it away"),
        ("runs.sqlite", write_counters, "delete it and run again .*no response is lost"),
        ("batches.sqlite", write_batch, "dashboard, then move the file away"),
    ],
)


@STORES
@pytest.mark.parametrize("garbage", [b"not a database" * 1000, b"\xff" * 100])
def test_a_file_of_garbage_is_named_with_what_is_lost(tmp_path, name, write, if_damaged, garbage):
    (tmp_path / name).write_bytes(garbage)
    with pytest.raises(CacheError, match=rf"{tmp_path}/{name} is damaged \(.*{if_damaged}"):
        write(str(tmp_path))


@STORES
def test_damage_behind_a_sound_header_is_named_too(tmp_path, name, write, if_damaged):
    write(str(tmp_path))
    path = tmp_path / name
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(len(path.read_bytes()) - 4096))
    with pytest.raises(CacheError, match=rf"{tmp_path}/{name} is damaged \(.*{if_damaged}"):
        write(str(tmp_path))


@STORES
def test_tables_that_are_not_ours_are_damage(tmp_path, name, write, if_damaged):
    with sqlite3.connect(tmp_path / name) as connection:
        for table in ("responses", "receipts", "counters", "reservations", "batches", "lines"):
            connection.execute(f"CREATE TABLE {table} (other INTEGER)")
    connection.close()
    with pytest.raises(CacheError, match=rf"{tmp_path}/{name} is damaged \(.*{if_damaged}"):
        write(str(tmp_path))


@STORES
@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        # Writes nothing beyond the pages that the file has: SQLite's own full disk.
        ("max_page_count = 1", r"cannot be used \(database or disk is full\): .*; free space on its disk"),
        ("query_only = ON", r"cannot be used \(attempt to write a readonly database\): .*; make the file .* writable"),
    ],
)
def test_a_full_or_read_only_disk_is_named_with_the_cure(
    tmp_path, monkeypatch, name, write, if_damaged, pragma, message
):
    connections: list[sqlite3.Connection] = []
    plain: Callable[..., sqlite3.Connection] = sqlite.connect
    write(str(tmp_path))

    def limited(*arguments, **options):
        connection = plain(*arguments, **options)
        connection.execute(f"PRAGMA {pragma}")
        connections.append(connection)
        return connection

    monkeypatch.setattr(sqlite, "connect", limited)
    other = {
        "responses.sqlite": lambda: ResponseCache(str(tmp_path)).put("other", {"text": "y" * 900_000}),
        "runs.sqlite": lambda: RunLedger(str(tmp_path), "other" * 200_000).add({"n": 1}),
        "batches.sqlite": lambda: BatchState(str(tmp_path)).add(
            Batch(name="o", base_url="u", kind=CHAT, requests=1, tokens=1, creation_begun_at=0.0), ["z" * 900_000]
        ),
    }
    with pytest.raises(CacheError, match=rf"{tmp_path}/{name} {message}"):
        other[name]()
    # No transaction stays open, and what was stored before is still read.
    assert not connections[-1].in_transaction
    monkeypatch.undo()
    if name == "responses.sqlite":
        assert ResponseCache(str(tmp_path)).get("key" * 20) is not None
        assert ResponseCache(str(tmp_path)).get("other") is None


def test_a_defect_of_the_program_is_not_blamed_on_the_file(tmp_path):
    write_batch(str(tmp_path))
    with pytest.raises(sqlite3.IntegrityError):
        write_batch(str(tmp_path))


def test_a_damaged_record_of_runs_stops_the_plan_too(tmp_path):
    (tmp_path / "runs.sqlite").write_bytes(b"garbage" * 1000)
    with pytest.raises(CacheError, match=r"runs\.sqlite is damaged"):
        unsettled_reservations(str(tmp_path))


def claim(directory: pathlib.Path) -> None:
    with InFlight(str(directory), Waiter(RunLedger(str(directory), "run"))).claim("ab" * 32, threading.Event()):
        pass


def drive(directory: pathlib.Path) -> None:
    with Driver(str(directory), "run").hold():
        pass


LOCKS = pytest.mark.parametrize(("name", "use"), [("in_flight.lock", claim), ("drivers.lock", drive)])


@LOCKS
def test_a_lock_that_is_no_file_is_named_and_one_of_garbage_works(tmp_path, name, use):
    (tmp_path / name).mkdir()
    with pytest.raises(CacheError, match=rf"the lock {tmp_path}/{name} must be a file.*delete it"):
        use(tmp_path)
    (tmp_path / name).rmdir()
    (tmp_path / name).write_bytes(os.urandom(1000))
    use(tmp_path)


@LOCKS
@pytest.mark.parametrize(
    ("number", "cure"), [(errno.ENOSPC, "free space on its disk"), (errno.EROFS, "make the file and its folder")]
)
def test_a_lock_on_a_full_or_read_only_disk_is_named_with_the_cure(tmp_path, monkeypatch, name, use, number, cure):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CacheError, match=rf"{tmp_path}/{name} cannot be used \({os.strerror(number)}\); {cure}"):
        use(tmp_path)


@LOCKS
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ESTALE])
def test_a_file_system_without_locks_is_named_with_the_cure(tmp_path, monkeypatch, name, use, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        CacheError, match=rf"{tmp_path}/{name} cannot be locked \({os.strerror(number)}\); use a folder"
    ):
        use(tmp_path)


def test_a_cache_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for use in (write_response, write_counters, write_batch):
        with pytest.raises(CacheError, match=rf"{tmp_path}/file/cache cannot be used \(Not a directory\)"):
            use(str(tmp_path / "file" / "cache"))

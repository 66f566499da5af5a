import concurrent.futures
import dataclasses
import hashlib
import multiprocessing
import sqlite3

import pytest

from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import CHAT, LlmRequest
from sllmr.components.llm_scorer.requests.cache import FILE_NAME, ResponseCache
from sllmr.components.llm_scorer.store.interface import CacheError

REQUEST = LlmRequest(
    kind=CHAT,
    model="m",
    prompt_version="p.v1-1",
    body={"messages": [{"content": "é"}], "seed": 1},
    max_tokens=9,
    expected_tokens=5,
)


def test_the_order_of_fields_does_not_change_a_requests_key():
    same = dataclasses.replace(REQUEST, body=dict(reversed(REQUEST.body.items())))
    assert same.key == REQUEST.key


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"kind": "forced_completion"},
        {"prompt_version": "p.v1-2"},
        {"body": {"messages": [{"content": "é"}], "seed": 2}},
        {"max_tokens": 8},
    ],
)
def test_whatever_can_change_the_answer_changes_the_key(change):
    assert dataclasses.replace(REQUEST, **change).key != REQUEST.key


def test_a_response_outlives_the_process_that_stored_it(store):
    stored_at = ResponseCache(store).put("key", {"text": "ü"})
    assert ResponseCache(store).get("key") == ({"text": "ü"}, stored_at)
    assert ResponseCache(store).get("other") is None


@pytest.mark.parametrize(
    "column",
    [
        'value = \'{"text": "forged"}\'',
        "value = CAST(x'ff' AS TEXT)",
        "value = x'00ff'",
        "value = 7",
        "value = ''",
        "answered_at = 1",
        "answered_at = CAST(x'ff' AS TEXT)",
        "answered_at = 1e300",
        "checksum = ''",
        "checksum = CAST(x'ff' AS TEXT)",
        "checksum = x'ff'",
    ],
)
def test_a_corrupt_entry_is_counted_and_not_believed(tmp_path, column):
    cache = ResponseCache(str(tmp_path))
    cache.put("key", {"text": "true"})
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute(f"UPDATE responses SET {column}")
    assert cache.get("key") is None
    assert cache.take_corrupt() == 1
    cache.put("key", {"text": "asked again"})
    found = cache.get("key")
    assert found is not None
    assert found[0] == {"text": "asked again"}
    assert cache.take_corrupt() == 0


@pytest.mark.parametrize("value", ["[1]", "null", "[" * 100_000, "{"])
def test_an_entry_that_is_no_json_object_is_corrupt_even_with_its_checksum(tmp_path, value):
    cache = ResponseCache(str(tmp_path))
    cache.put("key", {"text": "true"})
    checksum = hashlib.sha256(f"key\n{value}\n5".encode()).hexdigest()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE responses SET value = ?, checksum = ?, answered_at = 5", (value, checksum))
    assert cache.get("key") is None
    assert cache.take_corrupt() == 1


def test_a_corrupt_receipt_is_left_out(tmp_path):
    cache = ResponseCache(str(tmp_path))
    cache.add_receipts([("key", {"n": 1}), ("key", {"n": 2})], 5)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE receipts SET value = CAST(x'ff' AS TEXT) WHERE value LIKE '%1%'")
    assert cache.receipts("key") == [{"n": 2}]
    assert cache.receipt_keys() == {"key"}


def test_a_response_with_a_lone_surrogate_is_stored(store):
    ResponseCache(store).put("key", {"text": "\ud800"})
    found = ResponseCache(store).get("key")
    assert found is not None
    assert found[0] == {"text": "\ud800"}


def test_an_entry_that_is_looked_up_twice_is_corrupt_once(tmp_path):
    cache = ResponseCache(str(tmp_path))
    cache.put("key", {"text": "true"})
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE responses SET checksum = ''")
    assert cache.get("key") is cache.get("key") is None
    assert cache.take_corrupt() == 1


def test_a_commit_reaches_the_disk_before_the_answer_is_used(tmp_path):
    traced: list[str] = []
    cache = ResponseCache(str(tmp_path))
    connection = cache._database._connection()
    connection.set_trace_callback(traced.append)
    cache.put("key", {"text": "paid for"})
    # A statement outside of a transaction commits itself; SQLite traces it once more for the trigger.
    (statement,) = set(traced)
    assert statement.startswith("INSERT")
    assert not connection.in_transaction
    # 2 is FULL: the write-ahead log is synchronised at each commit.
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_threads_that_store_at_the_same_moment_share_a_commit(tmp_path):
    cache = ResponseCache(str(tmp_path))
    cache.put("first", {})
    blocker = sqlite3.connect(tmp_path / FILE_NAME)
    blocker.execute("BEGIN IMMEDIATE")
    commits: list[str] = []

    def store(n: int) -> None:
        cache._database._connection().set_trace_callback(
            lambda sql: commits.append(sql) if sql.startswith("INSERT") else None
        )
        cache.put(f"key {n}", {"n": n})

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        stored = [pool.submit(store, 0)]
        while cache._pending or not cache._commit_lock.locked():
            assert not stored[0].done()
        # One waits for the blocker, and the other 19 will for that one.
        stored += [pool.submit(store, n) for n in range(1, 20)]
        while len(cache._pending) < 19:
            assert not stored[0].done()
        blocker.rollback()
    assert [future.result() for future in stored] == [None] * 20
    # SQLite traces a statement once more for each row's trigger.
    assert len(set(commits)) == 2
    for n in range(20):
        assert cache.get(f"key {n}") is not None
    blocker.close()


def test_one_that_cannot_store_leaves_the_others_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("sllmr.components.llm_scorer.store.sqlite.BUSY_TIMEOUT_S", 0.3)
    cache = ResponseCache(str(tmp_path))
    blocker = sqlite3.connect(tmp_path / FILE_NAME)
    blocker.execute("BEGIN IMMEDIATE")
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        stored = [pool.submit(cache.put, f"key {n}", {"n": n}) for n in range(5)]
        failed = next(concurrent.futures.as_completed(stored))
        blocker.rollback()
    with pytest.raises(CacheError, match=r"responses\.sqlite cannot be used \(database is locked\)"):
        failed.result()
    for n, future in enumerate(stored):
        assert (cache.get(f"key {n}") is None) == (future.exception() is not None)
    blocker.close()


def test_a_file_that_is_no_store_is_named_with_what_to_do(tmp_path):
    (tmp_path / "responses.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(LlmError, match=r"responses\.sqlite is damaged .*move it away"):
        ResponseCache(str(tmp_path))


def _store(directory: str, worker: int) -> None:
    cache = ResponseCache(directory)
    for n in range(50):
        cache.put(f"{worker}-{n}", {"n": n})
        cache.put("shared", {"worker": worker})


@pytest.mark.slow
def test_processes_store_side_by_side_and_lose_nothing(store):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=spawn) as pool:
        list(pool.map(_store, [store] * 3, range(3)))
    cache = ResponseCache(store)
    for worker in range(3):
        for n in range(50):
            found = cache.get(f"{worker}-{n}")
            assert found is not None
            assert found[0] == {"n": n}
    assert cache.get("shared") is not None


@pytest.mark.parametrize("column", ["value", "checksum", "answered_at"])
@pytest.mark.parametrize("damage", [b"\xff\xfe", b"", b"\x00", b"{}", "é", 7, 2**62, 0.5])
def test_an_entry_with_any_damage_is_counted_and_absent_and_the_others_are_read(tmp_path, column, damage):
    cache = ResponseCache(str(tmp_path))
    cache.put("bad", {"n": 1})
    cache.put("good", {"n": 2})
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        # A damaged page keeps the declared type: SQLite hands the bytes out as text.
        damaged = "CAST(? AS TEXT)" if isinstance(damage, bytes) else "?"
        connection.execute(f"UPDATE responses SET {column} = {damaged} WHERE key = 'bad'", (damage,))
    assert cache.get("bad") is None
    assert cache.take_corrupt() == 1
    assert cache.get("good")[0] == {"n": 2}

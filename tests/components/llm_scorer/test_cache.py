import concurrent.futures
import dataclasses
import multiprocessing
import sqlite3

import pytest

from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import LlmError
from components.llm_scorer.exchange import CHAT, LlmRequest

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


def test_a_response_outlives_the_process_that_stored_it(tmp_path):
    stored_at = ResponseCache(str(tmp_path)).put("key", {"text": "ü"})
    assert ResponseCache(str(tmp_path)).get("key") == ({"text": "ü"}, stored_at)
    assert ResponseCache(str(tmp_path)).get("other") is None


@pytest.mark.parametrize("column", ['value = \'{"text": "forged"}\'', "answered_at = 1", "checksum = ''"])
def test_a_corrupt_entry_is_counted_and_not_believed(tmp_path, column):
    cache = ResponseCache(str(tmp_path))
    cache.put("key", {"text": "true"})
    with sqlite3.connect(cache.path) as connection:
        connection.execute(f"UPDATE responses SET {column}")
    assert cache.get("key") is None
    assert cache.take_corrupt() == 1
    cache.put("key", {"text": "asked again"})
    found = cache.get("key")
    assert found is not None
    assert found[0] == {"text": "asked again"}
    assert cache.take_corrupt() == 0


def test_a_file_that_is_no_store_is_named_with_what_to_do(tmp_path):
    (tmp_path / "responses.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(LlmError, match=r"responses\.sqlite is damaged .*move it away"):
        ResponseCache(str(tmp_path))


def _store(directory: str, worker: int) -> None:
    cache = ResponseCache(directory)
    for n in range(50):
        cache.put(f"{worker}-{n}", {"n": n})
        cache.put("shared", {"worker": worker})


def test_processes_store_side_by_side_and_lose_nothing(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=spawn) as pool:
        list(pool.map(_store, [str(tmp_path)] * 3, range(3)))
    cache = ResponseCache(str(tmp_path))
    for worker in range(3):
        for n in range(50):
            found = cache.get(f"{worker}-{n}")
            assert found is not None
            assert found[0] == {"n": n}
    assert cache.get("shared") is not None

import concurrent.futures
import multiprocessing
import os
import signal
import threading

import pytest

from sllmr.components.llm_scorer.requests.in_flight import InFlight
from sllmr.components.llm_scorer.requests.ledger import RunEnded, RunLedger
from sllmr.components.llm_scorer.requests.waiting import Waiter

KEY = "ab" * 32
OTHER = "cd" * 32


def in_flight(store: str, run: str = "run") -> InFlight:
    return InFlight(store, Waiter(RunLedger(store, run)))


def test_one_key_is_held_by_one_thread_at_a_time_and_other_keys_by_others(store):
    claims, running, most = in_flight(store), [0, 0], [0, 0]

    def call(n: int) -> None:
        with claims.claim((KEY, OTHER)[n % 2], threading.Event()):
            running[n % 2] += 1
            most[n % 2] = max(most[n % 2], running[n % 2])
            both.wait()
            running[n % 2] -= 1

    # Both keys at once, or this barrier would break.
    both = threading.Barrier(2, timeout=30)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert most == [1, 1]


def _hold(directory: str, held, go) -> None:
    with in_flight(directory).claim(KEY, threading.Event()):
        held.set()
        go.wait()


def _is_free(directory) -> bool:
    stop = threading.Event()
    stop.set()
    try:
        with in_flight(directory).claim(KEY, stop):
            return True
    except RunEnded:
        return False


@pytest.mark.slow
def test_another_process_respects_a_claim_and_a_killed_one_holds_none(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    held, go = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(str(tmp_path), held, go))
    process.start()
    assert held.wait(60)
    assert not _is_free(str(tmp_path))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert _is_free(str(tmp_path))


def test_two_sessions_of_one_process_respect_each_other(store):
    with in_flight(store, "one").claim(KEY, threading.Event()):
        assert not _is_free(store)
    assert _is_free(store)


def test_the_end_of_the_run_ends_the_wait(store):
    RunLedger(store, "run").end()
    holder = in_flight(store, "another run")
    with (
        holder.claim(KEY, threading.Event()),
        pytest.raises(RunEnded),
        in_flight(store).claim(KEY, threading.Event()),
    ):
        pass

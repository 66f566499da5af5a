import concurrent.futures
import threading
import time

import pytest

from sllmr.components.llm_scorer.requests.congestion import THROTTLED, CongestionWindow, fewest_in_flight, places_now
from sllmr.components.llm_scorer.requests.ledger import RunEnded, RunLedger
from sllmr.components.llm_scorer.requests.progress import progress_line
from sllmr.components.llm_scorer.requests.waiting import Waiter
from tests.components.llm_scorer.requests.test_handler import config, contexts, reasons, session
from tests.components.llm_scorer.requests.test_rate_limit import Clock
from tests.components.llm_scorer.stub_server import StubHandler, chat_response, failing, scores_of


def window(directory, clock: Clock, concurrency: int = 16) -> CongestionWindow:
    run = RunLedger(str(directory), "run")
    return CongestionWindow(run, concurrency, Waiter(run, clock=clock, wait=clock.wait))


def places(directory, concurrency: int = 16) -> int:
    return places_now(RunLedger(str(directory), "run").totals(), concurrency)


def answer(calls: CongestionWindow, count: int) -> None:
    for _ in range(count):
        calls._run.add(calls.growth())


def test_each_push_back_of_a_later_call_halves_the_places_down_to_one(tmp_path):
    clock = Clock()
    calls, seen = window(tmp_path, clock), []
    for _ in range(6):
        clock.now += 1
        calls.push_back(clock.now, None)
        seen.append(places(tmp_path))
        clock.now += 1
    assert seen == [8, 4, 2, 1, 1, 1]


def test_calls_that_were_under_way_at_a_cut_cut_nothing_more(tmp_path):
    clock = Clock()
    calls = window(tmp_path, clock)
    sent_at = clock.now
    clock.now += 1
    for _ in range(10):
        calls.push_back(sent_at, None)
    assert places(tmp_path) == 8
    assert RunLedger(str(tmp_path), "run").totals()[THROTTLED] == 10


def test_places_come_back_one_for_each_round_of_answers_and_never_above_the_concurrency(tmp_path):
    clock = Clock()
    calls = window(tmp_path, clock)
    clock.now += 1
    for _ in range(2):
        clock.now += 1
        calls.push_back(clock.now, None)
    for expected in range(4, 16):
        assert places(tmp_path) == expected
        # One more than a round, as thousandths of a place are rounded down.
        answer(calls, expected + 1)
    answer(calls, 100)
    assert places(tmp_path) == 16
    assert fewest_in_flight(RunLedger(str(tmp_path), "run").totals(), 16) == 4


def test_what_one_worker_is_told_holds_for_the_others(tmp_path):
    clock = Clock()
    one, other = window(tmp_path, clock), window(tmp_path, clock)
    one.push_back(clock.now + 1, 30)
    assert places(tmp_path) == 8
    before = clock.now
    other.wait_while_held(threading.Event())
    assert clock.now - before == pytest.approx(30, abs=1e-3)


def test_the_longest_wait_that_was_asked_for_holds(tmp_path):
    clock = Clock()
    calls = window(tmp_path, clock)
    before = clock.now
    calls.push_back(clock.now, 30)
    calls.push_back(clock.now, 5)
    calls.wait_while_held(threading.Event())
    assert clock.now - before == pytest.approx(30, abs=1e-3)


def test_no_more_calls_are_under_way_than_there_are_places(tmp_path):
    calls = window(tmp_path, Clock(), concurrency=6)
    calls.push_back(time.time() + 1e9, None)
    lock, in_flight, most = threading.Lock(), 0, 0

    def call(_: int) -> None:
        nonlocal in_flight, most
        with calls.place(threading.Event()):
            with lock:
                in_flight += 1
                most = max(most, in_flight)
            three.wait()
            with lock:
                in_flight -= 1

    # All three places are taken at once, or this barrier would break.
    three = threading.Barrier(3, timeout=30)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(call, range(9)))
    assert most == 3


def test_the_end_of_the_run_ends_the_wait_for_a_place(tmp_path):
    calls = window(tmp_path, Clock(), concurrency=1)
    with calls.place(threading.Event()):
        RunLedger(str(tmp_path), "run").end()
        with pytest.raises(RunEnded), calls.place(threading.Event()):
            pass


@pytest.mark.slow
def test_a_server_that_bears_four_calls_at_once_gets_no_more_for_long_and_every_call_its_answer(stub, tmp_path):
    bears, lock, in_flight = 4, threading.Lock(), 0
    refused: list[int] = []
    given: list[int] = []

    def crowded(handler: StubHandler, body) -> None:
        nonlocal in_flight
        with lock:
            in_flight += 1
            too_many = in_flight > bears
        # Long enough for calls to overlap.
        time.sleep(0.02)
        with lock:
            (refused if too_many else given).append(len(given))
            in_flight -= 1
        if too_many:
            failing(429, {"message": "busy"}, {"retry-after-ms": "30"})(handler, body)
        else:
            handler.send_json(200, chat_response(scores_of(body)))

    stub.always = crowded
    settings = config(stub, concurrency=32, max_retries=8)
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(200))
    assert reasons(answered) == {"": 200}
    totals = RunLedger(str(tmp_path), "run").totals()
    assert totals[THROTTLED] == len(refused)
    assert fewest_in_flight(totals, 32) <= bears
    # Most of the refusals are of the first rounds, before the places had come down.
    late = [n for n in refused if n > 100]
    assert len(late) < len(given) / 2


def test_the_live_line_tells_of_push_back_and_of_the_places_left(tmp_path):
    clock = Clock()
    window(tmp_path, clock).push_back(clock.now + 1, None)
    line = progress_line(RunLedger(str(tmp_path), "run").totals(), pairs=10, to_send=5, concurrency=16, seconds=1)
    assert line.endswith(", throttled 1 times: 8 of 16 in flight")
    assert "pushed back" not in progress_line({}, pairs=10, to_send=5, concurrency=16, seconds=1)

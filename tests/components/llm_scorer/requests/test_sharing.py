"""Runs in progress that share a budget and limits, on one machine and on several."""

import concurrent.futures
import contextlib
import itertools
import threading

import pytest

from sllmr.components.llm_scorer.config import Limits, LlmConfig
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.ledger import BUDGET, NO_ROOM, NO_ROOM_YET, ROOM, RunLedger
from sllmr.components.llm_scorer.requests.rate_limit import REQUESTS, RateLimiter
from sllmr.components.llm_scorer.requests.sharing import share_run
from sllmr.components.llm_scorer.requests.waiting import Waiter
from tests.components.llm_scorer.requests.test_handler import config, contexts, reasons, session
from tests.components.llm_scorer.requests.test_rate_limit import Clock

CAPS = {ledger.RESERVED_NANO_USD: 1000}


def usd(amount: int) -> dict[str, int]:
    return {ledger.RESERVED_NANO_USD: amount}


@contextlib.contextmanager
def running(store: str, run_id: str, *, plan: str = "plan"):
    run = RunLedger(store, run_id)
    with run.driven():
        run.share(BUDGET, plan)
        yield run
        run.forget()


def test_runs_of_one_plan_spend_one_budget_and_that_of_another_has_its_own(store):
    with running(store, "one") as one, running(store, "two") as two, running(store, "three", plan="other") as other:
        one.spent_before(100, 0)
        # The same, as the second run finds it.
        two.spent_before(100, 0)
        assert one.reserve("a", usd(500), CAPS) == ROOM
        one.settle("a", usd(500), {ledger.NANO_USD: 300})
        assert two.reserve("b", usd(600), CAPS) == ROOM
        # 100, 300 and 600 make a thousand.
        assert one.reserve("c", usd(1), CAPS) == NO_ROOM_YET
        assert other.reserve("c", usd(1000), CAPS) == ROOM
        assert one.totals()[ledger.NANO_USD] == 300
        assert ledger.NANO_USD not in two.totals()


def test_what_another_run_spent_before_and_has_not_counted_is_counted(store):
    with running(store, "one") as one, running(store, "two") as two:
        one.spent_before(100, 0)
        two.spent_before(400, 0)
        assert one.reserve("a", usd(601), CAPS) == NO_ROOM
        assert one.reserve("a", usd(600), CAPS) == ROOM


def test_a_worker_of_another_process_counts_with_its_run(store):
    with running(store, "one"), running(store, "two") as two:
        worker = RunLedger(store, "one")
        assert worker.reserve("a", usd(700), CAPS) == ROOM
        assert two.reserve("b", usd(301), CAPS) == NO_ROOM_YET


def test_nobody_waits_for_requests_of_a_run_that_has_ended_and_their_money_stays_reserved(store):
    with running(store, "one") as one:
        with contextlib.suppress(KeyboardInterrupt), running(store, "killed") as killed:
            assert killed.reserve("a", usd(700), CAPS) == ROOM
            raise KeyboardInterrupt
        assert one.reserve("b", usd(301), CAPS) == NO_ROOM
        assert one.reserve("b", usd(300), CAPS) == ROOM


def test_once_no_run_is_in_progress_the_next_one_counts_afresh(store):
    with contextlib.suppress(KeyboardInterrupt), running(store, "killed") as killed:
        assert killed.reserve("a", usd(700), CAPS) == ROOM
        raise KeyboardInterrupt
    # What the killed one reserved is found among the reservations, unless they are released.
    assert [run.nano_usd for run in ledger.release_reservations(store)] == [700]
    with running(store, "next") as following:
        assert following.reserve("b", usd(1000), CAPS) == ROOM


def test_a_run_that_ends_leaves_the_others_what_it_spent(store):
    with running(store, "one") as one:
        with running(store, "two") as two:
            assert two.reserve("a", usd(900), CAPS) == ROOM
            two.settle("a", usd(900), {ledger.NANO_USD: 800})
        assert one.reserve("b", usd(201), CAPS) == NO_ROOM
        assert one.reserve("b", usd(200), CAPS) == ROOM


def test_nothing_of_runs_that_ended_stays(store):
    with running(store, "one") as one, running(store, "two") as two:
        one.add({"n": 1, ledger.NANO_USD: 4})
        two.reserve("a", usd(9), {})
        two.settle("a", usd(9), {ledger.NANO_USD: 8})
    for table in ("counters", "notes", "sharing", "reservations"):
        assert RunLedger(store, "")._database.execute(f"SELECT * FROM {table}") == []


def test_threads_of_several_runs_cannot_reserve_more_than_the_cap_together(store):
    with running(store, "one") as one, running(store, "two") as two:
        found: list[str] = []

        def spend(run: RunLedger, first: int) -> None:
            for n in range(first, first + 20):
                found.append(run.reserve(f"{n}", usd(30), CAPS))
                if n % 2 and found[-1] == ROOM:
                    run.settle(f"{n}", usd(30), {ledger.NANO_USD: 25})

        threads = [threading.Thread(target=spend, args=(run, first)) for run in (one, two) for first in (0, 20, 40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        totals = [run.totals() for run in (one, two)]
        spent = sum(t.get(ledger.NANO_USD, 0) + t.get(ledger.RESERVED_NANO_USD, 0) for t in totals)
        assert 1000 - 30 < spent <= 1000
        assert found.count(ROOM) > 1000 // 30


def test_runs_that_query_one_model_share_its_limits_and_another_model_has_its_own(store):
    clock = Clock()
    one = LlmConfig(base_url="https://host/v1", model="m").resolve()
    other = LlmConfig(base_url="https://host/v1", model="other").resolve()
    with contextlib.ExitStack() as stack:
        limiters = []
        for run_id, of in (("one", one), ("two", one), ("three", other)):
            run = RunLedger(store, run_id)
            stack.enter_context(run.driven())
            share_run(run, of, "v1", [run_id])
            waiter = Waiter(run, clock=clock, wait=clock.wait)
            limiters.append(RateLimiter(Limits(requests_per_minute=60), run, waiter))

        def waited(limiter: RateLimiter) -> float:
            before = clock.now
            limiter.acquire(1, threading.Event())
            return clock.now - before

        assert [waited(limiters[n]) for n in (0, 1, 2, 0)] == pytest.approx([0, 1, 0, 1], abs=1e-3)


def test_the_order_of_a_plan_does_not_matter_and_its_parts_do(tmp_path):
    chosen = LlmConfig(base_url="https://host/v1", model="m").resolve()
    numbers = itertools.count()

    def budget(settings: LlmConfig, *parts: str) -> str:
        run = RunLedger(str(tmp_path), f"{next(numbers)}")
        with run.driven():
            share_run(run, settings, "v1", parts)
            return run.note(BUDGET)

    same = {budget(chosen, "a", "b"), budget(chosen, "b", "a")}
    others = {budget(chosen, "a"), budget(chosen, "a", "c"), budget(chosen.model_copy(update={"model": "n"}), "a", "b")}
    assert (len(same), len(others)) == (1, 3)
    assert not same & others


def test_threads_that_wait_take_few_turns_beforehand_so_that_a_killed_worker_holds_nobody_up(tmp_path):
    clock = Clock()
    run = RunLedger(str(tmp_path), "run")
    # Time does not pass.
    waiter = Waiter(run, clock=clock, wait=lambda stop, seconds: stop.wait(0.01))
    limited, stop = RateLimiter(Limits(requests_per_minute=60), run, waiter), threading.Event()

    def acquire() -> None:
        with contextlib.suppress(ledger.RunEnded):
            limited.acquire(1, stop)

    threads = [threading.Thread(target=acquire) for _ in range(20)]
    for thread in threads:
        thread.start()
    while run.totals().get(REQUESTS, 0) < (clock.now + 3) * 1e6:
        assert any(thread.is_alive() for thread in threads)
    stop.set()
    for thread in threads:
        thread.join()
    # One is let through, one waits for its turn of the next second, and one for that of the second after.
    assert run.totals()[REQUESTS] == (clock.now + 3) * 1e6


@pytest.mark.slow
def test_two_runs_of_one_plan_at_the_same_time_send_each_request_once(stub, store):
    settings = config(stub, concurrency=4)
    asking = [session(settings, stub.base_url, store, run_id) for run_id in ("one", "two")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answered = list(pool.map(lambda scoring: scoring.score_all(contexts(20)), asking))
    assert [reasons(found) for found in answered] == [{"": 20}] * 2
    assert len(stub.received) == 20

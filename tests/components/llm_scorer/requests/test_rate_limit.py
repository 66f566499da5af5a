import threading
import time

import pytest

from sllmr.components.llm_scorer.config import Limits
from sllmr.components.llm_scorer.endpoint.tokens import expected_usage
from sllmr.components.llm_scorer.requests import handler
from sllmr.components.llm_scorer.requests.ledger import SIGNAL_AGE_S, RunEnded, RunLedger
from sllmr.components.llm_scorer.requests.rate_limit import REQUESTS, RateLimiter
from sllmr.components.llm_scorer.requests.waiting import Waiter
from tests.components.llm_scorer.requests.test_handler import config, contexts, reasons, session


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.now += seconds
        return stop.is_set()


def limiter(directory, clock: Clock, **limits) -> RateLimiter:
    run = RunLedger(str(directory), "run")
    return RateLimiter(Limits(**limits), run, Waiter(run, clock=clock, wait=clock.wait))


def starts(limiter: RateLimiter, clock: Clock, tokens: list[int]) -> list[float]:
    first = clock.now
    result = []
    for count in tokens:
        limiter.acquire(count, threading.Event())
        result.append(clock.now - first)
    return result


def test_calls_are_spread_evenly_over_the_minute(tmp_path):
    clock = Clock()
    # 30 a minute: one in two seconds.
    limited = limiter(tmp_path, clock, requests_per_minute=30)
    assert starts(limited, clock, [5, 500, 5, 5]) == pytest.approx([0, 2, 4, 6], abs=1e-3)


def test_a_call_takes_up_as_much_time_as_its_tokens(tmp_path):
    clock = Clock()
    # 600 a minute: ten a second.
    limited = limiter(tmp_path, clock, tokens_per_minute=600)
    assert starts(limited, clock, [50, 10, 100, 1]) == pytest.approx([0, 5, 6, 16], abs=1e-3)


def test_the_tighter_of_both_limits_holds(tmp_path):
    clock = Clock()
    limited = limiter(tmp_path, clock, requests_per_minute=60, tokens_per_minute=600)
    assert starts(limited, clock, [1, 1, 50, 1]) == pytest.approx([0, 1, 2, 7], abs=1e-3)


def test_what_a_call_really_used_is_put_right(tmp_path):
    clock = Clock()
    limited = limiter(tmp_path, clock, tokens_per_minute=600)
    limited.acquire(100, threading.Event())
    limited.correct(100, 20)
    before = clock.now
    limited.acquire(1, threading.Event())
    assert clock.now - before == pytest.approx(2, abs=1e-3)


def test_two_workers_share_one_limit(store):
    clock = Clock()
    workers = [limiter(store, clock, requests_per_minute=60) for _ in range(2)]
    begun = [starts(workers[n % 2], clock, [1])[0] for n in range(4)]
    assert begun == pytest.approx([0, 1, 1, 1], abs=1e-3)


def test_time_that_passed_unused_is_not_saved_up(tmp_path):
    clock = Clock()
    limited = limiter(tmp_path, clock, requests_per_minute=60)
    limited.acquire(1, threading.Event())
    clock.now += 3600
    assert starts(limited, clock, [1, 1, 1]) == pytest.approx([0, 1, 2], abs=1e-3)


def test_without_limits_nobody_waits(tmp_path):
    clock = Clock()
    assert starts(limiter(tmp_path, clock), clock, [10**9] * 3) == [0, 0, 0]


def test_the_end_of_the_run_ends_the_wait(tmp_path):
    clock = Clock()
    limited = limiter(tmp_path, clock, requests_per_minute=1)
    limited.acquire(1, threading.Event())
    stop = threading.Event()
    stop.set()
    with pytest.raises(RunEnded):
        limited.acquire(1, stop)
    RunLedger(str(tmp_path), "run").end()
    time.sleep(2 * SIGNAL_AGE_S)
    with pytest.raises(RunEnded):
        limited.acquire(1, threading.Event())


def test_all_threads_of_a_worker_keep_to_the_limit(stub, tmp_path):
    # 1,200 a minute are one in 50 ms: ten calls take up half a second, whatever the threads do.
    settings = config(stub, concurrency=8, limits={"requests_per_minute": 1200})
    before = time.monotonic()
    answered = session(settings, stub.base_url, str(tmp_path)).score_all(contexts(10))
    assert reasons(answered) == {"": 10}
    totals = RunLedger(str(tmp_path), "run").totals()
    assert totals[REQUESTS] >= before * 1e6 + 10 * 50_000


@pytest.mark.parametrize(("limits", "counted"), [({"requests_per_minute": 6000}, 0), ({"tokens_per_minute": 10**6}, 3)])
def test_tokens_are_counted_before_a_call_only_if_a_limit_takes_them(stub, tmp_path, monkeypatch, limits, counted):
    texts = []

    def expected(request, config):
        texts.append(request)
        return expected_usage(request, config)

    monkeypatch.setattr(handler, "expected_usage", expected)
    answered = session(config(stub, limits=limits), stub.base_url, str(tmp_path)).score_all(contexts(3))
    assert reasons(answered) == {"": 3}
    assert len(texts) == counted


def test_a_clock_that_is_set_back_does_not_lengthen_a_wait(tmp_path, monkeypatch):
    run = RunLedger(str(tmp_path), "run")
    limited = RateLimiter(Limits(requests_per_minute=600), run, Waiter(run))
    limited.acquire(1, threading.Event())
    started = time.monotonic()
    hour_ago = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: hour_ago)
    limited.acquire(1, threading.Event())
    assert time.monotonic() - started < 5

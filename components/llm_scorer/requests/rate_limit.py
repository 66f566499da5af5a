"""Requests and tokens a minute, for all threads and worker processes that share the store together."""

import threading

from sllmr.components.llm_scorer.config import Limits
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.requests.waiting import Waiter

REQUESTS = "limit_requests_free_at_us"
TOKENS = "limit_tokens_free_at_us"
_MINUTE_US = 60_000_000
_AHEAD_S = 1.0
"""Seconds for which a worker takes turns ahead; few, as turns of a killed worker go unused while others wait."""

_POLL_S = 1.0


class RateLimiter:
    """A leaky bucket for each limit: a call of n units takes up n / limit minutes of it, and starts when the calls
    before it have passed. No burst: at no time have more units been let through than the limit allows until then, one
    call aside.

    Beam's own limiter for remote inference asks an Envoy service and counts batches; endpoints count calls and tokens.
    """

    def __init__(self, limits: Limits, run: RunLedger, waiter: Waiter):
        """
        Args:
            limits: None is no limit.
            run: holds the buckets, where all workers see them.
        """
        self._limits = limits
        self._run = run
        self._waiter = waiter
        self._next = threading.Lock()

    def acquire(self, tokens: int, stop: threading.Event) -> None:
        """Waits until a call of so many tokens may be sent.

        Raises:
            RunEnded: the run ended while this call waited.
        """
        durations = {
            name: round(units * _MINUTE_US / limit)
            for name, limit, units in (
                (REQUESTS, self._limits.requests_per_minute, 1),
                (TOKENS, self._limits.tokens_per_minute, tokens),
            )
            if limit is not None
        }
        if not durations:
            return
        # One thread at a time looks for a turn.
        while not self._next.acquire(timeout=_POLL_S):
            self._waiter.check(stop)
        try:
            self._waiter.check(stop)
            start = self._run.take_turn(durations, round(self._waiter.clock() * 1e6)) / 1e6
            self._waiter.until(start - _AHEAD_S, stop)
        finally:
            self._next.release()
        self._waiter.until(start, stop)

    def correct(self, expected_tokens: int, tokens: int) -> None:
        """Gives back, or takes, what a call used less or more than expected."""
        if self._limits.tokens_per_minute is not None and tokens != expected_tokens:
            difference = (tokens - expected_tokens) * _MINUTE_US
            self._run.move_turns(TOKENS, round(difference / self._limits.tokens_per_minute))

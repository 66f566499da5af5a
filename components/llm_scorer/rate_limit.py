"""Requests and tokens a minute, for all threads and worker processes of a machine together."""

import threading
import time
from collections.abc import Callable

from components.llm_scorer.config import Limits
from components.llm_scorer.ledger import RunLedger

REQUESTS = "limit_requests_free_at_us"
TOKENS = "limit_tokens_free_at_us"
_POLL_S = 1.0
_MINUTE_US = 60_000_000


class RateLimiter:
    """A leaky bucket for each limit: a call of n units takes up n / limit minutes of it, and starts when the calls
    before it have passed. No burst: at no time have more units been let through than the limit allows until then, one
    call aside.

    Beam's own limiter for remote inference asks an Envoy service and counts batches; endpoints count calls and tokens.
    """

    def __init__(
        self,
        limits: Limits,
        run: RunLedger,
        *,
        clock: Callable[[], float] = time.time,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ):
        """
        Args:
            limits: None is no limit.
            run: holds the buckets, where all workers see them.
            clock: Unix seconds, the same in all processes.
            wait: waits for the event so many seconds at most; tells whether it came.
        """
        self._limits = limits
        self._run = run
        self._clock = clock
        self._wait = wait

    def acquire(self, tokens: int, stop: threading.Event) -> bool:
        """Waits until a call of so many tokens may be sent.

        Returns:
            False where the run ended while it waited.
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
            return True
        start = self._run.take_turn(durations, round(self._clock() * 1e6))
        # In short waits: another process may have met the end of the run.
        while (left := start / 1e6 - self._clock()) > 0:
            if self._wait(stop, min(left, _POLL_S)) or self._run.is_ended():
                return False
        return True

    def correct(self, expected_tokens: int, tokens: int) -> None:
        """Gives back, or takes, what a call used less or more than expected."""
        if self._limits.tokens_per_minute is not None and tokens != expected_tokens:
            difference = (tokens - expected_tokens) * _MINUTE_US
            self._run.add({TOKENS: round(difference / self._limits.tokens_per_minute)})

"""Waiting that ends with the run."""

import threading
from collections.abc import Callable

from sllmr.components.llm_scorer.requests.ledger import RunEnded, RunLedger

_POLL_S = 1.0


class Waiter:
    """Waits in pieces: another thread, or another process, may meet the end of the run."""

    def __init__(
        self,
        run: RunLedger,
        *,
        clock: Callable[[], float] | None = None,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ):
        """
        Args:
            run: knows whether it has ended.
            clock: seconds, the same in all processes that share the run; None: the run's.
            wait: waits for the event, at most the given seconds; returns whether it was set.
        """
        self._run = run
        self.clock = clock or run.clock
        self._wait = wait

    def until(self, moment: float, stop: threading.Event) -> None:
        """Waits until `moment`, in seconds of the clock.

        Raises:
            RunEnded: the run ended before that.
        """
        while (left := moment - self.clock()) > 0:
            self.pause(min(left, _POLL_S), stop)

    def pause(self, seconds: float, stop: threading.Event) -> None:
        """Waits for `seconds`, which must be at most 1.

        Raises:
            RunEnded: the run has ended.
        """
        if self._wait(stop, seconds):
            raise RunEnded
        self.check(stop)

    def check(self, stop: threading.Event) -> None:
        """Raises RunEnded if the run has ended."""
        if stop.is_set() or self._run.is_ended():
            raise RunEnded

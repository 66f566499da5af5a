"""Waiting that ends with the run."""

import threading
import time
from collections.abc import Callable

from components.llm_scorer.ledger import RunEnded, RunLedger

_POLL_S = 1.0


class Waiter:
    """Waits in pieces: another thread, or another process, may meet the end of the run."""

    def __init__(
        self,
        run: RunLedger,
        *,
        clock: Callable[[], float] = time.time,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ):
        """
        Args:
            run: knows whether it has ended.
            clock: Unix seconds, the same in all processes.
            wait: waits for the event so many seconds at most; tells whether it came.
        """
        self._run = run
        self.clock = clock
        self._wait = wait

    def until(self, moment: float, stop: threading.Event) -> None:
        """Waits until `moment`, in Unix seconds.

        Raises:
            RunEnded: before that.
        """
        while (left := moment - self.clock()) > 0:
            self.pause(min(left, _POLL_S), stop)

    def pause(self, seconds: float, stop: threading.Event) -> None:
        """Waits so long, a second at most.

        Raises:
            RunEnded: the run has ended.
        """
        if self._wait(stop, seconds) or self._run.is_ended():
            raise RunEnded

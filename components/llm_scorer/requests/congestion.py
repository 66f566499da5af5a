"""Limits the requests in flight: halves the limit when the server throttles, then raises it slot by slot."""

import contextlib
import threading
from collections.abc import Iterator

from sllmr.components.llm_scorer.requests.ledger import RunEnded, RunLedger
from sllmr.components.llm_scorer.requests.waiting import Waiter

THROTTLED = "throttled"
_CUT = "congestion_cut_thousandths"
_DEEPEST_CUT = "congestion_deepest_cut_thousandths"
_CUT_AT = "congestion_cut_at_us"
_HELD_UNTIL = "congestion_held_until_us"
_WHOLE = 1000
_POLL_S = 0.25


class CongestionWindow:
    """Concurrency slots of one worker: at most `concurrency`, additive increase, multiplicative decrease (AIMD).

    When the server throttles a call (429, 503, 529), the slots are halved, down to one; after that, w answered calls
    add a slot, w being the current number of slots. A throttled call that was sent before the last cut causes no other
    cut: it reflects the load from before. If the server names a time to wait (Retry-After), all calls wait. The cut and
    the wait are kept in the run's ledger, so all worker processes of the run heed what one of them met; each worker has
    slots of its own.

    Beam's ReactiveThrottler, which comes with RemoteModelHandler, counts calls of `request`, which are batches here. It
    delays a batch at random by whole seconds, in each process by itself, and ignores Retry-After. It stays idle, as no
    batch ever fails.

    Source: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer
    networks", 1989.
    """

    def __init__(self, run: RunLedger, concurrency: int, waiter: Waiter):
        self._run = run
        self._most = concurrency * _WHOLE
        self._waiter = waiter
        self._in_flight = 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def place(self, stop: threading.Event) -> Iterator[None]:
        """Waits for a slot and holds it during the block.

        Raises:
            RunEnded: the run ended while this call waited.
        """
        with self._freed:
            while self._in_flight >= self._places() // _WHOLE:
                # Not for long: another process may have given places back.
                self._freed.wait(_POLL_S)
                if stop.is_set() or self._run.is_ended():
                    raise RunEnded
            self._in_flight += 1
        try:
            yield
        finally:
            with self._freed:
                self._in_flight -= 1
                # Wakes one waiting thread; if slots were cut meanwhile, it waits again.
                self._freed.notify()

    def wait_while_held(self, stop: threading.Event) -> None:
        """Waits for as long as the server asked any call to wait.

        Raises:
            RunEnded: the run ended while this call waited.
        """
        while (until := self._run.signal(_HELD_UNTIL) / 1e6) > self._waiter.clock():
            self._waiter.until(until, stop)

    def push_back(self, sent_at: float, retry_after_s: float | None) -> None:
        """Counts a throttled call, halves the slots if it was sent after the last cut, and makes all calls wait for as
        long as the server asked.

        Args:
            sent_at: seconds of the waiter's clock.
            retry_after_s: None where the server named no time.
        """
        now_us = round(self._waiter.clock() * 1e6)

        def changed(values: dict[str, int]) -> dict[str, int]:
            changes = {THROTTLED: values.get(THROTTLED, 0) + 1}
            if sent_at * 1e6 > values.get(_CUT_AT, 0):
                cut = self._most - max(_WHOLE, self._left(values.get(_CUT, 0)) // 2)
                changes |= {_CUT: cut, _CUT_AT: now_us, _DEEPEST_CUT: max(cut, values.get(_DEEPEST_CUT, 0))}
            if retry_after_s is not None:
                changes[_HELD_UNTIL] = max(now_us + round(retry_after_s * 1e6), values.get(_HELD_UNTIL, 0))
            return changes

        self._run.change((THROTTLED, _CUT, _CUT_AT, _DEEPEST_CUT, _HELD_UNTIL), changed)

    def growth(self) -> dict[str, int]:
        """What an answered call changes in the ledger; the caller adds it in its own transaction."""
        cut = self._run.signal(_CUT)
        return {_CUT: -min(cut, _WHOLE * _WHOLE // self._left(cut))} if cut > 0 else {}

    def _places(self) -> int:
        """In thousandths."""
        return self._left(self._run.signal(_CUT))

    def _left(self, cut: int) -> int:
        # Answers of several processes may give back more than was cut.
        return self._most - max(0, cut)


def places_now(totals: dict[str, int], concurrency: int) -> int:
    """Requests that one worker may have in flight."""
    return concurrency - -(-max(0, totals.get(_CUT, 0)) // _WHOLE)


def fewest_in_flight(totals: dict[str, int], concurrency: int) -> int:
    """The lowest that `places_now` was in the run."""
    return concurrency - -(-totals.get(_DEEPEST_CUT, 0) // _WHOLE)

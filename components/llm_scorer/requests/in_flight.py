"""One call for a request that several contexts need at the same moment."""

import contextlib
import threading
from collections.abc import Iterator

from sllmr.components.llm_scorer.requests.waiting import Waiter
from sllmr.components.llm_scorer.store.interface import Held
from sllmr.components.llm_scorer.store.opening import open_locks


class ClaimLost(Exception):
    """Another worker may have taken the request over, as this process was suspended."""


class InFlight:
    """Claims on requests, respected by all threads and worker processes that share the store, of other runs too."""

    def __init__(self, store: str, waiter: Waiter):
        self._locks = open_locks(store, "in_flight")
        self._waiter = waiter

    @contextlib.contextmanager
    def claim(self, key: str, stop: threading.Event) -> Iterator[Held]:
        """Waits until nobody else holds the key, and holds it during the block.

        Args:
            key: hexadecimal digits, at least 15.

        Raises:
            RunEnded: the run ended while this call waited.
            CacheError: the store cannot be used.
        """
        while (held := self._locks.try_lock(key)) is None:
            self._waiter.pause(self._locks.poll_s, stop)
        try:
            yield held
        finally:
            held.release()

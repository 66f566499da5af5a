"""The process that drives a scoring run, and how workers notice its end."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator

from sllmr.components.llm_scorer.store.opening import open_locks

CHECK_S = 0.5
"""Seconds for which a worker trusts its last check."""


class Driver:
    """Tells whether the driver of a run is alive: it holds a lock, which becomes free however the process ends.

    Args:
        store: of the run.
    """

    def __init__(self, store: str, run_id: str):
        self._locks = open_locks(store, "drivers")
        self._key = hashlib.sha256(run_id.encode()).hexdigest()
        self._lock = threading.Lock()
        self._checked_at = -CHECK_S
        self._alive = True

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Marks the calling process as the driver during the block."""
        while (held := self._locks.try_lock(self._key)) is None:
            time.sleep(self._locks.poll_s)
        try:
            yield
        finally:
            held.release()

    def is_alive(self) -> bool:
        """Whether a process holds the run, as of at most CHECK_S ago."""
        with self._lock:
            now = time.monotonic()
            if self._alive and now - self._checked_at >= CHECK_S:
                self._alive = self._locks.is_locked(self._key)
                self._checked_at = now
            return self._alive

    def close(self) -> None:
        """Closes what the calling thread opened to hold, and what is open to check."""
        self._locks.close()

"""The process that drives a scoring run, and how workers notice its end."""

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from sllmr.components.llm_scorer.requests.cache import lock_errors, make_directory, open_lock

FILE_NAME = "drivers.lock"

CHECK_S = 0.5
"""Seconds for which a worker trusts its last check."""

_FLOCK = "hhqqi0q"


class Driver:
    """Tells whether the driver of a run is alive.

    The driver holds a lock on one byte of a file, found by the run's id. The kernel releases the lock when the process
    ends, however it ends, so no heartbeat and no process id is needed. The lock belongs to the open file (Linux'
    F_OFD_SETLK), so threads of the driver see it as well as other processes do.
    """

    def __init__(self, directory: str, run_id: str):
        make_directory(directory)
        self._path = os.path.join(directory, FILE_NAME)
        self._byte = int(hashlib.sha256(run_id.encode()).hexdigest()[:15], 16)
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._checked_at = -CHECK_S
        self._alive = True

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Marks the calling process as the driver during the block."""
        with open_lock(self._path) as file:
            with lock_errors(self._path):
                fcntl.fcntl(file, fcntl.F_OFD_SETLKW, self._flock())
            yield

    def is_alive(self) -> bool:
        """Whether a process holds the run, as of at most CHECK_S ago."""
        with self._lock:
            now = time.monotonic()
            if self._alive and now - self._checked_at >= CHECK_S:
                if self._file is None:
                    self._file = open_lock(self._path)  # open as long as the worker lives
                with lock_errors(self._path):
                    found = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, self._flock())
                self._alive = struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK
                self._checked_at = now
            return self._alive

    def close(self) -> None:
        """Closes the worker's file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _flock(self) -> bytes:
        # struct flock: type, whence, start, length, and a process id that must be 0.
        return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, self._byte, 1, 0)

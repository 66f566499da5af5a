"""One call for a request that several contexts need at the same moment."""

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from typing import BinaryIO

from sllmr.components.llm_scorer.requests.cache import lock_errors, make_directory, open_lock
from sllmr.components.llm_scorer.requests.waiting import Waiter

FILE_NAME = "in_flight.lock"
_POLL_S = 0.02


class InFlight:
    """Claims on requests, respected by all threads and worker processes that share the directory, of other runs too.

    A claim is a lock on one byte of a file, found by the request's key: the kernel lets it go when the one who holds
    it closes the file or dies, so a killed process blocks nobody and no claim needs an expiry. The lock belongs to
    the open file and not to the process (Linux' F_OFD_SETLK): threads exclude each other like processes. Keys that
    share a byte (60 bits tell them apart) only wait for each other.
    """

    def __init__(self, directory: str, waiter: Waiter):
        make_directory(directory)
        self._path = os.path.join(directory, FILE_NAME)
        self._waiter = waiter
        self._local = threading.local()

    @contextlib.contextmanager
    def claim(self, key: str, stop: threading.Event) -> Iterator[None]:
        """Waits until nobody else holds the key, and holds it during the block.

        Args:
            key: hexadecimal digits, at least 15.

        Raises:
            RunEnded: while it waited.
            CacheError: the file cannot be opened or locked.
        """
        descriptor, byte = self._file().fileno(), int(key[:15], 16)
        while not self._try_lock(descriptor, byte):
            self._waiter.pause(_POLL_S, stop)
        try:
            yield
        finally:
            _set_lock(descriptor, byte, fcntl.F_UNLCK)

    def _file(self) -> BinaryIO:
        """The calling thread's own, as locks belong to it."""
        if not hasattr(self._local, "file"):
            self._local.file = open_lock(self._path)  # closed with the thread
        return self._local.file

    def _try_lock(self, descriptor: int, byte: int) -> bool:
        try:
            with lock_errors(self._path):
                _set_lock(descriptor, byte, fcntl.F_WRLCK)
        except (BlockingIOError, PermissionError):  # somebody else has it
            return False
        return True


def _set_lock(descriptor: int, byte: int, kind: int) -> None:
    # struct flock: type, whence, start, length, and a process id that must be 0.
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0))

"""One call for a request that several contexts need at the same moment."""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from typing import BinaryIO

from components.llm_scorer.waiting import Waiter

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
        os.makedirs(directory, exist_ok=True)
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
        """
        descriptor, byte = self._file().fileno(), int(key[:15], 16)
        while not _try_lock(descriptor, byte):
            self._waiter.pause(_POLL_S, stop)
        try:
            yield
        finally:
            _set_lock(descriptor, byte, fcntl.F_UNLCK)

    def _file(self) -> BinaryIO:
        """The calling thread's own, as locks belong to it."""
        if not hasattr(self._local, "file"):
            self._local.file = open(self._path, "ab")  # noqa: SIM115  closed with the thread
        return self._local.file


def _set_lock(descriptor: int, byte: int, kind: int) -> None:
    # struct flock: type, whence, start, length, and a process id that must be 0.
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0))


def _try_lock(descriptor: int, byte: int) -> bool:
    try:
        _set_lock(descriptor, byte, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True

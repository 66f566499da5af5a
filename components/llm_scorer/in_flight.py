"""One call for a request that several contexts need at the same moment."""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Iterator

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

    @contextlib.contextmanager
    def claim(self, key: str, stop: threading.Event) -> Iterator[None]:
        """Waits until nobody else holds the key, and holds it during the block.

        Args:
            key: hexadecimal digits, at least 15.

        Raises:
            RunEnded: while it waited.
        """
        with open(self._path, "ab") as file:
            while not _try_lock(file.fileno(), int(key[:15], 16)):
                self._waiter.pause(_POLL_S, stop)
            yield


def _try_lock(descriptor: int, byte: int) -> bool:
    # struct flock: type, whence, start, length, and a process id that must be 0.
    lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True

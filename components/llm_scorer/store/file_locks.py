"""Locks of one machine, on bytes of a file."""

import fcntl
import os
import struct
import threading
from typing import BinaryIO

from sllmr.components.llm_scorer.store.interface import Held
from sllmr.components.llm_scorer.store.sqlite import lock_errors, make_directory, open_lock

_FLOCK = "hhqqi0q"


class FileLocks:
    """Locks of one byte of a file each, found by the key.

    The kernel releases a lock when the one who holds it closes the file or dies, so a killed process blocks nobody and
    no lock needs an expiry. It belongs to the open file and not to the process (Linux' F_OFD_SETLK): threads exclude
    each other like processes. Keys that share a byte (60 bits tell them apart) only wait for each other.
    """

    poll_s = 0.02

    def __init__(self, directory: str, name: str):
        make_directory(directory)
        self._path = os.path.join(directory, f"{name}.lock")
        self._local = threading.local()
        self._looking = threading.Lock()
        self._looks: BinaryIO | None = None

    def try_lock(self, key: str) -> Held | None:
        descriptor, byte = self._file().fileno(), _byte(key)
        try:
            with lock_errors(self._path):
                _set_lock(descriptor, byte, fcntl.F_WRLCK)
        except (BlockingIOError, PermissionError):  # somebody else has it
            return None
        return _HeldByte(descriptor, byte)

    def is_locked(self, key: str) -> bool:
        with self._looking:
            if self._looks is None:
                self._looks = open_lock(self._path)  # another one: a file sees no lock of its own
            with lock_errors(self._path):
                found = fcntl.fcntl(self._looks, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _byte(key)))
        return struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK

    def close(self) -> None:
        file = self._local.__dict__.pop("file", None)
        if file is not None:
            file.close()
        with self._looking:
            if self._looks is not None:
                self._looks.close()
                self._looks = None

    def _file(self) -> BinaryIO:
        """The calling thread's own, as locks belong to it."""
        if not hasattr(self._local, "file"):
            self._local.file = open_lock(self._path)  # closed with the thread at the latest
        return self._local.file


class _HeldByte:
    """A Held that the kernel keeps."""

    def __init__(self, descriptor: int, byte: int):
        self._descriptor = descriptor
        self._byte = byte

    def is_held(self) -> bool:
        return True

    def release(self) -> None:
        _set_lock(self._descriptor, self._byte, fcntl.F_UNLCK)


def _byte(key: str) -> int:
    return int(key[:15], 16)


def _set_lock(descriptor: int, byte: int, kind: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(kind, byte))


def _flock(kind: int, byte: int) -> bytes:
    # struct flock: type, whence, start, length, and a process id that must be 0.
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)

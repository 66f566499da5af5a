"""One process at a time runs a pipeline in a folder: MLMD's `latest run` would be the other one's."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from rich.console import Console

LOCK_FILE = ".lock"


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path, console: Console) -> Iterator[None]:
    """Waits for the process that has the folder, and says so. The kernel frees the lock of a killed one, whatever
    children it leaves.

    Args:
        folder: an existing folder, on a file system with POSIX locks.
        console: told if there is somebody to wait for.
    """
    with open(folder / LOCK_FILE, "ab") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            console.print(f"another process runs its pipeline in {folder}: waiting for it", soft_wrap=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield

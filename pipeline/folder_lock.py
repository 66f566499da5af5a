"""The folder of a run: a path to it without wildcards, and a lock that lets one process at a time use it.

Without the lock, MLMD's latest run could be that of another process.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import uuid
from collections.abc import Iterator

from rich.console import Console

from sllmr.models.errors import UserError

LOCK_FILE = ".lock"


class FolderError(UserError):
    """A run's folder cannot be used; the message says what to remove or to name instead."""


LINKS = "~/.cache/sllmr/links"
_WILDCARD = re.compile(r"[*?\[\]{}]")


def without_wildcards(folder: pathlib.Path) -> pathlib.Path:
    """A path to the folder without wildcards: Beam and TFX build file patterns from paths and escape nothing.

    Args:
        folder: an absolute path.

    Returns:
        The folder itself, or a link to it in LINKS, whose name depends on the path alone.

    Raises:
        FolderError: the folder of the links holds such a character, too, or cannot be written.
    """
    if not _WILDCARD.search(str(folder)):
        return folder
    links = pathlib.Path(LINKS).expanduser()
    problem = f"{links} must be a folder that can be written, to link it without * ? [ ] {{ }}, which {folder} holds"
    if _WILDCARD.search(str(links)):
        raise FolderError(f"{problem}; name an --output without them")
    link = links / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    try:
        links.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or os.readlink(link) != str(folder):
            new = links / uuid.uuid4().hex
            new.symlink_to(folder, target_is_directory=True)
            new.replace(link)
    except OSError as error:
        raise FolderError(f"{problem}, but: {error}; make it one, or name an --output without them") from None
    return link


@contextlib.contextmanager
def folder_lock(folder: pathlib.Path, console: Console) -> Iterator[None]:
    """Locks the folder; if another process holds the lock, says so and waits. The kernel frees the lock of a killed
    process, even if its children live on.

    Args:
        folder: an existing folder, on a file system with POSIX locks.
        console: gets a line if another process holds the lock.
    """
    with open(folder / LOCK_FILE, "ab") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            console.print(f"another process runs its pipeline in {folder}: waiting for it", soft_wrap=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise FolderError(
                f"{folder / LOCK_FILE} cannot be locked ({error.strerror}); name an --output on a local disk"
            ) from None
        yield

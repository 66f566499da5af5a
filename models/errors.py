"""The base class of every error that a user can fix, and what the operating system's refusals mean."""

import errno


class UserError(Exception):
    """What the user gave, or the machine lacks, stops the program; the message names the rule, the value and the fix.

    The command line prints the message alone. Any other exception is a defect of the program: its traceback goes to the
    run's log.
    """


class FileError(UserError):
    """The operating system refuses a file or folder for a reason that a user can remove."""


_FREE_SPACE = "free space on its disk, or use a folder on another disk"
_WRITABLE = "make the file and its folder readable and writable"
LOCAL_DISK = "use a folder on a local disk"
_CURES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOLCK: LOCAL_DISK,
    errno.EOPNOTSUPP: LOCAL_DISK,
    errno.ESTALE: LOCAL_DISK,
    errno.EIO: "check its disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENAMETOOLONG: "use a shorter path",
}


def cure_of(error: OSError) -> str | None:
    """What a user can do about an error of the operating system; None for a ConnectionError or if no cure is known."""
    return None if isinstance(error, ConnectionError) else _CURES.get(error.errno or 0)


def file_error(error: OSError) -> FileError | None:
    """The error as one that a user can fix, with path, cause and cure; None without a known cure."""
    cure = cure_of(error)
    if cure is None:
        return None
    path = error.filename if error.filename is not None else "a file"
    return FileError(f"{path} cannot be used ({error.strerror or error}); {cure}, and run again")

"""Starts a run from any command line, and keeps the output of native libraries off the terminal."""

import contextlib
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sllmr.models.errors import UserError
from sllmr.pipeline.stopped import chain, is_interruption, user_error

if TYPE_CHECKING:
    from sllmr.pipeline.run_summary import RunSummary


class UnexpectedError(Exception):
    """A defect of the program, whose traceback is in a log file.

    Args:
        error: the exception.
        log_file: holds its traceback.
    """

    def __init__(self, error: Exception, log_file: pathlib.Path):
        super().__init__(
            f"unexpected {type(error).__name__}: {error}\nThe traceback is in {log_file}; --debug shows it here"
        )


def start(config: pathlib.Path, output: pathlib.Path) -> "RunSummary | None":
    """Runs `config` into `output`; see pipeline.runner.run."""
    output = output.expanduser().resolve()
    with command_log("run", str(config), output) as log_file:
        # Imported here: TensorFlow's C++ side writes to stderr while it is being imported.
        from sllmr.pipeline import runner

        return runner.run(config, output, log_file)


@contextlib.contextmanager
def command_log(command: str, source: str, output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Prints `source` and `output`, and sends what libraries write to file descriptor 2 to a log file in `output`.

    Args:
        command: names the log file.
        source: what the command reads, in words.
        output: an absolute folder, made where it is missing.

    Yields:
        The log file.
    """
    log_file = output / "logs" / time.strftime(f"{command}-%Y%m%d-%H%M%S.log")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    print(f"{source} -> {output}", flush=True)
    with diverted_stderr(log_file), traceback_in(log_file):
        yield log_file


@contextlib.contextmanager
def traceback_in(log_file: pathlib.Path) -> Iterator[None]:
    """Appends the traceback of an unexpected exception to a log file.

    Raises:
        UnexpectedError: from the exception, unless it is a user's error or an interruption.
    """
    try:
        yield
    except Exception as error:
        if any(isinstance(e, UserError) for e in chain(error)) or isinstance(error, UnexpectedError):
            raise
        if is_interruption(error):
            raise
        # The disk that caused the error may hold the log too.
        with contextlib.suppress(OSError), open(log_file, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        if user_error(error) is not None:
            raise
        raise UnexpectedError(error, log_file) from error


@contextlib.contextmanager
def diverted_stderr(file: pathlib.Path) -> Iterator[None]:
    """Sends everything that any library writes to file descriptor 2 to `file`, child processes included."""
    sys.stderr.flush()
    terminal = os.dup(2)
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(target)

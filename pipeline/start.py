"""The way into a run, from any command line: keeps native libraries' chatter off the terminal, then runs."""

import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any


def start(config: pathlib.Path, output: pathlib.Path) -> dict[str, Any] | None:
    """Runs `config` into `output`; see pipeline.runner.run."""
    output = output.expanduser().resolve()
    with command_log("run", str(config), output) as log_file:
        # Imported here: TensorFlow's C++ side writes to stderr while it is being imported.
        from pipeline import runner

        return runner.run(config, output, log_file)


@contextlib.contextmanager
def command_log(command: str, source: str, output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Says what goes where, and keeps what libraries write to file descriptor 2 in a log file of `output`.

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
    with diverted_stderr(log_file):
        yield log_file


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

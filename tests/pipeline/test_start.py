"""Native chatter goes to the log, and the terminal is given back."""

import errno
import os
import subprocess
import sys

import pytest

from sllmr.components.interactions_example_gen.files import DataError
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.store.interface import CacheError
from sllmr.pipeline.start import UnexpectedError, command_log, diverted_stderr
from sllmr.pipeline.stopped import user_error, what_is_kept


def test_what_is_written_to_descriptor_two_lands_in_the_file_child_processes_included(tmp_path, capfd):
    with diverted_stderr(tmp_path / "log"):
        os.write(2, b"from a library\n")
        subprocess.run([sys.executable, "-c", "import sys; print('from a child', file=sys.stderr)"], check=True)
    os.write(2, b"afterwards\n")
    assert (tmp_path / "log").read_text() == "from a library\nfrom a child\n"
    assert capfd.readouterr().err == "afterwards\n"


def fail(path) -> None:
    with diverted_stderr(path):
        raise RuntimeError("a step failed")


def test_the_terminal_is_given_back_when_the_run_fails(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="a step failed"):
        fail(tmp_path / "log")
    os.write(2, b"the reason\n")
    assert capfd.readouterr().err == "the reason\n"


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free space on its disk"),
        (errno.EROFS, "make the file and its folder readable and writable"),
        (errno.ENOLCK, "use a folder on a local disk"),
        (errno.EMFILE, "raise the limit of open files"),
    ],
)
def test_a_file_that_the_system_refuses_is_an_error_of_the_user_with_path_cause_and_cure(tmp_path, number, cure):
    path = str(tmp_path / "ledger.json")
    failure = RuntimeError("in a step")  # as Beam says it
    failure.__cause__ = OSError(number, os.strerror(number), path)
    with pytest.raises(RuntimeError) as caught, command_log("score", "shop.yaml", tmp_path):
        raise failure
    fixable = user_error(caught.value)
    assert str(fixable) == f"{path} cannot be used ({os.strerror(number)}); {fix_of(fixable)}"
    assert cure in fix_of(fixable)
    (log,) = (tmp_path / "logs").iterdir()
    assert "in a step" in log.read_text()


def fix_of(error) -> str:
    return str(error).partition("; ")[2]


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "a"), ConnectionResetError(), KeyError()]
)
def test_other_errors_are_defects(tmp_path, error):
    with pytest.raises(UnexpectedError), command_log("score", "shop.yaml", tmp_path):
        raise error


@pytest.mark.parametrize(
    ("error", "is_sure"),
    [
        (KeyboardInterrupt(), True),
        (LlmError("the endpoint refuses the key"), True),
        (DataError("no such column"), True),
        (CacheError("the disk is full"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (KeyError("a defect"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_response_is_said_to_be_kept_only_if_that_is_sure(tmp_path, error, is_sure):
    assert what_is_kept(error, str(tmp_path), "sllmr run") == "Stopped. To resume: sllmr run"
    (tmp_path / "responses.sqlite").touch()
    assert ("Every response so far is kept" in what_is_kept(error, str(tmp_path), "sllmr run")) == is_sure

"""Native chatter goes to the log, and the terminal is given back."""

import os
import subprocess
import sys

import pytest

from pipeline.start import diverted_stderr


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

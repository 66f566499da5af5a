"""What reaches the terminal, and what only the log file."""

import io
import logging

import absl.logging
from rich.console import Console
from tfx.orchestration.local import local_dag_runner

from pipeline.console import FINISHED, RUNNING, run_log


def test_steps_and_own_lines_reach_the_terminal_and_everything_the_file(tmp_path):
    terminal = io.StringIO()
    with run_log(tmp_path / "logs" / "run.log", Console(file=terminal), steps=2):
        absl.logging.info(RUNNING, "Trainer")
        logging.getLogger("models.training").info("epoch 1")
        logging.getLogger("somebody.else").info("chatter")
        absl.logging.info(FINISHED, "Trainer")
    shown = terminal.getvalue()
    assert "[ 1/2] Trainer" in shown
    assert "epoch 1" in shown
    assert "chatter" not in shown
    written = (tmp_path / "logs" / "run.log").read_text()
    assert all(line in written for line in ("Component Trainer is running.", "epoch 1", "chatter"))


def test_the_handlers_of_before_are_back_afterwards(tmp_path):
    before = logging.getLogger().handlers[:]
    with run_log(tmp_path / "run.log", Console(file=io.StringIO()), steps=1):
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before


def test_tfx_still_logs_the_lines_that_progress_is_made_of():
    with open(local_dag_runner.__file__) as file:
        source = file.read()
    assert repr(RUNNING) in source
    assert repr(FINISHED) in source

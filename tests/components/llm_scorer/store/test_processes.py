import os
import subprocess
import sys
import time

from sllmr.components.llm_scorer.store.processes import has_ended, process_name

NAME = (
    "from sllmr.components.llm_scorer.store.processes import process_name; print(process_name(), flush=True); input()"
)


def test_a_process_has_ended_once_it_is_killed_and_also_before_its_parent_has_noticed():
    command = [sys.executable, "-c", NAME]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not has_ended(name)
        process.kill()
        while not has_ended(name):
            assert process.returncode is None
            time.sleep(0.01)
    assert has_ended(name)


def test_this_process_runs_and_an_earlier_one_of_its_id_has_ended():
    machine, pid, started = process_name().rsplit(" ", 2)
    assert pid == str(os.getpid())
    assert not has_ended(process_name())
    assert has_ended(f"{machine} {pid} {int(started) - 1}")


def test_nothing_is_known_of_another_machine_and_of_what_is_hidden(monkeypatch):
    machine, _, started = process_name().rsplit(" ", 2)
    assert not has_ended(f"other {machine} 999999999 {started}")
    assert has_ended(f"{machine} 999999999 {started}")

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not has_ended(f"{machine} 999999999 {started}")

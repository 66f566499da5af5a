import contextlib
import errno
import fcntl
import io
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from sllmr.pipeline import runner
from sllmr.pipeline.ablation import domain
from sllmr.pipeline.config import load_config
from sllmr.pipeline.folder_lock import FolderError, folder_lock, without_wildcards

# Leaves a child behind, as worker processes may be left, when it is killed.
HOLDER = """
import os, pathlib, sys, time
from rich.console import Console
from sllmr.pipeline.folder_lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), Console()):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_process_waits_says_so_and_goes_on_when_the_first_is_killed(tmp_path):
    terminal, inside = io.StringIO(), threading.Event()

    def wait_for(folder: pathlib.Path) -> None:
        with folder_lock(folder, Console(file=terminal)):
            inside.set()

    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        waiting = threading.Thread(target=wait_for, args=(tmp_path,))
        waiting.start()
        assert not inside.wait(1.0)
        assert f"another process runs its pipeline in {tmp_path}" in terminal.getvalue().replace("\n", "")
        holder.kill()
        assert inside.wait(30.0)
        waiting.join()
        subprocess.run(["kill", str(child)], check=True)


def test_nobody_is_told_to_wait_for_nothing(tmp_path):
    terminal = io.StringIO()
    for _ in range(2):
        with folder_lock(tmp_path, Console(file=terminal)):
            pass
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("start", ["run", "matrix"])
@pytest.mark.slow
def test_a_pipeline_runs_while_its_folder_is_held_and_not_before(tmp_path, monkeypatch, start):
    (tmp_path / "i.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "t.csv").write_text("item_id,title\n")
    text = "data: {interactions: i.csv, items: t.csv}\nloss: {llm_weight: 0}\nitem_vectors: {source: none}\n"
    (tmp_path / "c.yaml").write_text(text)
    seen = []

    @contextlib.contextmanager
    def lock(folder: pathlib.Path, console: Console) -> Iterator[None]:
        seen.append(f"{folder.name} held")
        yield

    def stop(*_: object) -> None:
        seen.append("running")
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalDagRunner, "run", stop)
    monkeypatch.setattr(runner, "folder_lock", lock)
    monkeypatch.setattr(domain, "folder_lock", lock)
    starts = {
        "run": lambda: runner.run(tmp_path / "c.yaml", tmp_path / "out", tmp_path / "log"),
        "matrix": lambda: domain.prepare_domain("shop", load_config(tmp_path / "c.yaml"), tmp_path / "out", Console()),
    }
    with pytest.raises(KeyboardInterrupt):
        starts[start]()

    assert seen == ["out held", "running"]


@pytest.mark.parametrize("name", ["out[1]", "out*", "what?", "{a}", "[x]/out"])
def test_a_folder_whose_path_is_a_pattern_has_another_path_that_is_none(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / name
    folder.mkdir(parents=True)
    link = without_wildcards(folder)
    assert not set("*?[]{}") & set(str(link))
    (link / "file").write_text("written")
    assert (folder / "file").read_text() == "written"
    assert without_wildcards(folder) == link
    other = tmp_path / f"{name}2"
    other.mkdir()
    assert without_wildcards(other) != link
    link.unlink()
    link.symlink_to(other)
    assert (without_wildcards(folder) / "file").read_text() == "written"


def test_a_plain_path_is_its_own(tmp_path):
    assert without_wildcards(tmp_path / "out 1" / "läden-(2)") == tmp_path / "out 1" / "läden-(2)"


def test_links_that_cannot_be_made_are_said_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FolderError, match=r"must be a folder that can be written.*or name an --output without them"):
        without_wildcards(tmp_path / "out[1]")
    monkeypatch.setenv("HOME", str(tmp_path / "[home]"))
    with pytest.raises(FolderError, match="name an --output without them"):
        without_wildcards(tmp_path / "out[1]")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (
        pytest.raises(FolderError, match=r"\.lock cannot be locked \(No locks available\)"),
        folder_lock(tmp_path, Console()),
    ):
        pass

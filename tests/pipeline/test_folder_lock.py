import contextlib
import io
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from pipeline import runner
from pipeline.ablation import domain
from pipeline.config import load_config
from pipeline.folder_lock import folder_lock

# Leaves a child behind, as worker processes may be left, when it is killed.
HOLDER = """
import os, pathlib, sys, time
from rich.console import Console
from pipeline.folder_lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), Console()):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


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
def test_a_pipeline_runs_while_its_folder_is_held_and_not_before(tmp_path, monkeypatch, start):
    (tmp_path / "i.csv").write_text("user_id,item_id,timestamp\n")
    (tmp_path / "t.csv").write_text("item_id,title\n")
    (tmp_path / "c.yaml").write_text("data: {interactions: i.csv, items: t.csv}\nloss: {llm_weight: 0}\n")
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

import io
import pathlib
import subprocess
import sys
import threading

from rich.console import Console

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

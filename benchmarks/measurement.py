"""What a process tree uses of the machine, and a file of results to which later runs add what is missing."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SAMPLE_S = 0.2
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A process tree at one moment: Unix seconds, CPU seconds so far, resident memory of all its processes."""

    at: float
    cpu_s: float
    rss_mb: float


class Line(NamedTuple):
    """A printed line, and the Unix seconds at which it came."""

    at: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One command: wall and CPU seconds of its process tree, its peak memory, and what it printed."""

    seconds: float
    cpu_s: float
    peak_rss_mb: float
    samples: tuple[Sample, ...]
    lines: tuple[Line, ...]

    @property
    def output(self) -> str:
        """All that the command printed."""
        return "".join(line.text for line in self.lines)

    def cpu_between(self, start: float, end: float) -> float:
        """CPU seconds of the tree between two moments, to the nearest samples."""

        def at(moment: float) -> float:
            return min(self.samples, key=lambda sample: abs(sample.at - moment)).cpu_s

        return at(end) - at(start)

    def peak_between(self, start: float, end: float) -> float:
        """Peak memory of the tree between two moments."""
        return max((s.rss_mb for s in self.samples if start <= s.at <= end), default=0.0)


def measure(command: Sequence[str], *, environment: Mapping[str, str], log: pathlib.Path) -> Measured:
    """Runs a command to its end; standard error goes to `log`.

    Raises:
        RuntimeError: the command failed; the message holds the end of the log.
    """
    started = time.monotonic()
    samples: list[Sample] = []
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}, text=True
        )
        end = threading.Event()
        sampler = threading.Thread(target=_watch, args=(process.pid, samples, end), daemon=True)
        sampler.start()
        assert process.stdout is not None
        lines = tuple(Line(time.time(), text) for text in process.stdout)
        end.set()
        sampler.join()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
    if process.returncode:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"{command[0]} ended with {process.returncode}; its log {log} ends with:\n{tail}")
    return Measured(
        seconds=time.monotonic() - started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_mb=max(sample.rss_mb for sample in samples),
        samples=tuple(samples),
        lines=lines,
    )


def _watch(pid: int, samples: list[Sample], end: threading.Event) -> None:
    while not end.wait(SAMPLE_S):
        samples.append(tree_sample(pid))


def tree_sample(root: int) -> Sample:
    """Measures a process and all its descendants now."""
    parents: dict[int, int] = {}
    cpu_s: dict[int, float] = {}
    rss_mb: dict[int, float] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    # The name, in brackets, may hold spaces.
                    fields = file.read().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            pid = int(entry)
            parents[pid] = int(fields[1])
            cpu_s[pid] = sum(int(ticks) for ticks in fields[11:15]) * _TICK_S
            rss_mb[pid] = int(fields[21]) * _PAGE_MB
    tree = {root}
    while children := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= children
    return Sample(
        at=time.time(),
        cpu_s=sum(cpu_s.get(pid, 0) for pid in tree),
        rss_mb=sum(rss_mb.get(pid, 0) for pid in tree),
    )


def machine() -> dict[str, Any]:
    """Cores, memory and processor of this machine, without its name."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "processor": models[0] if models else platform.machine(),
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages."""
    return {package: importlib.metadata.version(package) for package in packages}


class Results:
    """A file with one JSON line per cell. Callers skip the cells that it already holds."""

    def __init__(self, file: pathlib.Path):
        self._file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self._done = [json.loads(line)["cell"] for line in lines]

    def holds(self, cell: Mapping[str, Any]) -> bool:
        """Whether this cell was measured."""
        return json.loads(json.dumps(cell)) in self._done

    def append(self, cell: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Adds one line: what identifies the cell, when, on which machine, and what was measured."""
        date = time.strftime("%Y-%m-%d", time.gmtime())
        line = json.dumps({"cell": cell, "date": date, "machine": machine(), **measured})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._done.append(json.loads(json.dumps(cell)))
        print(line, flush=True)

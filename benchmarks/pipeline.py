"""What each step of a run without an LLM costs, by number of interactions: seconds, CPU seconds, and peak memory.

    python -m benchmarks.pipeline [--interactions 100000 1000000] [--items 10000] [--processes 1 2]
    python -m benchmarks.pipeline --checkout DIR --config FILE

The second command measures another commit: DIR is a clone with that commit checked out and set up by its own
`make setup`, FILE its configuration, since an older commit has other keys.

Tables are made up from a seed: items with popularity 1 / rank^0.8, users with 5 or more interactions by a Pareto
distribution, and one user with a tenth of all interactions, but at most 100,000. The run trains DCNv2 without item
vectors for one epoch; every other key has its default. If --processes is above 1, Beam runs that many workers.

Memory and CPU are those of the process with all its workers, which the steps share: what one step imports or leaves
behind counts in later steps, and memory that several processes share counts in each. results/pipeline.jsonl gets a
line for each number of interactions, configuration, and commit; those that it already has are skipped. CPU seconds of
one commit depend on the processor and on what else runs, so compare lines of one machine and one session.

    cell.commit    of the measured code, with a + if it was changed; absent in lines that are older than this key
    load           the machine's load average over a minute, before and after; above the cores, other programs ran, too
    steps          by name: seconds, cpu_s, peak_rss_mb; `start` is from the command to the first step
    seconds_per_million, by step, is in the last lines that the command prints: constant if a step is linear
"""

import argparse
import itertools
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.measurement import Measured, Results, measure, versions

RESULTS = pathlib.Path(__file__).parent / "results" / "pipeline.jsonl"
_ROOT = pathlib.Path(__file__).parents[1]
SEED = 11
START = "start"
_LEAST, _PARETO, _MOST = 5, 1.2, 100_000  # interactions of a user
_BRANCHES, _LEAVES, _BRANDS = 40, 200, 1000
_FIRST, _LAST = 1_640_995_200, 1_704_067_199  # 2022 and 2023
_ROWS_AT_ONCE = 1_000_000
_STEP = re.compile(r"\[ *\d+/\d+\] (\w+)")


def user_sizes(interactions: int, rng: np.random.Generator) -> Iterator[int]:
    """Interactions of each user, which add up to `interactions`; the first user is the heavy one."""
    heavy = min(interactions // 10, _MOST)
    yield heavy
    left = interactions - heavy
    while left:
        size = min(int(_LEAST * (1 + rng.pareto(_PARETO))), _MOST, left)
        yield size
        left -= size


def write_tables(directory: pathlib.Path, interactions: int, items: int) -> None:
    """Writes interactions.parquet and items.parquet."""
    rng = np.random.default_rng(SEED)
    directory.mkdir(parents=True, exist_ok=True)
    leaves = rng.integers(_LEAVES, size=items)
    brands = rng.integers(_BRANDS, size=items)
    pq.write_table(
        pa.table(
            {
                "item_id": [f"i{n}" for n in range(items)],
                "title": [f"Item {n} of brand {brand}" for n, brand in enumerate(brands)],
                "categories": [f"Leaf {leaf}|Branch {leaf % _BRANCHES}" for leaf in leaves],
                "brand": [f"Brand {brand}" for brand in brands],
            }
        ),
        directory / "items.parquet",
    )
    cumulative = np.cumsum(1.0 / (rng.permutation(items) + 1) ** 0.8)
    sizes = list(user_sizes(interactions, rng))
    users = np.repeat(np.arange(len(sizes)), sizes)
    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64()})
    with pq.ParquetWriter(directory / "interactions.parquet", schema) as writer:
        for start in range(0, interactions, _ROWS_AT_ONCE):
            part = users[start : start + _ROWS_AT_ONCE]
            drawn = np.searchsorted(cumulative, rng.random(len(part)) * cumulative[-1])
            columns = {
                "user_id": [f"u{n}" for n in part],
                "item_id": [f"i{n}" for n in np.minimum(drawn, items - 1)],
                "timestamp": rng.integers(_FIRST, _LAST, size=len(part)),
            }
            writer.write_table(pa.table(columns, schema=schema))


def config(processes: int) -> dict[str, Any]:
    """A run without an LLM and without item vectors, one epoch."""
    beam = [] if processes == 1 else ["--direct_running_mode=multi_processing", f"--direct_num_workers={processes}"]
    return {
        "name": "shop",
        "cache_dir": "cache",
        "data": {"interactions": "interactions.parquet", "items": "items.parquet"},
        "item_vectors": {"source": "none"},
        "model": {"item_vectors": False, "text_match": False},
        "loss": {"llm_weight": 0},
        "train": {"epochs": 1},
        "evaluation": {"min_auc": {"overall": 0.0}, "beat_popularity": []},
        **({"beam": {"args": beam}} if beam else {}),
    }


def by_step(measured: Measured) -> dict[str, dict[str, float]]:
    """What each step took, from the lines that the run prints as a step begins."""
    starts = [(START, measured.samples[0].at)]
    starts += [(found[1], line.at) for line in measured.lines if (found := _STEP.match(line.text))]
    ends = [at for _, at in starts[1:]] + [measured.samples[-1].at]
    return {
        name: {
            "seconds": round(end - start, 1),
            "cpu_s": round(measured.cpu_between(start, end), 1),
            "peak_rss_mb": round(measured.peak_between(start, end)),
        }
        for (name, start), end in zip(starts, ends, strict=True)
    }


def commit(checkout: pathlib.Path) -> str:
    """The short hash of the commit that is checked out, with a + if its code was changed."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=checkout, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "components", "models", "pipeline")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def summary(file: pathlib.Path, items: int, measured: str) -> list[str]:
    """For each step its seconds per million interactions, a number for each result of this commit and catalog size."""
    runs = [json.loads(line) for line in file.read_text().splitlines()]
    runs = [run for run in runs if run["cell"]["items"] == items and run["cell"].get("commit") == measured]
    runs.sort(key=lambda run: (run["cell"]["config"].get("beam") is not None, run["cell"]["interactions"]))
    lines = ["seconds_per_million of " + ", ".join(_name(run["cell"]) for run in runs)]
    for step in runs[-1]["steps"]:
        of_step = [run["steps"][step]["seconds"] / run["cell"]["interactions"] * 1e6 for run in runs]
        lines.append(f"{step}: " + ", ".join(f"{seconds:.0f}" for seconds in of_step))
    return lines


def _name(cell: dict[str, Any]) -> str:
    in_processes = " in worker processes" if "beam" in cell["config"] else ""
    return f"{cell['interactions']:,}{in_processes}"


def main() -> None:
    """Measures the cells that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--checkout", type=pathlib.Path, default=_ROOT)
    parser.add_argument("--config", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    measured_commit = commit(arguments.checkout)
    own = arguments.config and yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
    configs = [own] if own else [config(processes) for processes in arguments.processes]
    for interactions, run_config in itertools.product(arguments.interactions, configs):
        cell = {
            "interactions": interactions,
            "items": arguments.items,
            "config": run_config,
            "commit": measured_commit,
            "versions": versions("tfx", "apache-beam", "tensorflow"),
        }
        if results.holds(cell):
            continue
        directory = arguments.work.resolve() / f"pipeline-{interactions}-{arguments.items}"
        write_tables(directory, interactions, arguments.items)
        (directory / "shop.yaml").write_text(yaml.safe_dump(run_config))
        # A new folder each time: otherwise TFX would take results of an earlier run from its cache.
        number = len(list(directory.glob("run-*[0-9]"))) + 1
        command = [str(arguments.checkout.resolve() / ".venv/bin/sllmr"), "run"]
        command += ["--config", str(directory / "shop.yaml"), "--output", str(directory / f"run-{number}")]
        load = [round(os.getloadavg()[0], 1)]
        measured = measure(command, environment={}, log=directory / f"run-{number}.log")
        results.append(
            cell,
            {
                "seconds": round(measured.seconds, 1),
                "cpu_s": round(measured.cpu_s, 1),
                "peak_rss_mb": round(measured.peak_rss_mb),
                "load": [*load, round(os.getloadavg()[0], 1)],
                "steps": by_step(measured),
            },
        )
    for line in summary(arguments.results, arguments.items, measured_commit):
        print(line)


if __name__ == "__main__":
    main()

"""`sllmr ablate`: every cell of the matrix once, resumable, results appended as JSON lines."""

import importlib.metadata
import itertools
import pathlib
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pipeline.ablation import results
from pipeline.ablation.arms import NONE, Arm
from pipeline.ablation.cells import BaselineScores, differences, fingerprint, fuse, train_arm
from pipeline.ablation.config import Ablation, load_ablation
from pipeline.ablation.domain import SLICES, Domain, prepare_domain
from pipeline.baseline import auc_by_slice
from pipeline.code_version import code_version
from pipeline.config import ConfigError

_PACKAGES = ("sllmr", "tensorflow", "tf-keras", "tensorflow-recommenders", "tfx", "numpy", "scikit-learn")


def run_matrix(
    config_file: pathlib.Path, output: pathlib.Path, results_file: pathlib.Path, domains: Sequence[str] | None = None
) -> None:
    """Runs what the results file does not hold yet.

    Stop it at any time: the same command goes on. A cell is run again where its rows, pairs or hyper-parameters are no
    longer those of its line; the report takes the last line of a cell.

    Args:
        config_file: YAML, see pipeline.ablation.config.
        output: folder for the domains' artifacts and the scores of the arm none.
        results_file: JSON lines, appended to.
        domains: of the configuration, those to run; None runs all.

    Raises:
        ConfigError: the configuration cannot be used, or does not hold a domain.
    """
    ablation = load_ablation(config_file)
    console = Console(highlight=False)
    matrix = ablation.config
    unknown = [name for name in domains or () if name not in matrix.domains]
    if unknown:
        raise ConfigError(f"--domains must be among {', '.join(matrix.domains)}, got {', '.join(unknown)}")
    names = [name for name in matrix.domains if domains is None or name in domains]
    blocks = itertools.product(names, matrix.backbones)
    cells = sum(len(matrix.arms_of(name, backbone)) for name, backbone in blocks) * len(matrix.seeds)
    console.print(
        f"{len(names)} domains, {len(matrix.backbones)} backbones, {len(matrix.arms)} arms, {len(matrix.seeds)} "
        f"seeds: {cells} cells"
    )
    done = {cell: run.hashes.cell for cell, run in results.last_runs(results_file).items()}
    versions = {**{p: importlib.metadata.version(p) for p in _PACKAGES}, "code": code_version()}
    progress = _Progress(console, total=cells)
    # A second time where an arm takes the gate of a domain that comes later.
    for is_last in (False, True):
        waiting = []
        for name in names:
            console.print(f"[bold]{name}[/bold]")
            domain = prepare_domain(name, ablation.domain(name), output / name, console)
            waits = False
            # All arms of one seed before the next seed: a run that is cut leaves whole comparisons.
            for seed, backbone in itertools.product(matrix.seeds, matrix.backbones):
                waits |= _run_block(
                    ablation,
                    domain,
                    backbone,
                    seed,
                    output,
                    results_file,
                    done,
                    versions,
                    progress,
                    may_wait=not is_last,
                )
            if waits:
                waiting.append(name)
        names = waiting


def _run_block(
    ablation: Ablation,
    domain: Domain,
    backbone: str,
    seed: int,
    output: pathlib.Path,
    results_file: pathlib.Path,
    done: dict[results.Cell, str],
    versions: dict[str, str],
    progress: "_Progress",
    *,
    may_wait: bool,
) -> bool:
    """All arms of one backbone and seed; `none` first, as the others are measured against it.

    Returns:
        Whether some arm waits for a gate that is not in the results yet.
    """
    waits = False
    store = BaselineScores(output / domain.name / "baselines")
    none = None
    for name in ablation.config.arms_of(domain.name, backbone):
        arm = ablation.config.arm(name)
        config = ablation.cell(domain.name, backbone, name, seed)
        hyperparameters = ablation.hyperparameters(config)
        mark = fingerprint(domain, hyperparameters, arm, adds_to=none if arm.late_fusion else None)
        if name == NONE:
            none = store.load(mark)
        cell = (domain.name, backbone, name, seed)
        if done.get(cell) == mark and none is not None:
            progress.skip(cell)
            continue
        try:
            gate_weights = _gate_weights(arm, backbone, seed, results_file)
        except ConfigError:
            if not may_wait:
                raise
            waits = True
            continue
        started_at, start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        if arm.late_fusion:
            assert none is not None
            trained = fuse(domain, none)
        else:
            trained = train_arm(domain, config, arm, gate_weights)
        if name == NONE:
            none = trained.scores
            store.save(mark, none)
        assert none is not None
        line = {
            "domain": domain.name,
            "backbone": backbone,
            "arm": name,
            "seed": seed,
            "metrics": auc_by_slice(domain.test, trained.scores.test, SLICES),
            "valid_auc": trained.valid_auc,
            "versus_none": None if name == NONE else differences(domain, trained.scores.test, none.test),
            "baselines": domain.baselines,
            "hyperparameters": hyperparameters,
            "share_of_users_scored": arm.scored_share if config.loss.llm_weight > 0 else None,
            "training": trained.training,
            "definitions": domain.definitions,
            "hashes": {**domain.hashes, "cell": mark},
            "versions": versions,
            "started_at": started_at,
            "seconds": round(time.monotonic() - start, 2),
        }
        results.append(results_file, line)
        done[cell] = mark
        progress.tell(cell, line)
    return waits


def _gate_weights(arm: Arm, backbone: str, seed: int, results_file: pathlib.Path) -> dict[str, float] | None:
    """The gate that the arm takes from another cell of the results; None where it takes none.

    Raises:
        ConfigError: that cell is not in the results.
    """
    if arm.gate_from is None:
        return None
    domain, name = arm.gate_from.split("/")
    run = results.last_runs(results_file).get((domain, backbone, name, seed))
    if run is None:
        raise ConfigError(
            f"gate_from {arm.gate_from} needs a run of that arm with {backbone} and seed {seed}, got none in "
            f"{results_file}; run its domain first"
        )
    return run.training["gate_weights"]


class _Progress:
    """One line a cell, with an estimate of the time left from the mean of each arm's cells so far."""

    def __init__(self, console: Console, total: int):
        self._console = console
        self._total = total
        self._past: set[results.Cell] = set()
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def skip(self, cell: results.Cell) -> None:
        """A cell that is done already."""
        self._past.add(cell)

    def tell(self, cell: results.Cell, line: dict[str, Any]) -> None:
        """A cell that was just run."""
        self._past.add(cell)
        self._seconds[line["arm"]].append(line["seconds"])
        means = [sum(s) / len(s) for s in self._seconds.values()]
        left = (self._total - len(self._past)) * sum(means) / len(means)
        auc = " / ".join("-" if m["auc"] is None else f"{m['auc']:.4f}"[1:] for m in line["metrics"].values())
        past = len(self._past)
        self._console.print(
            f"\\[{past:3d}/{self._total}] {line['domain']} {line['backbone']} {line['arm']} seed {line['seed']}: "
            f"AUC {auc} (all / cold / tail), {line['seconds']:.0f} s; about {left / 60:.0f} min left",
            soft_wrap=True,
        )

"""`sllmr ablate`: every cell of the matrix once, resumable, results appended as JSON lines."""

import dataclasses
import importlib.metadata
import itertools
import pathlib
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sllmr.pipeline.ablation import results
from sllmr.pipeline.ablation.arms import NONE, Arm
from sllmr.pipeline.ablation.cells import CellScores, Scores, differences, fingerprint, fuse, train_arm
from sllmr.pipeline.ablation.config import Ablation, AblationConfig, load_ablation
from sllmr.pipeline.ablation.domain import SLICES, Domain, prepare_domain
from sllmr.pipeline.ablation.further_metrics import FurtherMetrics
from sllmr.pipeline.baseline import auc_by_slice
from sllmr.pipeline.code_version import code_version
from sllmr.pipeline.config import ConfigError

_PACKAGES = ("sllmr", "tensorflow", "tf-keras", "tensorflow-recommenders", "tfx", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Which cells to run: those of these domains, backbones, seeds and arms, and of `none`; None stands for all."""

    domains: Sequence[str] | None = None
    backbones: Sequence[str] | None = None
    arms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None

    def arms_of(self, config: AblationConfig, domain: str, backbone: str) -> list[str]:
        """Names of the arms to run on a domain with a backbone, `none` first."""
        if not (_taken(domain, self.domains) and _taken(backbone, self.backbones)):
            return []
        return [arm for arm in config.arms_of(domain, backbone) if arm == NONE or _taken(arm, self.arms)]

    def check(self, config: AblationConfig) -> None:
        """Raises ConfigError where a name is not of the configuration."""
        parts: tuple[tuple[str, Sequence[str | int] | None, Sequence[str | int]], ...] = (
            ("--domains", self.domains, list(config.domains)),
            ("--backbones", self.backbones, config.backbones),
            ("--arms", self.arms, config.arms),
            ("--seeds", self.seeds, config.seeds),
        )
        for option, names, known in parts:
            if unknown := [name for name in names or () if name not in known]:
                raise ConfigError(f"{option} must be among {_join(known)}, got {_join(unknown)}")


def _taken(name: str, names: Sequence[str] | None) -> bool:
    return names is None or name in names


def _join(names: Sequence[str | int]) -> str:
    return ", ".join(map(str, names))


_ALL = Part()


def run_matrix(config_file: pathlib.Path, output: pathlib.Path, results_file: pathlib.Path, part: Part = _ALL) -> None:
    """Runs what the results file does not hold yet.

    Stop it at any time: the same command resumes. A cell is rerun if its rows, pairs or hyper-parameters are no
    longer those of its line; the report takes the last line of a cell.

    Args:
        config_file: YAML, see pipeline.ablation.config.
        output: folder for the domains' artifacts and the scores of their cells.
        results_file: JSON lines, appended to.
        part: of the configuration, what to run.

    Raises:
        ConfigError: the configuration cannot be used, or does not hold what `part` names.
    """
    ablation = load_ablation(config_file)
    console = Console(highlight=False)
    matrix = ablation.config
    part.check(matrix)
    arms = {
        (name, backbone): found
        for name, backbone in itertools.product(matrix.domains, matrix.backbones)
        if (found := part.arms_of(matrix, name, backbone))
    }
    names = list(dict.fromkeys(name for name, _ in arms))
    seeds = [seed for seed in matrix.seeds if part.seeds is None or seed in part.seeds]
    cells = sum(map(len, arms.values())) * len(seeds)
    console.print(
        f"{len(names)} domains, {len({backbone for _, backbone in arms})} backbones, "
        f"{len(set(itertools.chain(*arms.values())))} arms, {len(seeds)} seeds: {cells} cells"
    )
    done = {cell: run.hashes.cell for cell, run in results.last_runs(results_file).items()}
    versions = {**{p: importlib.metadata.version(p) for p in _PACKAGES}, "code": code_version()}
    progress = _Progress(console, total=cells)
    # Twice, because an arm may take the gate of a domain that comes later.
    for is_last in (False, True):
        waiting = []
        for name in names:
            console.print(f"[bold]{name}[/bold]")
            domain = prepare_domain(name, ablation.domain(name), output / name, console, matrix.ranking)
            waits = False
            # All arms of one seed before the next seed: a run that is cut leaves whole comparisons.
            backbones = [backbone for domain_name, backbone in arms if domain_name == name]
            for seed, backbone in itertools.product(seeds, backbones):
                waits |= _run_block(
                    ablation,
                    domain,
                    backbone,
                    arms[name, backbone],
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
    arms: Sequence[str],
    seed: int,
    output: pathlib.Path,
    results_file: pathlib.Path,
    done: dict[results.Cell, str],
    versions: dict[str, str],
    progress: "_Progress",
    *,
    may_wait: bool,
) -> bool:
    """All arms of one backbone and seed; `none` first, and each is compared with those before it.

    Returns:
        Whether some arm waits for a gate that is not in the results yet.
    """
    waits = False
    store = CellScores(output / domain.name / "scores")
    trained_arms: dict[str, Scores] = {}
    further = FurtherMetrics(domain, ablation.domain(domain.name).evaluation.positive_rate)
    for name in arms:
        arm = ablation.config.arm(name)
        config = ablation.cell(domain.name, backbone, name, seed)
        hyperparameters = ablation.hyperparameters(config)
        none = trained_arms.get(NONE)
        cell_fingerprint = fingerprint(domain, hyperparameters, arm, adds_to=none if arm.late_fusion else None)
        cell = (domain.name, backbone, name, seed)
        if done.get(cell) == cell_fingerprint and (kept := store.load(name, cell_fingerprint)):
            trained_arms[name] = kept
            further.add(name, kept, fitted_on_validation=arm.late_fusion)
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
        store.save(name, cell_fingerprint, trained.scores)
        further.add(name, trained.scores, fitted_on_validation=arm.late_fusion)
        line = {
            "domain": domain.name,
            "backbone": backbone,
            "arm": name,
            "arm_config": arm.model_dump(mode="json", exclude_defaults=True, exclude={"backbones"}),
            "seed": seed,
            "metrics": auc_by_slice(domain.test, trained.scores.test, SLICES),
            "valid_auc": trained.valid_auc,
            "versus": {
                other: differences(domain, trained.scores.test, scores.test) for other, scores in trained_arms.items()
            },
            "further_metrics": results.measures_as_json(further.measure(name)),
            "rankings": {name: ranking.info.model_dump() for name, ranking in domain.rankings.items()},
            "baselines": domain.baselines,
            "hyperparameters": hyperparameters,
            "fraction_of_users_scored": arm.scored_fraction if config.loss.llm_weight > 0 else None,
            "training": trained.training,
            "definitions": domain.definitions,
            "hashes": {**domain.hashes, "cell": cell_fingerprint},
            "versions": versions,
            "started_at": started_at,
            "seconds": round(time.monotonic() - start, 2),
        }
        trained_arms[name] = trained.scores
        results.append(results_file, line)
        done[cell] = cell_fingerprint
        progress.finish(cell, line)
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

    def finish(self, cell: results.Cell, line: dict[str, Any]) -> None:
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

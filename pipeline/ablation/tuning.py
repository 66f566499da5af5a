"""`sllmr ablate --tune`: the same number of trials for each arm, compared by validation AUC."""

import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState
from rich.console import Console

from sllmr.pipeline.ablation.arms import NONE, TEXT_FEATURES, TEXT_MATCH
from sllmr.pipeline.ablation.cells import fingerprint, fit_arm
from sllmr.pipeline.ablation.config import AblationConfig, Sections, Tuned, load_ablation
from sllmr.pipeline.ablation.domain import prepare_domain
from sllmr.pipeline.ablation.tuning_config import TuningConfig
from sllmr.pipeline.config import Config
from sllmr.pipeline.folder_lock import folder_lock

TRIALS_FILE = "trials.sqlite"
"""In the domain's folder `tuning`: an Optuna storage, a study for each search."""

Space = dict[str, tuple[float, ...]]
"""section.key -> choices"""

BASELINE_SPACE: Space = {
    "model.embedding_l2": (0.01, 0.02, 0.05, 0.1),
    "model.dropout": (0.0, 0.1, 0.2, 0.4),
    "train.learning_rate": (0.0005, 0.001, 0.002),
}
"""Of the arms none, text_features and text_match, for each backbone."""

POINTWISE_SPACE: Space = {"loss.llm_weight": (0.1, 0.3, 1.0, 3.0, 10.0)}
"""Of arms whose L_LLM has no margin (pointwise, distillation), on top of the tuned baseline."""

PAIRWISE_SPACE: Space = {
    "loss.llm_weight": (0.01, 0.03, 0.1, 0.3, 1.0),
    "loss.margin": (0.2, 1.0, 2.0),
}
"""Of arms whose L_LLM is the pairwise hinge, on top of the tuned baseline."""


def tune(config_file: pathlib.Path, output: pathlib.Path, tuned_file: pathlib.Path) -> None:
    """Searches at random; the first trial of an arm is always what it starts from.

    Stop it at any time: the same command resumes, and repeats no trial.

    Args:
        config_file: YAML, see pipeline.ablation.config; `tuned` in it is not read.
        output: as for run_matrix; trials are kept there.
        tuned_file: gets the best values by arm.
    """
    console = Console(highlight=False)
    ablation = load_ablation(config_file, read_tuned=False)
    settings = ablation.config.tuning
    name = settings.domain or next(iter(ablation.config.domains))
    domain = prepare_domain(name, ablation.domain(name), output / name, console)
    tuned = Tuned(
        how=f"{settings.trials} trials for {', '.join(_of_each_backbone(ablation.config))} of each "
        f"backbone, and for each other arm on {settings.backbone}; "
        f"random search from the start on {name}, seed {settings.seed}, compared by validation AUC"
    )
    folder = output / name / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{(folder / TRIALS_FILE).resolve()}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def search(backbone: str, arm_name: str) -> tuple[Sections, float]:
        arm = ablation.config.arm(arm_name)
        start = ablation.with_tuned(tuned).cell(name, backbone, arm_name, settings.seed)
        # Trials of other rows, pairs or starting values are no trials of this search.
        start_fingerprint = fingerprint(domain, ablation.hyperparameters(start), arm)
        study = optuna.create_study(
            storage=storage,
            study_name=f"{backbone} {arm_name} {start_fingerprint}",
            direction="maximize",
            load_if_exists=True,
        )

        def valid_auc(values: dict[str, float]) -> float:
            _, report = fit_arm(domain, with_values(start, values), arm)
            console.print(f"{backbone} {arm_name} {values}: validation AUC {report.best_valid_auc:.4f}")
            return report.best_valid_auc

        run_trials(study, space_around(start), valid_auc, settings)
        return _sections(study.best_params), study.best_value

    def keep() -> None:
        tuned_file.write_text(yaml.safe_dump(tuned.model_dump(mode="json"), sort_keys=False))

    with folder_lock(folder, console):
        for backbone in ablation.config.backbones:
            tuned.backbones[backbone], tuned.valid_auc[backbone] = search(backbone, NONE)
            keep()
            if ablation.config.has_text_arms:
                # What is best without the vectors is the first trial with them.
                tuned.text_backbones[backbone] = tuned.backbones[backbone]
                tuned.text_backbones[backbone], tuned.valid_auc[f"{backbone} {TEXT_FEATURES}"] = search(
                    backbone, TEXT_FEATURES
                )
                keep()
            if ablation.config.has_match_arms:
                tuned.match_backbones[backbone] = tuned.text_backbones[backbone]
                tuned.match_backbones[backbone], tuned.valid_auc[f"{backbone} {TEXT_MATCH}"] = search(
                    backbone, TEXT_MATCH
                )
                keep()
        for arm_name in ablation.config.arms:
            if arm_name != NONE and ablation.config.arm(arm_name).tuned_as is None:
                tuned.arms[arm_name], tuned.valid_auc[arm_name] = search(settings.backbone, arm_name)
                keep()
    console.print(f"Tuned      {tuned_file}", soft_wrap=True)


def _of_each_backbone(config: AblationConfig) -> list[str]:
    """The arms that are tuned for each backbone."""
    return [NONE, *([TEXT_FEATURES] if config.has_text_arms else []), *([TEXT_MATCH] if config.has_match_arms else [])]


def run_trials(
    study: optuna.Study,
    space: Space,
    valid_auc: Callable[[dict[str, float]], float],
    settings: TuningConfig,
) -> None:
    """Runs the trials that the study does not hold yet, no combination of values twice.

    Each trial's values depend on the seed and the trials before it alone, so a stopped search resumes as if it had
    not been stopped.

    Args:
        study: maximizes; the storage of a search that was stopped, or an empty one.
        space: the choices of each key, the first of which trial 0 takes.
        valid_auc: trains with values by key.
        settings: seed and number of trials; a space with fewer combinations than `trials` is searched completely.
    """
    for stopped in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stopped.number, state=TrialState.FAIL)
    finished = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    combinations = math.prod(len(choices) for choices in space.values())
    while len(finished) < min(settings.trials, combinations):
        if not finished and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial({key: choices[0] for key, choices in space.items()})
        study.sampler = optuna.samplers.RandomSampler(seed=zlib.crc32(f"{settings.seed} {len(finished)}".encode()))
        trial, values = _ask(study, space)
        while values in finished:
            study.tell(trial, state=TrialState.PRUNED)
            trial, values = _ask(study, space)
        study.tell(trial, valid_auc(values))
        finished.append(values)


def _ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, dict[str, float]]:
    trial = study.ask()
    return trial, {key: trial.suggest_categorical(key, choices) for key, choices in space.items()}


def with_values(start: Config, values: dict[str, float]) -> Config:
    """The configuration with values by `section.key`."""
    sections = _sections(values)
    return start.model_copy(update={s: getattr(start, s).model_copy(update=changes) for s, changes in sections.items()})


def space_around(start: Config) -> Space:
    """What an arm is searched over: the value of `start` first, then the others."""
    space = {}
    for key, values in _space(start).items():
        section, field = key.split(".")
        default = getattr(getattr(start, section), field)
        space[key] = (default, *(value for value in values if value != default))
    return space


def _space(start: Config) -> Space:
    if start.loss.llm_weight == 0:
        return BASELINE_SPACE
    return PAIRWISE_SPACE if start.loss.form == "pairwise" else POINTWISE_SPACE


def _sections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, field = key.split(".")
        sections.setdefault(section, {})[field] = value
    return sections

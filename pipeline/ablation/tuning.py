"""`sllmr ablate --tune`: the same number of trials for each arm, judged by validation AUC."""

import pathlib
from typing import Any

import keras_tuner
import yaml
from keras_tuner.engine.trial import TrialStatus
from rich.console import Console

from pipeline.ablation.arms import NONE, TEXT_FEATURES, Arm
from pipeline.ablation.cells import fit_arm
from pipeline.ablation.config import Sections, Tuned, load_ablation
from pipeline.ablation.domain import Domain, prepare_domain
from pipeline.ablation.tuning_config import TuningConfig
from pipeline.config import Config

_OBJECTIVE = "valid_auc"

BASELINE_SPACE: dict[str, tuple[float, ...]] = {
    "model.embedding_l2": (0.01, 0.02, 0.05, 0.1),
    "model.dropout": (0.0, 0.1, 0.2, 0.4),
    "train.learning_rate": (0.0005, 0.001, 0.002),
}
"""Of the arms none and text_features, for each backbone."""

POINTWISE_SPACE: dict[str, tuple[float, ...]] = {"loss.llm_weight": (0.1, 0.3, 1.0, 3.0, 10.0)}
"""Of arms whose L_LLM is pointwise, on top of the tuned baseline."""

PAIRWISE_SPACE: dict[str, tuple[float, ...]] = {
    "loss.llm_weight": (0.01, 0.03, 0.1, 0.3, 1.0),
    "loss.margin": (0.2, 1.0, 2.0),
}
"""Of arms whose L_LLM is the pairwise hinge, on top of the tuned baseline."""


def tune(config_file: pathlib.Path, output: pathlib.Path, tuned_file: pathlib.Path) -> None:
    """Searches at random; the first trial of an arm is always what it starts from. Resumable.

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
        how=f"{settings.trials} trials for none{' and text_features' if ablation.config.has_text_arms else ''} of each "
        f"backbone, and for each other arm on {settings.backbone}; "
        f"random search from the start on {name}, seed {settings.seed}, judged by validation AUC"
    )

    def search(backbone: str, arm: str) -> tuple[Sections, float]:
        start = ablation.with_tuned(tuned).cell(name, backbone, arm, settings.seed)
        tuner = _Tuner(domain, start, ablation.config.arm(arm), f"{backbone} {arm}", settings, output, console)
        tuner.search()
        trial = tuner.oracle.get_best_trials(1)[0]
        return _sections(trial.hyperparameters.values), trial.score

    def keep() -> None:
        tuned_file.write_text(yaml.safe_dump(tuned.model_dump(mode="json"), sort_keys=False))

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
    for arm_name in ablation.config.arms:
        if arm_name != NONE and ablation.config.arm(arm_name).tuned_as is None:
            tuned.arms[arm_name], tuned.valid_auc[arm_name] = search(settings.backbone, arm_name)
            keep()
    console.print(f"Tuned      {tuned_file}", soft_wrap=True)


class _FromTheStart(keras_tuner.oracles.RandomSearchOracle):
    """Random search whose first trial has the defaults; keras-tuner's own draws that one too."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The values of a new trial."""
        if self.trials:
            return super().populate_space(trial_id)
        defaults = {choice.name: choice.default for choice in self.hyperparameters.space}
        return {"status": TrialStatus.RUNNING, "values": defaults}


class _Tuner(keras_tuner.Tuner):
    def __init__(
        self,
        domain: Domain,
        start: Config,
        arm: Arm,
        name: str,
        settings: TuningConfig,
        output: pathlib.Path,
        console: Console,
    ):
        self._domain, self._start, self._arm, self._name, self._console = domain, start, arm, name, console
        space = keras_tuner.HyperParameters()
        for key, values in _space(start).items():
            section, field = key.split(".")
            default = getattr(getattr(start, section), field)
            space.Choice(key, sorted({*values, default}), default=default)
        super().__init__(
            _FromTheStart(
                objective=keras_tuner.Objective(_OBJECTIVE, "max"),
                hyperparameters=space,
                tune_new_entries=False,
                max_trials=settings.trials,
                seed=settings.seed,
                max_consecutive_failed_trials=1,
            ),
            directory=str(output / domain.name / "tuning"),
            project_name=name.replace(" ", "-"),
        )

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """One training with the trial's values."""
        sections = _sections(trial.hyperparameters.values)
        config = self._start.model_copy(
            update={s: getattr(self._start, s).model_copy(update=changes) for s, changes in sections.items()}
        )
        _, report = fit_arm(self._domain, config, self._arm)
        self._console.print(f"{self._name} {trial.hyperparameters.values}: validation AUC {report.best_valid_auc:.4f}")
        return {_OBJECTIVE: report.best_valid_auc}

    def load_model(self, trial: Any) -> None:
        """Trials keep no models."""

    def save_model(self, trial_id: str, model: Any, step: int = 0) -> None:
        """Trials keep no models."""


def _space(start: Config) -> dict[str, tuple[float, ...]]:
    if start.loss.llm_weight == 0:
        return BASELINE_SPACE
    return PAIRWISE_SPACE if start.loss.form == "pairwise" else POINTWISE_SPACE


def _sections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, field = key.split(".")
        sections.setdefault(section, {})[field] = value
    return sections

"""The matrix: domains, backbones, arms, seeds, and the configuration that they have in common."""

import pathlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sllmr.components.item_embedder.weights import MODEL as BUNDLED_VECTORS
from sllmr.components.llm_scorer.config import CandidateConfig
from sllmr.components.pair_builder.config import PairConfig
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.pipeline.ablation.arms import ARMS, NONE, RENAMED_ARMS, Arm
from sllmr.pipeline.ablation.ranking_config import RankingConfig
from sllmr.pipeline.ablation.tuning_config import TuningConfig
from sllmr.pipeline.config import Config, ConfigError, explain, read_yaml, validate_config, with_absolute_paths

_SECTIONS = ("model", "gate", "loss", "train")

# Arms are changes of the paper's design, not of the one that a run has by default (pipeline/defaults.py).
_PAPER = {
    "model": ModelConfig().model_dump(mode="json"),
    "gate": GateConfig().model_dump(mode="json"),
    "loss": LossConfig().model_dump(mode="json"),
    "train": TrainConfig().model_dump(mode="json"),
}
_PAPER_CANDIDATES = CandidateConfig().model_dump(mode="json")


class DomainConfig(BaseModel):
    """One data set: the sections of a run's configuration that belong to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: dict[str, Any] = Field(description="as in a run's configuration")
    llm: dict[str, Any] = Field(default={}, description="as in a run's configuration; laid over the shared `llm`")
    item_vectors: dict[str, Any] = Field(default={}, description="as `llm`")
    pairs: dict[str, Any] = Field(default={}, description="as in a run's configuration")
    backbones: tuple[str, ...] | None = Field(
        default=None, description="of the matrix, those that are trained on it; None: all"
    )
    arms: tuple[str, ...] | None = Field(default=None, description="as backbones")


class AblationConfig(BaseModel):
    """The matrix of `sllmr ablate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shared: dict[str, Any] = Field(
        default={}, description="a run's configuration without `data`, the same for every cell of the matrix"
    )
    domains: dict[str, DomainConfig] = Field(min_length=1, description="by name")
    backbones: tuple[str, ...] = Field(default=tuple(BACKBONES), min_length=1, description="of models.backbones")
    arms: tuple[str, ...] = Field(default=tuple(ARMS), min_length=1, description="built-in ones and own_arms")
    own_arms: dict[str, Arm] = Field(
        default={},
        description="further arms by name, see pipeline/ablation/arms.py; `like` names a built-in arm, of which the "
        "other keys are changes",
    )
    seeds: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1, description="each cell is trained once with each")
    tuned: str | None = Field(
        default=None, description="file of hyper-parameters by arm, as `sllmr ablate --tune` writes it"
    )
    tuning: TuningConfig = TuningConfig()
    ranking: RankingConfig = RankingConfig()

    @field_validator("own_arms", mode="before")
    @classmethod
    def _changes_of_built_in_arms(cls, own_arms: Any) -> Any:
        if not isinstance(own_arms, dict):
            return own_arms
        return {name: _laid_over(name, arm) for name, arm in own_arms.items()}

    @model_validator(mode="after")
    def _names_are_known(self) -> "AblationConfig":
        for what, names, known in (
            ("backbones", self.backbones, BACKBONES),
            ("arms", self.arms, {**ARMS, **self.own_arms}),
        ):
            unknown = [name for name in names if name not in known]
            _refuse_old_arms(what, unknown)
            if unknown:
                raise ValueError(f"{what} must be among {', '.join(known)}, got {', '.join(unknown)}")
            if len(set(names)) < len(names):
                raise ValueError(f"{what} must differ from each other, got {', '.join(names)}")
        for what, some, all_of_them in (
            *((f"own_arms.{name}.backbones", arm.backbones, self.backbones) for name, arm in self.own_arms.items()),
            *((f"domains.{name}.backbones", own.backbones, self.backbones) for name, own in self.domains.items()),
            *((f"domains.{name}.arms", own.arms, self.arms) for name, own in self.domains.items()),
        ):
            if unknown := sorted(set(some or ()) - set(all_of_them)):
                _refuse_old_arms(what, unknown)
                raise ValueError(f"{what} must be among {', '.join(all_of_them)}, got {', '.join(unknown)}")
        for name, arm in self.own_arms.items():
            domain, _, source = (arm.gate_from or "").partition("/")
            if arm.gate_from and (domain not in self.domains or source not in self.arms):
                _refuse_old_arms(f"own_arms.{name}.gate_from", [source])
                raise ValueError(
                    f"own_arms.{name}.gate_from must be `domain/arm`, both of this matrix, got {arm.gate_from}"
                )
        if NONE not in self.arms:
            raise ValueError(f"arms must hold {NONE}, which all others are compared with, got {', '.join(self.arms)}")
        taken = sorted(set(self.own_arms) & set(ARMS))
        if taken:
            raise ValueError(f"own_arms must have names of their own, got the built-in {', '.join(taken)}; rename them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {list(self.seeds)}")
        return self

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return self.own_arms.get(name) or ARMS[name]

    @property
    def has_text_arms(self) -> bool:
        """Whether some arm has the item vectors as inputs."""
        return any(self.arm(name).text_features for name in self.arms)

    @property
    def has_match_arms(self) -> bool:
        """Whether some arm has the text match as an input."""
        return any(self.arm(name).has_text_match for name in self.arms)

    def arms_of(self, domain: str, backbone: str) -> list[str]:
        """Names of the arms that are trained on a domain with a backbone, `none` first."""
        own = self.domains[domain]
        if backbone not in (own.backbones or self.backbones):
            return []
        arms = [NONE, *(name for name in own.arms or self.arms if name != NONE)]
        return [name for name in arms if backbone in (self.arm(name).backbones or self.backbones)]


def _refuse_old_arms(where: str, names: Iterable[str]) -> None:
    for name in names:
        if name in RENAMED_ARMS:
            raise ValueError(f"{where}: the arm {name} was renamed; write {RENAMED_ARMS[name]}")


def _laid_over(name: str, arm: Any) -> Any:
    """The keys of an own arm, laid over those of the built-in arm that its `like` names."""
    if not isinstance(arm, dict) or "like" not in arm:
        return arm
    changes = dict(arm)
    like = changes.pop("like")
    if like not in ARMS:
        _refuse_old_arms(f"own_arms.{name}.like", [like])
        raise ValueError(f"own_arms.{name}.like must be among {', '.join(ARMS)}, got {like}")
    base = ARMS[like].model_dump(exclude_defaults=True)
    for section in _SECTIONS:
        if section in base and isinstance(changes.get(section), dict):
            changes[section] = {**base[section], **changes[section]}
    return {"tuned_as": like, **base, **changes}


class Ablation:
    """A matrix as read from its file, with the configuration of each cell."""

    def __init__(self, config: AblationConfig, file: pathlib.Path, tuned: "Tuned"):
        self.config = config
        self._file = file
        self._tuned = tuned

    def with_tuned(self, tuned: "Tuned") -> "Ablation":
        """The same matrix with other tuned hyper-parameters."""
        return Ablation(self.config, self._file, tuned)

    def domain(self, domain: str) -> Config:
        """The configuration that prepares a domain's rows, scores and pairs.

        Raises:
            ConfigError: a section breaks a rule.
        """
        own = self.config.domains[domain]
        shared = self.config.shared
        llm = {**shared.get("llm", {}), **own.llm}
        values = {
            **shared,
            **{section: {**defaults, **shared.get(section, {})} for section, defaults in _PAPER.items()},
            "name": domain,
            "data": own.data,
            "llm": {**llm, "candidates": {**_PAPER_CANDIDATES, **llm.get("candidates", {})}},
            "item_vectors": {**shared.get("item_vectors", {}), **own.item_vectors},
            "pairs": {**PairConfig().model_dump(mode="json"), **shared.get("pairs", {}), **own.pairs},
            # Gives the domain vectors if any arm reads them; each cell sets for itself whether they are its inputs.
            "model": {**_PAPER["model"], **shared.get("model", {}), "item_vectors": self._reads_item_vectors(domain)},
        }
        return with_absolute_paths(validate_config(values, self._file), self._file)

    def _reads_item_vectors(self, domain: str) -> bool:
        arms = (arm for backbone in self.config.backbones for arm in self.config.arms_of(domain, backbone))
        return any(self.config.arm(arm).text_features for arm in arms)

    def cell(self, domain: str, backbone: str, arm: str, seed: int) -> Config:
        """The configuration of one training.

        Layers, each laid over those before it: what is shared, the backbone and its tuned hyper-parameters, those of
        the arm, the arm itself, the seed. So every arm builds on the tuned baseline that has the same inputs.
        """
        made = self.config.arm(arm)
        base = self.domain(domain)
        layers = [
            {"model": {"backbone": backbone}},
            self._tuned.of_backbone(backbone, made),
            self._tuned.arms.get(made.tuned_as or arm, {}),
            {"model": {"item_vectors": made.text_features}},
            {section: getattr(made, section) for section in _SECTIONS},
            {"train": {"seed": seed}},
        ]
        values = base.model_dump(mode="json")
        for layer in layers:
            for section, changes in layer.items():
                values[section] = {**values[section], **changes}
        config = with_absolute_paths(validate_config(values, self._file), self._file)
        if config.train.warm_start:
            raise ConfigError(
                "train.warm_start must be false in a matrix, whose arms have no earlier model, got true; remove it"
            )
        return config

    def hyperparameters(self, config: Config) -> dict[str, dict[str, Any]]:
        """The configuration that decides a training, apart from rows and pairs, without paths."""
        values: dict[str, dict[str, Any]] = {}
        for section in _SECTIONS:
            values[section] = getattr(config, section).model_dump(mode="json")
        path = values["gate"]["weights_from"]
        values["gate"]["weights_from"] = path and pathlib.Path(path).name
        # Under the key and with the name that the vectors have in committed results.
        vectors = pathlib.Path(config.item_vectors.file or BUNDLED_VECTORS).name
        values["model"]["item_vectors_file"] = vectors if values["model"].pop("item_vectors") else None
        if values["train"]["compare"]:  # as in results from before arms had the key
            del values["train"]["compare"]
        del values["train"]["compare_vectors"]  # a cell scores its pairs once
        if not values["model"]["text_match"]:  # younger than the committed results
            del values["model"]["text_match"]
        if not values["train"]["item_dropout"]:  # as in results from before the key
            del values["train"]["item_dropout"]
        for key in ("strategy", "mixed_precision", "warm_start"):  # younger than the committed results
            if not values["train"][key]:
                del values["train"][key]
        return values


def load_ablation(path: pathlib.Path, *, read_tuned: bool = True) -> Ablation:
    """Reads and checks the file and every cell of its matrix. Relative paths are relative to the file.

    Args:
        path: YAML.
        read_tuned: whether to read the file that `tuned` names.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that breaks a rule.
    """
    file = path.expanduser().resolve()
    config = _read(file, AblationConfig, "--config")
    tuned = Tuned()
    if config.tuned is not None and read_tuned:
        tuned = _read(file.parent / config.tuned, Tuned, "tuned")
    without = tuned.backbones.keys() & set(config.backbones) - tuned.text_backbones.keys()
    if without and config.has_text_arms:
        raise ConfigError(
            f"tuned must hold text_backbones of {', '.join(sorted(without))}, as it holds backbones, for arms with "
            f"item vectors; write {config.tuned} with sllmr ablate --tune"
        )
    ablation = Ablation(config, file, tuned)
    for domain in config.domains:
        for backbone in config.backbones:
            for arm in config.arms_of(domain, backbone):
                ablation.cell(domain, backbone, arm, config.seeds[0])
    return ablation


Sections = dict[str, dict[str, Any]]
"""section -> key -> value"""


class Tuned(BaseModel):
    """The file of tuned hyper-parameters.

    Attributes:
        how: in words: domain, backbone, seed and number of trials.
        backbones: of the arm `none`, by backbone.
        text_backbones: of the arm `text_features`, by backbone; the arms that have the item vectors as inputs stand on
            these.
        match_backbones: of the arm `text_match`, by backbone; the arms that have the text match as an input stand on
            these, and on text_backbones where `text_match` was not tuned.
        arms: on top of either, by arm.
        valid_auc: backbone, `backbone text_features` or arm -> best validation AUC of its trials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    how: str = ""
    backbones: dict[str, Sections] = {}
    text_backbones: dict[str, Sections] = {}
    match_backbones: dict[str, Sections] = {}
    arms: dict[str, Sections] = {}
    valid_auc: dict[str, float] = {}

    def of_backbone(self, backbone: str, arm: Arm) -> Sections:
        """What an arm stands on: the values of the arm without pairs that has the same inputs."""
        if not arm.text_features:
            return self.backbones.get(backbone, {})
        of_text = self.text_backbones.get(backbone, {})
        return self.match_backbones.get(backbone, of_text) if arm.has_text_match else of_text

    @field_validator("arms")
    @classmethod
    def _no_old_arms(cls, arms: dict[str, Sections]) -> dict[str, Sections]:
        _refuse_old_arms("arms", arms)
        return arms


def _read(file: pathlib.Path, kind: type[Any], key: str) -> Any:
    if not file.is_file():
        raise ConfigError(f"{key} must name a file, got {file}, which is not one")
    try:
        return kind.model_validate(read_yaml(file))
    except ValidationError as error:
        raise ConfigError(explain(file, error, kind)) from error

"""The whole configuration, from one YAML file: each layer owns its sections; all are checked before anything runs."""

import difflib
import os
import pathlib
import re
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.example_validator.config import DriftConfig
from sllmr.components.interactions_example_gen.config import DataConfig, check_local
from sllmr.components.item_embedder.config import ItemVectorsConfig
from sllmr.components.llm_scorer.config import EMBEDDING, LlmConfig
from sllmr.components.llm_scorer.store.interface import check_url
from sllmr.components.own_slices import slice_features
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_yield import PairYield
from sllmr.models.config import FITTED_BEFOREHAND, GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.declared_features import ITEM, USER
from sllmr.models.errors import UserError
from sllmr.models.features import row_features
from sllmr.pipeline.beam_config import BeamConfig
from sllmr.pipeline.defaults import with_defaults

PATHS = {
    "data": ("interactions", "items", "users"),
    "llm": ("prompt_file", "replay_table"),
    "item_vectors": ("file",),
    "gate": ("weights_from",),
    "evaluation": ("reference",),
}
"""Keys that hold paths, by section."""

_NAME = r"[a-zA-Z0-9_-]+"
_VARIABLE = re.compile(r"\$\{?[A-Za-z_][A-Za-z0-9_]*\}?")


class ConfigError(UserError):
    """The configuration cannot be used; the message says which key, why, and the fix."""


class ServingConfig(BaseModel):
    """What is tried before a model is pushed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    infra_validation_tag: str | None = Field(
        default=None,
        min_length=1,
        description="tag of the image tensorflow/serving, as deploy/compose.yaml names it: TFX's InfraValidator loads"
        " each model into it, and the Pusher pushes none that it does not load; needs Docker. Without it nothing is"
        " tried",
    )


class Config(BaseModel):
    """The configuration of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(
        default="",
        pattern=rf"^({_NAME})?$",
        description="names the pipeline and the served model; the file's name where empty",
    )
    fetch: Literal["movielens-100k"] | None = Field(
        default=None,
        description="a public data set to download and prepare where data.interactions is missing",
    )
    cache_dir: str = Field(
        default="~/.cache/sllmr",
        description="downloads and every LLM response that was paid for; shared by runs, outside their folders",
    )
    store: str | None = Field(
        default=None,
        description="where LLM responses, budgets, limits, and batches are kept if workers of several machines share "
        "them: postgresql://user@host/database, without the password, which is read from the environment variable "
        "PGPASSWORD or from ~/.pgpass; empty: SQLite files in cache_dir; see docs/runners.md",
    )
    data: DataConfig
    drift: DriftConfig = DriftConfig()
    item_vectors: ItemVectorsConfig = ItemVectorsConfig()
    llm: LlmConfig = LlmConfig()
    pairs: PairConfig = PairConfig()
    model: ModelConfig = ModelConfig()
    gate: GateConfig = GateConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()
    beam: BeamConfig = BeamConfig()

    @model_validator(mode="before")
    @classmethod
    def _design_that_won(cls, values: Any) -> Any:
        return with_defaults(values)

    @field_validator("store")
    @classmethod
    def _store_holds_no_secret(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return check_url(value)
        except ValueError as error:
            raise ValueError(f"store {error}") from None

    @model_validator(mode="after")
    def _loss_asks_the_gate(self) -> "Config":
        asking = {"pairwise": FITTED_BEFOREHAND, "distillation": ("stacked",), "pointwise": ()}[self.loss.form]
        if self.loss.llm_weight > 0 and self.gate.mode in FITTED_BEFOREHAND and self.gate.mode not in asking:
            raise ValueError(
                f"loss.form {self.loss.form} does not use a gate of mode {self.gate.mode}; set loss.form to pairwise"
                f"{' or distillation' if self.gate.mode == 'stacked' else ''}, or another gate.mode"
            )
        return self

    @model_validator(mode="after")
    def _inconsistent_pairs_can_be_known(self) -> "Config":
        if self.pairs.drop_inconsistent and not self.llm.audit.fraction and self.llm.replay_table is None:
            raise ValueError(
                "pairs.drop_inconsistent needs contexts that are queried in two orders, got llm.audit.fraction 0; set "
                "llm.audit.fraction (1 queries all of them twice) or remove pairs.drop_inconsistent"
            )
        return self

    @model_validator(mode="after")
    def _item_vectors_have_a_source(self) -> "Config":
        for key, reads, other in (
            ("model.item_vectors", self.model.item_vectors, "model.item_vectors: false"),
            (f"llm.strategy {EMBEDDING}", self.llm.strategy == EMBEDDING, "another llm.strategy"),
        ):
            if reads and self.item_vectors.source == "none":
                raise ValueError(
                    f"{key} needs vectors, got item_vectors.source none; set item_vectors.source: bundled, or {other}"
                )
        return self

    @model_validator(mode="after")
    def _drift_is_of_features(self) -> "Config":
        names = {feature.name for feature in row_features(self.data.feature_sizes, has_weights=self.data.has_weights)}
        for key in ("max_drift", "max_skew"):
            if unknown := sorted(getattr(self.drift, key).keys() - names):
                raise ValueError(
                    f"drift.{key} must name features of a row, got {', '.join(unknown)}; valid: "
                    f"{', '.join(sorted(names))}"
                )
        return self

    @model_validator(mode="after")
    def _prompts_hold_declared_features(self) -> "Config":
        for table in (ITEM, USER):
            declared = [f.name for f in self.data.feature_sizes.of_tables(table)]
            for name in getattr(self.llm.prompt_features, table):
                if name not in declared:
                    raise ValueError(
                        f"llm.prompt_features.{table} must name features of data.features.{table}, got {name!r}; "
                        f"declared: {', '.join(declared) or 'none'}"
                    )
        return self

    @model_validator(mode="after")
    def _slices_are_by_declared_features(self) -> "Config":
        try:
            slice_features(self.evaluation.slices, self.data.feature_sizes.declared)
        except ValueError as error:
            raise ValueError(f"evaluation.slices: {error}") from None
        return self

    @model_validator(mode="after")
    def _vectors_can_be_compared(self) -> "Config":
        if not self.train.compare_vectors or self.loss.llm_weight == 0:
            return self
        if not self.train.compare:
            raise ValueError("train.compare_vectors needs train.compare, got false; set train.compare: true")
        if self.item_vectors.source == "none":
            raise ValueError(
                "train.compare_vectors needs item vectors, got item_vectors.source none; set it to bundled, or "
                "train.compare_vectors: false"
            )
        if self.llm.strategy == EMBEDDING:
            raise ValueError(
                "train.compare_vectors needs another scorer to compare the vectors with, got llm.strategy embedding; "
                "set train.compare_vectors: false"
            )
        return self

    @model_validator(mode="after")
    def _warm_start_has_dates(self) -> "Config":
        if self.train.warm_start and self.data.split.strategy != "global_date":
            raise ValueError(
                "train.warm_start needs a split by date, so that the earlier model has seen no row that is held out "
                f"today, got data.split.strategy {self.data.split.strategy}; set data.split: "
                "{strategy: global_date}, or remove train.warm_start"
            )
        return self

    @property
    def pair_yield(self) -> PairYield:
        """How many preference pairs a scoring context makes."""
        return PairYield(
            per_context=self.llm.candidates.per_context,
            calibration_fraction=self.llm.candidates.calibration_fraction,
            negatives_per_target=self.llm.candidates.negatives_per_target,
            max_per_context=self.pairs.max_per_context,
            selection=self.pairs.selection,
        )

    @property
    def uses_item_vectors(self) -> bool:
        """Whether a step reads item vectors, so that ItemEmbedder runs."""
        compared = self.train.compare_vectors and self.loss.llm_weight > 0
        return self.model.item_vectors or self.scorer_reads_item_vectors or compared

    @property
    def scorer_reads_item_vectors(self) -> bool:
        """Whether the LLM scorer reads item vectors: for its scores, or to find candidates near a history."""
        if self.loss.llm_weight == 0 or self.item_vectors.source == "none":
            return False
        return self.llm.strategy == EMBEDDING or self.llm.candidates.similar_per_context > 0


def load_config(path: str | os.PathLike[str]) -> Config:
    """Reads and checks a YAML file. Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that breaks a rule.
    """
    file = pathlib.Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"--config must name a file, got {file}, which is not one")
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} must hold keys and values, got {type(values).__name__}; at least data.interactions and data.items"
        )
    return with_absolute_paths(validate_config(values, file), file)


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{self.name}:{line}: every key must stand once, got {key.value!r} again after line"
                    f" {lines[key.value]}; join the two"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(file: pathlib.Path) -> Any:
    """What a YAML file holds.

    Raises:
        ConfigError: not YAML, not UTF-8, or a key that stands twice.
    """
    try:
        with open(file, encoding="utf-8") as text:
            return yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} must be UTF-8 text, but: {error}; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error


def validate_config(values: dict[str, Any], file: pathlib.Path) -> Config:
    """Checks values that come from `file`.

    Raises:
        ConfigError: an unknown key, or a value that breaks a rule.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(file, error, Config)) from error


def with_absolute_paths(config: Config, file: pathlib.Path) -> Config:
    """The configuration with relative paths resolved from the folder of `file`; `name` defaults to that of `file`.

    `~` and environment variables ($HOME) in paths are replaced.

    Raises:
        ConfigError: a variable that is not set, an address in place of a path, or a file's name that cannot be `name`.
    """

    def absolute(key: str, path: str | None) -> str | None:
        if not path:
            return path
        try:
            expanded = os.path.expandvars(check_local(path))
        except ValueError as error:
            raise ConfigError(f"{file}: {key} {error}") from None
        unset = _VARIABLE.search(expanded)
        if unset and not os.path.exists(file.parent / expanded):
            raise ConfigError(
                f"{file}: {key} names the environment variable {unset[0]}, which is not set; set it or write the path"
            )
        return os.path.normpath(file.parent / pathlib.Path(expanded).expanduser())

    sections = {}
    for name, keys in PATHS.items():
        section = getattr(config, name)
        changes = {key: absolute(f"{name}.{key}", getattr(section, key)) for key in keys}
        sections[name] = section.model_copy(update=changes)
    name = config.name or file.stem
    if not re.fullmatch(_NAME, name):
        raise ConfigError(
            f"{file}: name must hold letters, digits, _ and - alone, got {name!r} from the file's name;"
            f" rename the file or set name: {re.sub(r'[^a-zA-Z0-9_-]+', '-', name).strip('-') or 'shop'}"
        )
    cache_dir = absolute("cache_dir", config.cache_dir)
    return config.model_copy(update={**sections, "name": name, "cache_dir": cache_dir})


def explain(file: pathlib.Path, error: ValidationError, kind: type[BaseModel]) -> str:
    """What is wrong with `file`, one line a broken rule; `kind` is what it should hold."""
    lines = [f"{file} breaks {error.error_count()} rule(s):"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown key; {_valid_keys(problem['loc'], kind)}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: missing; it has no default")
        elif problem["type"] == "value_error":
            # The message of our own rules holds the value, if it may be shown.
            # A rule about several sections has no key of its own.
            lines.append(f"  {key and f'{key}: '}{problem['msg'].removeprefix('Value error, ')}")
        elif key.startswith("llm.") and isinstance(problem["input"], str):
            lines.append(f"  {key}: {problem['msg']}")  # without the value: it may be a key that was put there
        else:
            fix = "; write it in quotes" if problem["type"] == "string_type" else ""
            lines.append(f"  {key}: {problem['msg']}, got {problem['input']!r}{fix}")
    return "\n".join(lines)


def _valid_keys(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    model: Any = kind
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return "run make docs and see build/site/reference/configuration for the valid ones"
        model = field.annotation
    valid = sorted(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), valid, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"

"""The whole configuration: one YAML file, composed here of what each layer owns, checked before anything runs."""

import difflib
import os
import pathlib
import re
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from components.interactions_example_gen.config import DataConfig
from components.llm_scorer.config import LlmConfig
from components.pair_builder.config import PairConfig
from models.config import FITTED_BEFOREHAND, GateConfig, LossConfig, ModelConfig, TrainConfig
from pipeline.slices import SliceName

_PATHS = {
    "data": ("interactions", "items"),
    "llm": ("prompt_file", "embedding_file", "replay_table"),
    "model": ("item_vectors_file",),
    "gate": ("weights_from",),
}
"""Keys that hold paths, by section."""

_DASK_RUNNER = "pipeline.dask_runner.DaskRunner"


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key, why, and the fix."""


class EvaluationConfig(BaseModel):
    """What a model must show on the test rows before it is pushed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_auc: dict[SliceName, float] = Field(
        default={"overall": 0.5},
        description="lowest AUC at which a model is blessed, by slice; a slice without rows blocks it",
    )
    max_drop: dict[SliceName, float] = Field(
        default={"overall": 0.01, "cold": 0.02, "tail": 0.02},
        description="largest loss of AUC against the last blessed model on the same rows, by slice",
    )
    confidence_intervals: bool = Field(
        default=True, description="95% intervals of every AUC by TFMA's Poisson bootstrap (20 resamples)"
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> "EvaluationConfig":
        for key in ("min_auc", "max_drop"):
            for name, value in getattr(self, key).items():
                if not 0.0 <= value <= 1.0:
                    raise ValueError(f"{key}.{name} must be in [0, 1], got {value}; set evaluation.{key}.{name}")
        if not self.min_auc:
            raise ValueError("min_auc must name at least one slice, got {}; without it every model would pass")
        return self


class BeamConfig(BaseModel):
    """How Beam runs the data-parallel steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = Field(
        default=("--direct_running_mode=in_memory", "--direct_num_workers=1"),
        description="passed through to Beam: --runner, --direct_running_mode=multi_processing; see deploy/runners.md",
    )

    @field_validator("args")
    @classmethod
    def _not_beams_dask_runner(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("apache_beam.runners.dask" in arg for arg in value):
            raise ValueError(
                f"beam.args must not name Beam's own Dask runner, which writes empty files, got {list(value)}; set "
                "--runner=DaskRunner, which is this project's"
            )
        return value

    @property
    def pipeline_args(self) -> tuple[str, ...]:
        """`args` with Beam's local Python runner where none is named, and this project's Dask runner under its full
        name.

        Beam's own default would first download another runner's binary, unpinned, and use that; and Beam knows no short
        name of a Dask runner.
        """
        if not any(arg.split("=")[0] == "--runner" for arg in self.args):
            return ("--runner=FnApiRunner", *self.args)
        return tuple(re.sub(r"^(--runner=)?DaskRunner$", rf"\1{_DASK_RUNNER}", arg) for arg in self.args)


class Config(BaseModel):
    """A run."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(
        default="",
        pattern=r"^[a-zA-Z0-9_-]*$",
        description="names the pipeline and the served model; the file's name where empty",
    )
    fetch: Literal["movielens-100k"] | None = Field(
        default=None,
        description="a public data set to download and prepare where data.interactions is missing",
    )
    cache_dir: str = Field(
        default="~/.cache/sllmr",
        description="downloads and every LLM answer that was paid for; shared by runs, outside their folders",
    )
    data: DataConfig
    llm: LlmConfig = LlmConfig()
    pairs: PairConfig = PairConfig()
    model: ModelConfig = ModelConfig()
    gate: GateConfig = GateConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    beam: BeamConfig = BeamConfig()

    @model_validator(mode="after")
    def _loss_asks_the_gate(self) -> "Config":
        asking = {"pairwise": FITTED_BEFOREHAND, "distillation": ("fused",), "pointwise": ()}[self.loss.form]
        if self.loss.llm_weight > 0 and self.gate.mode in FITTED_BEFOREHAND and self.gate.mode not in asking:
            raise ValueError(
                f"loss.form {self.loss.form} does not ask a gate of mode {self.gate.mode}; set loss.form to pairwise"
                f"{' or distillation' if self.gate.mode == 'fused' else ''}, or another gate.mode"
            )
        return self

    @model_validator(mode="after")
    def _inconsistent_pairs_can_be_known(self) -> "Config":
        if self.pairs.drop_inconsistent and not self.llm.audit.share and self.llm.replay_table is None:
            raise ValueError(
                "pairs.drop_inconsistent needs contexts that are asked in two orders, got llm.audit.share 0; set "
                "llm.audit.share (1 asks all of them twice) or remove pairs.drop_inconsistent"
            )
        return self


def load_config(path: str | os.PathLike[str]) -> Config:
    """Reads and checks a YAML file. Relative paths in it are relative to the file's folder.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value that breaks a rule.
    """
    file = pathlib.Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"--config must name a file, got {file}, which is not one")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} must hold keys and values, got {type(values).__name__}; at least data.interactions and data.items"
        )
    return with_absolute_paths(validate_config(values, file), file)


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
    """Relative paths made absolute from the folder of `file`; `name` defaults to that of `file`."""

    def absolute(path: str | None) -> str | None:
        return path and os.path.normpath(file.parent / pathlib.Path(path).expanduser())

    sections = {}
    for name, keys in _PATHS.items():
        section = getattr(config, name)
        sections[name] = section.model_copy(update={key: absolute(getattr(section, key)) for key in keys})
    return config.model_copy(
        update={**sections, "name": config.name or file.stem, "cache_dir": absolute(config.cache_dir)}
    )


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
            # Our own rules say themselves what they got, as far as it may be shown.
            # A rule of several sections has no key of its own.
            lines.append(f"  {key and f'{key}: '}{problem['msg'].removeprefix('Value error, ')}")
        elif key.startswith("llm.") and isinstance(problem["input"], str):
            lines.append(f"  {key}: {problem['msg']}")  # without the value: it may be a key that was put there
        else:
            lines.append(f"  {key}: {problem['msg']}, got {problem['input']!r}")
    return "\n".join(lines)


def _valid_keys(location: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    model: Any = kind
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return "see the README for the valid ones"
        model = field.annotation
    valid = sorted(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), valid, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"

"""What a model must show on the test rows before it is pushed."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sllmr.components.evaluator.slices import SLICES
from sllmr.components.own_slices import parse_slices
from sllmr.models.metric_names import RankingMetric

OtherMetric = Literal["per_user_auc", "ndcg_at_10", "hit_rate_at_10", "log_loss", "calibration_error"]
"""Every metric but the pooled AUC, which min_auc and max_drop bound."""

BySlice = dict[str, float]
"""A value by slice: a name of components.evaluator.slices, a text of `slices`, or one of the slices of such a text."""


class EvaluationConfig(BaseModel):
    """What a model must show on the test rows before it is pushed; components.evaluator.decision applies it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_auc: BySlice = Field(default={"overall": 0.5}, description="lowest AUC at which a model is blessed, by slice")
    max_drop: BySlice = Field(
        default={"overall": 0.01, "cold": 0.02, "tail": 0.02},
        description="largest loss of AUC against the last blessed model on the same rows, by slice",
    )
    max_drift: BySlice = Field(
        default={"overall": 0.02, "cold": 0.04, "tail": 0.04},
        description="largest loss of AUC against the reference model on the same rows, by slice, so that many losses"
        " that max_drop allows cannot add up",
    )
    reference: str | None = Field(
        default=None,
        description="folder of the SavedModel that max_drift compares with; without it, the first blessed model of the"
        " output folder",
    )
    beat_popularity: tuple[RankingMetric, ...] = Field(
        default=("auc", "per_user_auc"),
        description="metrics in which the model must not be below popularity on any required slice; [] allows it",
    )
    bounds: dict[OtherMetric, BySlice] = Field(
        default={},
        description="worst value of other metrics at which a model is blessed, by slice: the highest of log_loss and"
        " calibration_error, the lowest of the others",
    )
    max_worsening: dict[OtherMetric, BySlice] = Field(
        default={},
        description="how much worse other metrics may be than the last blessed model's on the same rows, by slice",
    )
    positive_rate: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="fraction of positives among the candidates that are scored in production; the exported scores are"
        " shifted to this rate, which changes no order, and log_loss and calibration_error are measured at it; without"
        " it, at the rate of the test rows, whose negatives are sampled",
    )
    required_slices: tuple[str, ...] = Field(
        default=("overall",),
        description="slices that must be measurable; any other one without positives or negatives is shown and skipped",
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="further slices, by the values of a declared feature (`device`), or by these within cold, warm,"
        " tail, or head (`price x tail`); bounds name all slices of such a text, or one (`device=phone`)",
    )
    min_slice_users: int = Field(
        default=50, ge=2, description="users that a slice of `slices` must have; smaller ones are left out"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_retired_key(cls, values: Any) -> Any:
        if isinstance(values, dict) and "confidence_intervals" in values:
            raise ValueError(
                "confidence_intervals is no longer a key: every AUC has its 95% interval by user; "
                "remove evaluation.confidence_intervals"
            )
        return values

    @model_validator(mode="after")
    def _slices_are_known(self) -> "EvaluationConfig":
        for text in self.slices:
            parse_slices(text)
        named = {key: getattr(self, key) for key in ("min_auc", "max_drop", "max_drift", "required_slices")}
        for key in ("bounds", "max_worsening"):
            named |= {f"{key}.{metric}": by_slice for metric, by_slice in getattr(self, key).items()}
        for key, names in named.items():
            for name in names:
                if name not in SLICES and name not in self.slices and not self._is_one_of_the_slices(name):
                    raise ValueError(
                        f"{key} must name slices, got {name!r}; valid: {', '.join((*SLICES, *self.slices))}"
                        + ("" if self.slices else "; evaluation.slices adds slices by declared features")
                    )
        return self

    def _is_one_of_the_slices(self, name: str) -> bool:
        for wanted in map(parse_slices, self.slices):
            end = f" x {wanted.crossed}" if wanted.crossed else ""
            if name.startswith(f"{wanted.feature}=") and name.endswith(end):
                return True
        return False

    @model_validator(mode="after")
    def _check_ranges(self) -> "EvaluationConfig":
        for key in ("min_auc", "max_drop", "max_drift"):
            _check_range(key, getattr(self, key), highest=1.0)
        for key in ("bounds", "max_worsening"):
            for metric, by_slice in getattr(self, key).items():
                _check_range(f"{key}.{metric}", by_slice, highest=None if metric == "log_loss" else 1.0)
        if not self.min_auc:
            raise ValueError("min_auc must name at least one slice, got {}; without it every model would pass")
        return self


def _check_range(key: str, by_slice: Mapping[str, float], highest: float | None) -> None:
    for name, value in by_slice.items():
        if not value >= 0.0 or (highest is not None and value > highest):
            rule = "at least 0" if highest is None else "in [0, 1]"
            raise ValueError(f"{key}.{name} must be {rule}, got {value}; set evaluation.{key}.{name}")

"""How far the data may move from the last run's, and the test rows from the train rows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sllmr.models import features

_DEFAULT = {
    features.ITEM_CATEGORIES: 0.05,
    features.ITEM_BRAND: 0.05,
    features.HISTORY_LENGTH: 0.1,
    features.IS_COLD: 0.05,
    features.LABEL: 0.01,
}

OnAnomaly = Literal["warn", "fail"]


class DriftConfig(BaseModel):
    """How far distributions of features may lie apart.

    A feature of strings is compared by the L-infinity distance, the largest change of the fraction of one value; a
    numeric one by the Jensen-Shannon divergence, from 0 to 1. Source of the defaults: docs/evaluation.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_drift: dict[str, float] = Field(
        default=_DEFAULT,
        description="largest distance between the train rows of this run and of the last one, by feature; {} compares"
        " nothing",
    )
    max_skew: dict[str, float] = Field(
        default=_DEFAULT,
        description="largest distance between the train rows and the test rows of this run, by feature; {} compares"
        " nothing",
    )
    on_drift: OnAnomaly = Field(default="warn", description="fail: a larger drift stops the run before any LLM query")
    on_skew: OnAnomaly = Field(default="warn", description="fail: a larger skew stops the run likewise")

    @model_validator(mode="after")
    def _check_thresholds(self) -> "DriftConfig":
        for key in ("max_drift", "max_skew"):
            for name, threshold in getattr(self, key).items():
                if not 0 <= threshold <= 1:
                    raise ValueError(f"{key}.{name} must be in [0, 1], got {threshold}; set drift.{key}.{name}")
        return self

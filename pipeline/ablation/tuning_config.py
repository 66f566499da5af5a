"""How much tuning every arm gets."""

from pydantic import BaseModel, ConfigDict, Field


class TuningConfig(BaseModel):
    """The same number of trials for each backbone's baseline, and on top of it for every arm, compared by validation
    AUC with the test rows untouched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=6, ge=1, description="trainings for each backbone and each arm")
    domain: str | None = Field(default=None, description="where to tune; the first domain where empty")
    backbone: str = Field(default="dcnv2", description="on which the arms are tuned, for all backbones")
    seed: int = Field(default=0, ge=0, description="of the trainings and of the search; no seed of the matrix")

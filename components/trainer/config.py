"""Configuration of the Trainer: everything that run_fn needs beside artifacts."""

from pydantic import BaseModel, ConfigDict

from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.features import FeatureSizes


class TrainerConfig(BaseModel):
    """The models' own configurations, composed.

    Attributes:
        sizes: L and C of the rows.
        model, gate, loss, train: see models/config.py.
        positive_rate: see evaluation.positive_rate; the exported scores are shifted to it. None shifts nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: FeatureSizes = FeatureSizes()
    model: ModelConfig = ModelConfig()
    gate: GateConfig = GateConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    positive_rate: float | None = None

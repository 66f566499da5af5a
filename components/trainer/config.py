"""Configuration of the Trainer: everything that run_fn needs beside artifacts."""

from pydantic import BaseModel, ConfigDict

from models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from models.features import FeatureSizes


class TrainerConfig(BaseModel):
    """The models' own configurations, composed.

    Attributes:
        sizes: L and C of the rows.
        model, gate, loss, train: see models/config.py.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sizes: FeatureSizes = FeatureSizes()
    model: ModelConfig = ModelConfig()
    gate: GateConfig = GateConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

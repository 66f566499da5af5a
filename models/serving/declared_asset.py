"""The declared features of a served model, in a file among its assets; read to put another catalog into the model."""

import os
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from sllmr.models import artifact_files
from sllmr.models.declared_features import DeclaredFeature, TrainNumbers

FILE_NAME = "declared_features.json"


class DeclaredAsset(BaseModel):
    """The declared features of a served model, and the buckets or the scale of each numeric one, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    declared: tuple[DeclaredFeature, ...] = ()
    numbers: dict[str, TrainNumbers] = {}


def write_declared(directory: str, declared: tuple[DeclaredFeature, ...], numbers: Mapping[str, TrainNumbers]) -> str:
    """Writes the file and returns its path."""
    path = os.path.join(directory, FILE_NAME)
    with open(path, "w", encoding="utf-8") as file:
        file.write(DeclaredAsset(declared=declared, numbers=dict(numbers)).model_dump_json(indent=1) + "\n")
    return path


def read_declared(model: str) -> DeclaredAsset:
    """Reads the file from the folder of a SavedModel; a model without declared features has none."""
    path = os.path.join(model, "assets", FILE_NAME)
    if not artifact_files.exists(path):
        return DeclaredAsset()
    with artifact_files.open(path) as file:
        return DeclaredAsset.model_validate_json(file.read())

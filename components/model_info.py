"""What an exported model says about its own training, in assets.extra/model.json."""

import hashlib
import importlib.metadata
import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sllmr.components.interactions_example_gen.data_report import DataReport, read_report
from sllmr.models import artifact_files
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes

FILE_NAME = os.path.join("assets.extra", "model.json")
"""In the SavedModel's folder. TensorFlow Serving ignores it."""

_PACKAGES = ("sllmr", "tensorflow", "tf_keras")


class Period(BaseModel):
    """First and last time of the interactions behind some rows, ISO 8601; None if there are no rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str | None
    last: str | None


class ModelInfo(BaseModel):
    """Where a model comes from. Nothing here depends on the LLM or on the time of the training.

    Attributes:
        schema_version: of this layout.
        backbone: see model.backbone.
        sizes: L and C of the rows that it scores.
        use_user_id: whether the user id is an input.
        seed: of the training.
        data_hash: 16 hex digits over the data report: equal data and splits have equal ones.
        splits: period of train, valid and test.
        versions: of the packages that wrote it.
        positive_rate: the rate of positives that the exported scores are shifted to; None: that of the train rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    backbone: str
    sizes: FeatureSizes
    use_user_id: bool
    seed: int
    data_hash: str
    splits: dict[str, Period]
    versions: dict[str, str]
    positive_rate: float | None = None

    @property
    def trained_until(self) -> str | None:
        """The last time that training saw: validation rows choose the epoch, so they count."""
        times = [period.last for name, period in self.splits.items() if name != "test" and period.last]
        return max(times, default=None)


def data_hash(report: DataReport) -> str:
    """See ModelInfo.data_hash."""
    return hashlib.sha256(report.model_dump_json().encode()).hexdigest()[:16]


def make_model_info(
    report_directory: str,
    *,
    backbone: str,
    sizes: FeatureSizes,
    use_user_id: bool,
    seed: int,
    positive_rate: float | None = None,
) -> ModelInfo:
    """The ModelInfo of a model that is trained now on the data of the report in `report_directory`."""
    report = read_report(report_directory)
    return ModelInfo(
        backbone=backbone,
        sizes=sizes,
        use_user_id=use_user_id,
        seed=seed,
        data_hash=data_hash(report),
        splits={name: Period(first=split.first, last=split.last) for name, split in report.splits.items()},
        versions={package: importlib.metadata.version(package) for package in _PACKAGES},
        positive_rate=positive_rate,
    )


def write_model_info(info: ModelInfo, directory: str) -> None:
    """Writes `info` into the SavedModel of `directory`."""
    file = os.path.join(directory, FILE_NAME)
    artifact_files.make_folder(os.path.dirname(file))
    with artifact_files.open(file, "w") as target:
        target.write(info.model_dump_json(indent=1) + "\n")


def read_model_info(directory: str | os.PathLike[str]) -> ModelInfo:
    """Reads it from the SavedModel of `directory`.

    Raises:
        UserError: the folder is no SavedModel, or one that this program did not write.
    """
    if not artifact_files.exists(os.path.join(directory, "saved_model.pb")):
        raise UserError(
            f"a model must be the folder of a SavedModel, got {directory}, which has no saved_model.pb; name a "
            "version, as runs/shop/serving/shop/1"
        )
    file = os.path.join(directory, FILE_NAME)
    try:
        with artifact_files.open(file) as source:
            return ModelInfo.model_validate_json(source.read())
    except (OSError, ValidationError) as error:
        raise UserError(
            f"a model must say when it was trained, but {file} cannot be read: {error}; run the pipeline again to "
            "export it with that file"
        ) from None

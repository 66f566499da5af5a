"""How far the train rows lie from other rows, as it is written to drift.json."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmr.models import artifact_files

FILE_NAME = "drift.json"
"""In the anomalies artifact: a DriftReport."""

Against = Literal["last_run", "test"]
Measure = Literal["l_infinity", "jensen_shannon"]

_WORDS = {"l_infinity": "L-infinity distance", "jensen_shannon": "Jensen-Shannon divergence"}


class Distance(BaseModel):
    """How far the train rows lie from other rows in one feature.

    Attributes:
        feature: its name.
        against: the train rows of the last run, or the test rows of this one.
        measure: which distance it is; each lies in [0, 1].
        value, threshold: the measured distance, and the largest allowed one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: str
    against: Against
    measure: Measure
    value: float
    threshold: float

    @property
    def exceeds(self) -> bool:
        """Whether the rows lie farther apart than allowed."""
        return self.value > self.threshold

    @property
    def key(self) -> str:
        """The key of the configuration that asks for this."""
        return f"drift.{'max_drift' if self.against == 'last_run' else 'max_skew'}.{self.feature}"

    @property
    def sentence(self) -> str:
        """The comparison in words and numbers."""
        other = "those of the last run" if self.against == "last_run" else "the test rows"
        return (
            f"{self.feature} of the train rows against {other}: {_WORDS[self.measure]} {self.value:.4f}; {self.key} "
            f"allows {self.threshold:g}"
        )


class DriftReport(BaseModel):
    """The content of drift.json.

    Attributes:
        schema_version: of this layout.
        last_run: folder of the statistics that drift was measured against; None for a first run.
        distances: of drift, then of skew, by feature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    last_run: str | None
    distances: tuple[Distance, ...]

    @property
    def exceeding(self) -> list[Distance]:
        """The distances above their thresholds."""
        return [distance for distance in self.distances if distance.exceeds]

    def sentence(self) -> str:
        """What was compared, and how much of it moved too far, for the terminal and the report."""
        last = "the last run" if self.last_run else "no last run to compare with"
        return f"{len(self.distances)} distances measured ({last}), {len(self.exceeding)} above their thresholds"


def read_drift_report(directory: str) -> DriftReport:
    """Reads drift.json of an anomalies artifact."""
    with artifact_files.open(os.path.join(directory, FILE_NAME)) as file:
        return DriftReport.model_validate_json(file.read())

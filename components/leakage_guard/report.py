"""What LeakageGuard checked and found, as it is written to leakage.json."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmr.models import artifact_files

FILE_NAME = "leakage.json"

MOST_NAMED = 20
"""How many leaks of one kind the report names; it counts all of them."""

Kind = Literal["train_row", "history", "count", "vocabulary", "scores", "pair"]
"""Where a held-out interaction was found: as a train row; in a history that ends before it; in a count or the long
tail, which train rows alone decide; in a vocabulary; in the context of a score; in a preference pair."""


class LeaksOfKind(BaseModel):
    """How many leaks of one kind there are, and the first of them in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    named: list[str]


class LeakageReport(BaseModel):
    """The content of leakage.json.

    Attributes:
        schema_version: of this layout.
        checked: number of rows, catalog items, vocabulary values, score contexts and pairs; what does not exist yet at
            that point of the graph is absent.
        leaks: by kind; empty if there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    checked: dict[str, int]
    leaks: dict[Kind, LeaksOfKind]

    def sentence(self) -> str:
        """What was checked, for the terminal and the report."""
        return "no validation or test interaction in " + ", ".join(
            f"{number:,} {name.replace('_', ' ')}" for name, number in sorted(self.checked.items())
        )


def read_leakage_report(directory: str) -> LeakageReport:
    """Reads leakage.json of a LeakageReport artifact."""
    with artifact_files.open(os.path.join(directory, FILE_NAME)) as file:
        return LeakageReport.model_validate_json(file.read())

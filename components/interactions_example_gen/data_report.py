"""The data report: what InteractionsExampleGen read, dropped and split, as it is written to data_report.json."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from sllmr.models import artifact_files

FILE_NAME = "data_report.json"
_STRICT = ConfigDict(frozen=True, extra="forbid")


class TableReport(BaseModel):
    """Rows of one table.

    Attributes:
        read, kept: numbers of rows.
        dropped: rows that were not used, by reason.
        examples: by reason, the first of them with file, row, rule, value and fix.
    """

    model_config = _STRICT

    read: int
    kept: int
    dropped: dict[str, int]
    examples: dict[str, list[str]]


class InteractionsReport(TableReport):
    """Rows of the interactions; `left_out` counts, by reason, valid ones that make no row of their own."""

    left_out: dict[str, int]


class ItemsReport(TableReport):
    """Rows of the items; `empty_titles` counts items without a title, which no prompt mentions."""

    empty_titles: int


class UsersReport(TableReport):
    """Rows of the users table, and counts of users: with a row, without one, and with a row but no interaction."""

    with_row: int
    without_row: int
    without_interaction: int


class FeatureReport(BaseModel):
    """A declared feature, and in how many rows of each split it is missing."""

    model_config = _STRICT

    table: str
    kind: str
    train_missing: int
    valid_missing: int
    test_missing: int


class UserIdForms(BaseModel):
    """Counts of interactions whose user_id is an integer, written with `.0` at its end and without."""

    model_config = _STRICT

    as_floats: int
    as_integers: int


class SplitStrategy(BaseModel):
    """How the rows were split; only global_date has dates (ISO 8601)."""

    model_config = _STRICT

    strategy: str
    valid_from: str | None = None
    test_from: str | None = None


class SplitReport(BaseModel):
    """One of train, valid and test.

    Attributes:
        rows, positives, users, tail_rows: counts.
        positives_not_in_train, negatives_not_in_train: rows whose item has no positive among the train rows.
        repeated_positives: positives whose item is an earlier positive of the user.
        first, last: ISO 8601 times of its interactions.
    """

    model_config = _STRICT

    rows: int
    positives: int
    users: int
    tail_rows: int
    positives_not_in_train: int
    negatives_not_in_train: int
    repeated_positives: int
    first: str | None
    last: str | None


class NegativesReport(BaseModel):
    """Where negatives come from; `evaluation_hash` tells two sets of evaluation negatives apart."""

    model_config = _STRICT

    kind: Literal["observed", "sampled"]
    seed: int
    positives_without_negative: int
    evaluation_hash: str


class ColdReport(BaseModel):
    """The cold-start slice: its definition and its rows by split."""

    model_config = _STRICT

    definition: str
    by: str
    below: int
    train_rows: int
    valid_rows: int
    test_rows: int
    test_users: int


class TailReport(BaseModel):
    """The long-tail slice: its definition, its items and its rows by split."""

    model_config = _STRICT

    definition: str
    items: int
    items_without_train_positive: int
    max_train_count: int
    train_rows: int
    valid_rows: int
    test_rows: int


class PaperCounts(BaseModel):
    """Counts that the paper's Table 1 gives."""

    model_config = _STRICT

    train_rows: int
    train_rows_with_history_of_at_most_3: int
    long_tail_items: int


class DataReport(BaseModel):
    """The content of data_report.json.

    Attributes:
        problems: by table, what ended its reading.
        unread_columns: by table, the columns that are not read.
        positives_are: what a positive is, in words.
        notices: sentences about what the data do to the results, and about columns and cells that need a look.
        users, items: counts.
        users_table, features: absent without declared features.
    """

    model_config = _STRICT

    schema_version: Literal[2] = 2
    problems: dict[str, str]
    unread_columns: dict[str, list[str]]
    positives_are: str
    notices: list[str]
    users: int
    user_ids: UserIdForms
    items: int
    interactions_table: InteractionsReport
    items_table: ItemsReport
    split: SplitStrategy
    splits: dict[str, SplitReport]
    negatives: NegativesReport
    cold: ColdReport
    tail: TailReport
    paper: PaperCounts
    users_table: UsersReport | None = None
    features: dict[str, FeatureReport] = {}

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        for name in ("users_table", "features"):  # so that data without declared features keep their hash
            if not values[name]:
                del values[name]
        return values

    def table(self, name: str) -> TableReport:
        """The report on the table `interactions`, `items` or `users`."""
        if name == "users":
            assert self.users_table is not None
            return self.users_table
        return self.items_table if name == "items" else self.interactions_table

    def _repeats(self) -> str:
        left_out = self.interactions_table.left_out.get("repeats")
        if left_out is not None:
            return (
                f"repeats: {left_out} positives of items that the user had before left out (data.repeats: first_only)"
            )
        test = self.splits["test"]
        return (
            f"repeats: {test.repeated_positives} of {test.positives} test positives"
            f" ({test.repeated_positives / max(test.positives, 1):.1%}) are items that the user had before"
        )

    def lines(self) -> list[str]:
        """What the terminal says about the data beside the notices, in sentences."""
        lines = [f"positives: {self.positives_are}"]
        spans = [
            f"{name} {split.first[:10]} to {split.last[:10]}"
            for name, split in self.splits.items()
            if split.first and split.last
        ]
        lines += ["; ".join(spans)] if spans else []
        lines.append(self._repeats())
        for table, names in self.unread_columns.items():
            if names:
                lines.append(f"not read of data.{table}: {', '.join(names)}")
        for name, feature in self.features.items():
            missing = feature.train_missing / max(self.splits["train"].rows, 1)
            what = f"{feature.kind} of the {feature.table}"
            lines.append(f"feature {name}: {what}, missing in {missing:.1%} of the train rows")
        return lines


def read_report(directory: str | os.PathLike[str]) -> DataReport:
    """Reads data_report.json of a DataReport artifact."""
    with artifact_files.open(os.path.join(directory, FILE_NAME)) as file:
        return DataReport.model_validate_json(file.read())

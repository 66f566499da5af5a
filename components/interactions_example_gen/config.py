"""What InteractionsExampleGen reads and how it splits it."""

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from models.features import FeatureSizes

ORDER_COLUMNS = ("order", "seq_pos")
"""Names under which a column that orders equal timestamps is found when `columns.order` is not set."""

FROZEN = ConfigDict(frozen=True, extra="forbid")


def iso_to_milliseconds(text: str) -> int:
    """Unix milliseconds of an ISO 8601 date or date-time; UTC where it names no zone.

    Raises:
        ValueError: not ISO 8601.
    """
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1000)


def _check_iso(text: str) -> str:
    try:
        iso_to_milliseconds(text)
    except ValueError:
        raise ValueError(f"must be an ISO 8601 date or date-time, got {text!r}; write 2024-01-31") from None
    return text


IsoTime = Annotated[str, AfterValidator(_check_iso)]


class InteractionColumns(BaseModel):
    """Names of the columns of the interactions table.

    An optional column is found by its default name when there is one; a name that is set must exist; the
    empty string says that there is none.
    """

    model_config = FROZEN

    user_id: str = Field(default="user_id", min_length=1, description="who")
    item_id: str = Field(default="item_id", min_length=1, description="what; an id of the items table")
    timestamp: str = Field(
        default="timestamp",
        min_length=1,
        description="when: Unix seconds, Unix milliseconds (from 1e11 on) or ISO 8601 (UTC by default)",
    )
    label: str | None = Field(
        default=None,
        description="1 the user chose the item, 0 saw it and did not; by default `label` if it exists",
    )
    rating: str | None = Field(
        default=None,
        description="a number that min_rating is compared with; by default `rating` if it exists",
    )
    order: str | None = Field(
        default=None,
        description="a number that orders one user's rows of equal timestamp; by default `order`, or else"
        " `seq_pos`, if it exists. Without one, ties keep the order of the file",
    )


class ItemColumns(BaseModel):
    """Names of the columns of the items table; optional ones as in InteractionColumns."""

    model_config = FROZEN

    item_id: str = Field(default="item_id", min_length=1, description="unique")
    title: str = Field(default="title", min_length=1, description="what a prompt calls the item; cells may be empty")
    categories: str | None = Field(
        default=None,
        description="a path (`Beauty > Makeup > Face`, the root first), a list (`Comedy|Drama`), or a Parquet"
        " list; by default `categories` if it exists",
    )
    brand: str | None = Field(default=None, description="by default `brand` if it exists")
    text: tuple[str, ...] = Field(default=(), description="further columns for prompts, joined by `. `")
    path_separator: str = Field(default=" > ", min_length=1, description="between the levels of a category path")
    list_separator: str = Field(default="|", min_length=1, description="between the categories of a list")


class SplitConfig(BaseModel):
    """Which rows train, validate and test.

    leave_last_two: of a user's n positives in time order, number n tests, n-1 validates, 2 to n-2 train.
    global_date: rows before `valid_from` train, before `test_from` validate, the rest test.
    Source of leave_last_two: the paper's protocol, decoded from its Table 1.
    """

    model_config = FROZEN

    strategy: Literal["leave_last_two", "global_date"] = Field(default="leave_last_two", description="see above")
    valid_fraction: float = Field(default=0.1, gt=0, lt=1, description="global_date: share of positives to validate")
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description="global_date: share of positives to test")
    valid_from: IsoTime | None = Field(default=None, description="global_date: start of valid, instead of fractions")
    test_from: IsoTime | None = Field(default=None, description="global_date: start of test, instead of fractions")

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "valid_fraction + test_fraction must be below 1 to leave rows for training, got"
                f" {self.valid_fraction} + {self.test_fraction}; lower one of them"
            )
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError(
                "valid_from and test_from must be set together, got"
                f" {self.valid_from!r} and {self.test_from!r}; set both or neither"
            )
        if self.valid_from is None or self.test_from is None:
            return self
        if self.strategy != "global_date":
            raise ValueError(
                f"valid_from and test_from need strategy global_date, got {self.strategy!r};"
                " set split.strategy: global_date or remove the dates"
            )
        if iso_to_milliseconds(self.valid_from) >= iso_to_milliseconds(self.test_from):
            raise ValueError(
                f"valid_from must lie before test_from, got {self.valid_from!r} and {self.test_from!r}; swap them"
            )
        return self


class ColdConfig(BaseModel):
    """Which rows belong to the cold-start slice."""

    model_config = FROZEN

    by: Literal["history_length", "user_train_positives"] | None = Field(
        default=None,
        description="what is compared with `below`: the row's earlier positives, or the user's positives"
        " among the train rows; by default the latter for leave_last_two, the former for global_date",
    )
    below: int = Field(default=3, ge=1, description="a row is cold when that number is below this one")


class TailConfig(BaseModel):
    """Which items are the long tail: the least popular ones by positives among the train rows."""

    model_config = FROZEN

    fraction: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share, rounded down, of the items with a train positive; ties in popularity are broken"
        " by the SHA-256 of the item id. Items without a train positive belong to the tail as well",
    )


class DataConfig(BaseModel):
    """What InteractionsExampleGen reads and how it splits it. Only the two tables have no default."""

    model_config = FROZEN

    interactions: str = Field(min_length=1, description="file or glob: .csv, .csv.gz, .parquet or .parquet.gz")
    items: str = Field(min_length=1, description="file or glob, as above")
    columns: InteractionColumns = Field(default=InteractionColumns(), description="columns of the interactions")
    item_columns: ItemColumns = Field(default=ItemColumns(), description="columns of the items")
    min_rating: float | None = Field(
        default=None,
        description="a rating from this one on is a positive; lower ones are known non-positives, which join"
        " no history and are never sampled as the user's negatives. None: every rating is a positive",
    )
    negatives: Literal["sampled", "observed"] | None = Field(
        default=None,
        description="sampled: one for each positive, uniform over the catalogue without the user's own items."
        " observed: the known non-positives themselves. None: observed if some label is 0, else sampled",
    )
    split: SplitConfig = Field(default=SplitConfig(), description="train, valid, test")
    cold: ColdConfig = Field(default=ColdConfig(), description="the cold-start slice")
    tail: TailConfig = Field(default=TailConfig(), description="the long-tail slice")
    sizes: FeatureSizes = Field(default=FeatureSizes(), description="lengths of history and categories")
    seed: int = Field(default=0, ge=0, description="of the sampled negatives and of the order of the rows")
    on_bad_row: Literal["fail", "drop"] = Field(
        default="fail", description="what to do with a malformed row: stop the run, or drop and count it"
    )
    max_dropped_fraction: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of either table; the run fails when more rows than that were dropped",
    )

    @property
    def cold_by(self) -> str:
        """`cold.by`, resolved."""
        if self.cold.by is not None:
            return self.cold.by
        return "user_train_positives" if self.split.strategy == "leave_last_two" else "history_length"

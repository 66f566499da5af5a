"""What InteractionsExampleGen reads and how it splits it."""

import codecs
import datetime
import math
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from sllmr.models.declared_features import INTERACTION, TABLES, DeclaredFeature, FeatureConfig
from sllmr.models.features import FeatureSizes, RowLengths

ORDER_COLUMNS = ("order", "seq_pos")
"""Names under which a column that orders equal timestamps is found when `columns.order` is not set."""

VALID_FROM = "valid_from"
"""Default name of the column with the time from which a row holds, used if no `valid_from` is set."""

DEFAULT_LIST_SEPARATOR, DEFAULT_PATH_SEPARATOR = "|", " > "

FROZEN = ConfigDict(frozen=True, extra="forbid")

_REMOTE = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/+")


def check_local(path: str) -> str:
    """Returns `path` if it is on this machine.

    Raises:
        ValueError: `path` is an address such as s3://bucket/table.parquet; the message repeats only its scheme.
    """
    remote = _REMOTE.match(path)
    if remote:
        raise ValueError(
            f"must be a path on this machine, got an address that starts with {remote[1]}://; download the file or"
            " mount the storage, and name the local path"
        )
    return path


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


def _date_as_text(value: Any) -> Any:
    """The text of an unquoted YAML date; YAML reads one without dashes as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def _today_as_date(value: Any) -> Any:
    return datetime.datetime.now(datetime.UTC).date().isoformat() if value == "today" else value


IsoTime = Annotated[str, BeforeValidator(_date_as_text), AfterValidator(_check_iso)]


class InteractionColumns(BaseModel):
    """Names of the columns of the interactions table.

    If the name of an optional column is not set, the column is found by its default name, if it exists. A name that is
    set must exist. The empty string says that there is no such column.
    """

    model_config = FROZEN

    user_id: str = Field(default="user_id", min_length=1, description="who")
    item_id: str = Field(default="item_id", min_length=1, description="what; an id of the items table")
    timestamp: str = Field(
        default="timestamp",
        min_length=1,
        description="when: Unix seconds, milliseconds, microseconds or nanoseconds, or ISO 8601 (UTC by default)",
    )
    label: str | None = Field(
        default=None,
        description="1 positive, 0 negative: the user saw the item and did not take it; by default `label` if it"
        " exists",
    )
    rating: str | None = Field(
        default=None,
        description="a number that min_rating is compared with; by default `rating` if it exists and min_rating is"
        " set. The empty string: every rating is a positive",
    )
    event_type: str | None = Field(
        default=None,
        description="what happened (view, cart, buy); data.positive_event_types or data.events says what a positive is",
    )
    weight: str | None = Field(
        default=None,
        description="a number of 0 or more that a train row's loss is multiplied by; 0: the interaction is no positive"
        " and trains nothing. A sampled negative has the weight of its positive",
    )
    order: str | None = Field(
        default=None,
        description="a number that orders one user's rows of equal timestamp; by default `order`, or else"
        " `seq_pos`, if it exists. Without one, ties keep the order of the file",
    )
    ignore: tuple[str, ...] = Field(
        default=(),
        description="columns that look like a label, a rating or a type of event and are none: they decide nothing",
    )


class ItemColumns(BaseModel):
    """Names of the columns of the items table; optional ones as in InteractionColumns."""

    model_config = FROZEN

    item_id: str = Field(default="item_id", min_length=1, description="unique")
    title: str = Field(default="title", min_length=1, description="what a prompt calls the item; cells may be empty")
    categories: str | None = Field(
        default=None,
        description="a path (`Beauty > Makeup > Face`, the root first), a list (`Comedy|Drama`), the text of a"
        " Python or JSON list, a Parquet list (of names, or of paths); by default `categories` if it exists",
    )
    brand: str | None = Field(default=None, description="by default `brand` if it exists")
    text: tuple[str, ...] = Field(default=(), description="further columns for prompts, joined by `. `")
    valid_from: str | None = Field(
        default=None,
        description="the time from which the row's features hold, as `timestamp`; an item may then have several rows."
        " By default `valid_from` if it exists and features of items are declared",
    )
    path_separator: str | None = Field(
        default=None,
        min_length=1,
        description="between the levels of a category path; blanks around it do not count. By default `>`, and a"
        " catalog that seems to use another separator stops the run",
    )
    list_separator: str | None = Field(
        default=None, min_length=1, description="between the categories of a list; by default `|`, likewise"
    )


class UserColumns(BaseModel):
    """Names of the columns of the users table; optional ones as in InteractionColumns."""

    model_config = FROZEN

    user_id: str = Field(default="user_id", min_length=1, description="as in the interactions")
    valid_from: str | None = Field(default=None, description="as of the items, by default `valid_from` if it exists")


class FeaturesConfig(BaseModel):
    """The features that the model reads beside ids, categories and brands: by name `kind`, or the keys below."""

    model_config = FROZEN

    user: dict[str, FeatureConfig] = Field(default={}, description="columns of the users")
    item: dict[str, FeatureConfig] = Field(default={}, description="columns of the items")
    interaction: dict[str, FeatureConfig] = Field(
        default={}, description="columns of the interactions whose value is known before the user decides"
    )

    @field_validator(*TABLES, mode="before")
    @classmethod
    def _short_form(cls, features: Any) -> Any:
        if not isinstance(features, dict):
            return features
        for name in features:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)):
                raise ValueError(
                    f"the name of a feature must be letters, digits and _, got {name!r}; name the column in its key"
                    " `column`"
                )
        return {name: {"kind": value} if isinstance(value, str) else value for name, value in features.items()}

    @property
    def declared(self) -> tuple[DeclaredFeature, ...]:
        """All of them, users first."""
        return tuple(
            DeclaredFeature.model_validate({**feature.model_dump(), "name": name, "table": table})
            for table in TABLES
            for name, feature in getattr(self, table).items()
        )


class CsvConfig(BaseModel):
    """How a CSV table is written."""

    model_config = FROZEN

    separator: str = Field(default=",", description='one character between the fields; `"\\t"` is a tab')
    quotes: bool = Field(default=True, description='false: `"` is a character like any other')
    encoding: str = Field(default="utf-8", description="of the text, as Python names it: utf-8, windows-1252, utf-16")

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str) -> str:
        value = {"\\t": "\t", "tab": "\t", "TAB": "\t"}.get(value, value)
        if len(value) != 1 or value in '"\r\n':
            raise ValueError(f"must be one character, got {value!r}; convert a table with a longer separator to commas")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            codecs.lookup(value)
            b"".decode(value)
        except LookupError:
            raise ValueError(f"must be an encoding that Python knows, got {value!r}; write windows-1252") from None
        return value


class SplitConfig(BaseModel):
    """Which rows are for training, validation and test.

    leave_last_two: of a user's n positives in time order, number n is for test, n-1 for validation, 2 to n-2 for
    training.
    global_date: rows before `valid_from` are for training, those before `test_from` for validation, the rest for test.
    Source of leave_last_two: the paper's protocol, decoded from its Table 1.
    """

    model_config = FROZEN

    strategy: Literal["leave_last_two", "global_date"] = Field(default="leave_last_two", description="see above")
    valid_fraction: float = Field(default=0.1, gt=0, lt=1, description="global_date: fraction of positives to validate")
    test_fraction: float = Field(default=0.1, gt=0, lt=1, description="global_date: fraction of positives to test")
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


class WindowBounds(NamedTuple):
    """Unix milliseconds at which the window, its validation and its test rows start, and at which reading ends."""

    start: int
    valid_from: int
    test_from: int
    until: int


DAY = 86_400_000
"""Milliseconds."""


class WindowConfig(BaseModel):
    """The days that a scheduled run takes its rows from.

    Of the days before `until`, the last ones are for test, those before them for validation, and the rest for training.
    An interaction from before the window makes no row, but it stays in the histories of later rows, so that a user's
    history does not change because the window moved. Interactions from `until` on are not read.
    """

    model_config = FROZEN

    days: int = Field(ge=3, description="length of the window, test and validation days included")
    valid_days: int = Field(default=1, ge=1, description="of these, the days that validate")
    test_days: int = Field(default=1, ge=1, description="of these, the last days, which test")
    until: Annotated[IsoTime, BeforeValidator(_today_as_date)] = Field(
        default="today",
        validate_default=True,
        description="end of the window, which is not part of it: an ISO 8601 date or date-time, or `today`: 0:00 UTC of"
        " the day of the run, so that all runs of a day read the same",
    )

    @model_validator(mode="after")
    def _leaves_days_to_train(self) -> "WindowConfig":
        if self.valid_days + self.test_days >= self.days:
            raise ValueError(
                "window.valid_days + window.test_days must be below window.days to leave days for training, got"
                f" {self.valid_days} + {self.test_days} of {self.days}; raise window.days"
            )
        return self

    @property
    def bounds(self) -> WindowBounds:
        """Where the parts start and end."""
        until = iso_to_milliseconds(self.until)
        test_from = until - self.test_days * DAY
        return WindowBounds(until - self.days * DAY, test_from - self.valid_days * DAY, test_from, until)


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
        description="fraction, rounded down, of the items with a train positive; ties in popularity are broken"
        " by the SHA-256 of the item id. Items without a train positive belong to the tail as well",
    )


class DataConfig(BaseModel):
    """What InteractionsExampleGen reads and how it splits it. Only interactions and items have no default."""

    model_config = FROZEN

    interactions: str = Field(
        min_length=1,
        description="file, folder of parts or glob (`**` too): .csv, .csv.gz, .parquet or .parquet.gz; all parts have"
        " the same columns",
    )
    items: str = Field(min_length=1, description="file, folder or glob, as above")
    users: str | None = Field(
        default=None, min_length=1, description="file, folder or glob, as above; needed for features of users alone"
    )
    csv: CsvConfig = Field(default=CsvConfig(), description="how the tables are written, if they are CSV")
    items_csv: CsvConfig | None = Field(default=None, description="how the items are written; by default as `csv`")
    users_csv: CsvConfig | None = Field(default=None, description="how the users are written; by default as `csv`")
    columns: InteractionColumns = Field(default=InteractionColumns(), description="columns of the interactions")
    item_columns: ItemColumns = Field(default=ItemColumns(), description="columns of the items")
    user_columns: UserColumns = Field(default=UserColumns(), description="columns of the users")
    features: FeaturesConfig = Field(default=FeaturesConfig(), description="features of your own, see docs/data.md")
    min_rating: float | None = Field(
        default=None,
        description="a rating from this one on is a positive; lower ones are known non-positives, which join"
        " no history and are never sampled as the user's negatives. None: see columns.rating",
    )
    positive_event_types: tuple[str, ...] = Field(
        default=(),
        description="cells of columns.event_type that are positives; the others are known non-positives, as ratings"
        " below min_rating are",
    )
    events: dict[str, float] = Field(
        default={},
        description="the weight of each value of columns.event_type, as `{view: 0.2, cart: 0.5, purchase: 1}`, instead"
        " of positive_event_types; 0: known not to be a positive. It multiplies the loss of a train row and of the"
        " negative sampled for it, beside columns.weight",
    )
    repeats: Literal["keep", "first_only"] = Field(
        default="keep",
        description="first_only: of a user's positives with the same item the first alone makes a row and joins"
        " histories, whatever its event type",
    )
    timestamp_unit: Literal["seconds", "milliseconds", "microseconds", "nanoseconds"] | None = Field(
        default=None,
        description="of numbers in the timestamp column. None: found from their size, and a number that would lie in"
        " 1970 is refused",
    )
    negatives: Literal["sampled", "observed"] | None = Field(
        default=None,
        description="sampled: one for each positive, uniform over the catalog without the user's own items."
        " observed: the known non-positives themselves. None: observed if some label is 0, else sampled",
    )
    split: SplitConfig = Field(default=SplitConfig(), description="train, valid, test")
    window: WindowConfig | None = Field(
        default=None, description="the days that rows are taken from, for runs on a schedule; None: all"
    )
    cold: ColdConfig = Field(default=ColdConfig(), description="the cold-start slice")
    tail: TailConfig = Field(default=TailConfig(), description="the long-tail slice")
    sizes: RowLengths = Field(default=RowLengths(), description="lengths of history and categories")
    seed: int = Field(default=0, ge=0, description="of the sampled negatives and of the order of the rows")
    on_bad_row: Literal["fail", "drop"] = Field(
        default="fail", description="what to do with a malformed row: stop the run, or drop and count it"
    )
    max_dropped_fraction: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="of each table; the run fails when more rows than that were dropped",
    )

    @field_validator("events")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        wrong = {name: weight for name, weight in value.items() if not 0 <= weight < math.inf}
        if wrong:
            raise ValueError(f"weights must be finite numbers of 0 or more, got {wrong}; write 0 for no positive")
        if value and not any(value.values()):
            raise ValueError(f"some weight must be above 0, got {value}; without one there is no positive")
        return value

    @field_validator("interactions", "items", "users")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        return value and check_local(value)

    @model_validator(mode="after")
    def _event_types_have_a_column(self) -> "DataConfig":
        if self.events and self.positive_event_types:
            raise ValueError(
                "events and positive_event_types must not both say which event types are positives, got"
                f" {self.events} and {list(self.positive_event_types)}; remove positive_event_types"
            )
        if bool(self.positive_event_types or self.events) != bool(self.columns.event_type):
            raise ValueError(
                "columns.event_type and positive_event_types or events must be set together, got"
                f" {self.columns.event_type!r} and {self.events or list(self.positive_event_types)}; set both, for"
                " instance {columns: {event_type: event}, positive_event_types: [buy]}"
            )
        if self.columns.rating and self.min_rating is None:
            raise ValueError(
                f"columns.rating needs min_rating, got {self.columns.rating!r} without one; set data.min_rating, or"
                " data.columns.rating: '' if every rating is a positive"
            )
        return self

    @model_validator(mode="after")
    def _window_splits_by_date(self) -> "DataConfig":
        if self.window is not None and (self.split.strategy != "global_date" or self.split.valid_from is not None):
            raise ValueError(
                "window needs split.strategy global_date without dates of its own, got"
                f" {self.split.strategy!r}, valid_from {self.split.valid_from!r}; set split: {{strategy: global_date}}"
            )
        return self

    @model_validator(mode="after")
    def _features_can_be_read(self) -> "DataConfig":
        _ = self.feature_sizes
        if bool(self.users) != bool(self.features.user):
            raise ValueError(
                f"users and features.user must be set together, got {self.users!r} and {list(self.features.user)}; set"
                " both, for instance {users: users.csv, features: {user: {age_band: categorical}}}"
            )
        columns = self.columns
        known_later = {columns.label or "label", columns.rating or "rating", columns.event_type} - set(columns.ignore)
        for f in self.feature_sizes.of_tables(INTERACTION):
            if f.source in known_later:
                raise ValueError(
                    f"features.interaction.{f.name} must be known before the user decides, got the column"
                    f" {f.source!r}, which says what the user did; remove it, or name the column in columns.ignore if"
                    " it says something else"
                )
        return self

    @property
    def feature_sizes(self) -> FeatureSizes:
        """`sizes` and the declared features, which together fix the columns of a row."""
        return FeatureSizes(
            history=self.sizes.history, categories=self.sizes.categories, declared=self.features.declared
        )

    @property
    def user_table_csv(self) -> CsvConfig:
        """`users_csv`, resolved."""
        return self.users_csv or self.csv

    @property
    def item_table_csv(self) -> CsvConfig:
        """`items_csv`, resolved."""
        return self.items_csv or self.csv

    @property
    def has_weights(self) -> bool:
        """Whether rows carry a weight: not if every positive would have the weight 1."""
        return bool(self.columns.weight) or any(weight not in (0, 1) for weight in self.events.values())

    @property
    def cold_by(self) -> str:
        """`cold.by`, resolved."""
        if self.cold.by is not None:
            return self.cold.by
        return "user_train_positives" if self.split.strategy == "leave_last_two" else "history_length"

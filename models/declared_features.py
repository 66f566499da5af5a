"""Features that a configuration declares: columns of the tables of users, items and interactions, by kind.

A value that is missing has an index of its own, and so has one that the train rows do not hold:

    0            padding: of lists, of histories, and inside a served model
    1..n         the values: of a vocabulary, of hashing buckets, of quantile buckets; 1 of a standardized number
    n + 1        a value that the vocabulary lacks
    n + 2        missing

Raw values are strings or float32; "" and NaN are missing. A list is padded with "".
"""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

USER, ITEM, INTERACTION = TABLES = "user", "item", "interaction"
CATEGORICAL, NUMERIC, LIST = "categorical", "numeric", "list"

UNKNOWN_AFTER, MISSING_AFTER = 1, 2
"""A feature with n values has the index n + UNKNOWN_AFTER for an unknown value, n + MISSING_AFTER for a missing one."""

Value = str | float | tuple[str, ...]
"""A value as read from a table: of a categorical, a numeric or a list feature. None stands for a missing value."""

_KEYS = {
    CATEGORICAL: {"hashing_buckets", "values"},
    NUMERIC: {"scaling", "buckets", "min", "max"},
    LIST: {"hashing_buckets", "values", "max_values", "separator"},
}
"""By kind: the keys that it reads beside `kind`, `column` and `history`."""


class FeatureConfig(BaseModel):
    """A declared feature without its name: the long form of `name: kind`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["categorical", "numeric", "list"] = Field(
        description="categorical: one text; numeric: a number; list: several texts, whose vectors are averaged"
    )
    column: str | None = Field(default=None, min_length=1, description="its column; by default as the feature")
    history: bool = Field(
        default=False, description="of an item: whether the items of the history carry it, too; not if standardized"
    )
    hashing_buckets: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="categorical, list: values share so many vectors by their hash, in place of a vocabulary",
    )
    separator: str = Field(
        default="|",
        min_length=1,
        description="list: between the values of a text cell; JSON and Parquet lists need none",
    )
    max_values: int = Field(default=8, ge=1, le=100, description="list: values kept of a cell, the first ones")
    values: tuple[str, ...] = Field(
        default=(), description="categorical, list: the only values allowed; any other one is a malformed row"
    )
    scaling: Literal["buckets", "standard"] = Field(
        default="buckets",
        description="numeric: buckets of about as many train rows each, or (value - mean) / standard deviation",
    )
    buckets: int = Field(default=10, ge=2, le=1000, description="numeric: how many")
    min: float | None = Field(default=None, description="numeric: the least value allowed, as `values`")
    max: float | None = Field(default=None, description="numeric: the greatest value allowed")

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "FeatureConfig":
        of_some_kind = set().union(*_KEYS.values())
        fields = FeatureConfig.model_fields
        wrong = sorted(key for key in of_some_kind - _KEYS[self.kind] if getattr(self, key) != fields[key].default)
        if wrong:
            raise ValueError(
                f"{wrong[0]} must not be set with kind {self.kind}, got {getattr(self, wrong[0])!r}; remove it"
            )
        if self.history and self.is_standardized:
            raise ValueError("history needs scaling buckets, got standard; set scaling: buckets or remove history")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError(f"min must be below max, got {self.min:g} and {self.max:g}; swap them")
        return self

    @property
    def is_standardized(self) -> bool:
        """Whether the number itself enters the model, and not its bucket."""
        return self.kind == NUMERIC and self.scaling == "standard"

    @property
    def has_vocabulary(self) -> bool:
        """Whether a vocabulary lists the values of the train rows."""
        return self.kind != NUMERIC and self.hashing_buckets is None

    @property
    def fixed_size(self) -> int | None:
        """n of the table at the top of this module; None if n is the size of a vocabulary."""
        if self.kind == NUMERIC:
            return 1 if self.is_standardized else self.buckets
        return self.hashing_buckets


class DeclaredFeature(FeatureConfig):
    """A column of a table that the ranking model reads.

    Attributes:
        name: the feature's column in rows and requests.
        table: the table that has the column. The value of an interaction must be known at request time.
    """

    name: str
    table: Literal["user", "item", "interaction"]

    @property
    def source(self) -> str:
        """The feature's column in the table."""
        return self.column or self.name

    @property
    def dtype(self) -> str:
        """The dtype of raw values, `float32` or `string`."""
        return "float32" if self.kind == NUMERIC else "string"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one raw value, without the batch: (max_values,) for a list, else ()."""
        return (self.max_values,) if self.kind == LIST else ()

    @property
    def missing(self) -> Any:
        """The raw value that stands for a missing one, of the feature's dtype and shape."""
        if self.kind == NUMERIC:
            return float("nan")
        return [b""] * self.max_values if self.kind == LIST else b""

    def encoded(self, value: Value | None) -> Any:
        """Converts a table's value to a row's raw value, of the feature's dtype and shape; None is missing."""
        if value is None:
            return self.missing
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, (list, tuple)):
            return [text.encode() for text in value] + [b""] * (self.max_values - len(value))
        return value

    def is_missing(self, raw: Any) -> bool:
        """Whether a raw value stands for a missing one."""
        return raw != raw if self.kind == NUMERIC else raw == self.missing

    @property
    def index(self) -> str:
        """Name of its index after Transform."""
        return f"{self.name}_index"

    @property
    def value(self) -> str:
        """Name of the standardized number after Transform; 0 where it is missing."""
        return f"{self.name}_value"

    @property
    def history_name(self) -> str:
        """Name of the column that holds the values of the history's items."""
        return f"history_{self.name}"

    @property
    def history_index(self) -> str:
        """Name of that column after Transform."""
        return f"history_{self.name}_index"

    @property
    def numbers(self) -> str:
        """Name of the file in which Transform keeps the statistics of a numeric feature, see TrainNumbers."""
        return f"{self.name}_numbers"


class DeclaredSize(BaseModel):
    """A declared feature and n, the number of its values, see the top of this module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    feature: DeclaredFeature
    values: int = Field(ge=0)


class TrainNumbers(NamedTuple):
    """Statistics of one numeric feature over the train rows.

    Attributes:
        boundaries: of the buckets, rising; a number's bucket is how many boundaries are not above it. Empty if
            standardized.
        mean, deviation: of the numbers if standardized, else 0.
    """

    boundaries: tuple[float, ...] = ()
    mean: float = 0.0
    deviation: float = 0.0

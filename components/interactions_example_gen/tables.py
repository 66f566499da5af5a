"""Reads the tables row by row and checks every row; needs neither Beam nor TFX.

A problem of a whole file raises DataError. A problem of one row comes out as a BadRow in its place, and the
caller decides: see DataConfig.on_bad_row.
"""

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sllmr.components.catalog import ALWAYS, Item, Version
from sllmr.components.interactions_example_gen.cells import (
    LABELS,
    RowError,
    canonical_id,
    id_difference,
    is_null_like,
    line_of,
    looks_like_list,
    other_separator,
    parse_categories,
    parse_id,
    parse_timestamp,
    text_of,
)
from sllmr.components.interactions_example_gen.columns import (
    UnreadColumns,
    check_tables,
    interaction_columns,
    item_columns,
    user_columns,
)
from sllmr.components.interactions_example_gen.config import DEFAULT_LIST_SEPARATOR, DEFAULT_PATH_SEPARATOR, DataConfig
from sllmr.components.interactions_example_gen.encoding import repaired
from sllmr.components.interactions_example_gen.feature_cells import parse_feature
from sllmr.components.interactions_example_gen.files import DataError, open_table, table_paths
from sllmr.models.declared_features import INTERACTION, ITEM, USER, DeclaredFeature, Value

__all__ = [
    "LOW_RATED",
    "MAX_TEXT_CHARACTERS",
    "OBSERVED_NEGATIVE",
    "POSITIVE",
    "BadRow",
    "DataError",
    "Interaction",
    "ItemCells",
    "UnknownItems",
    "UnreadColumns",
    "UserRow",
    "catalog_notices",
    "catalog_problem",
    "check_tables",
    "read_interactions",
    "read_items",
    "read_users",
    "table_paths",
]

POSITIVE = 1
OBSERVED_NEGATIVE = 0
LOW_RATED = -1
"""Kinds of interaction: positive; labeled 0; not labeled 0, but rated below DataConfig.min_rating, of weight 0, or of
an event type that is not positive."""


MAX_TEXT_CHARACTERS, MAX_BRAND_CHARACTERS = 2_000, 200
"""Bounds of Item.text and Item.brand; a prompt takes less of them."""


class BadRow(NamedTuple):
    """One row that was not used.

    Attributes:
        file: as configured.
        row: line of a CSV file as an editor counts them, or 0-based row of a Parquet file.
        reason: short name, the key in the report.
        problem: rule, value and fix; never a user id.
    """

    file: str
    row: int
    reason: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.problem}"


class Interaction(NamedTuple):
    """One valid row of the interactions.

    Attributes:
        user_id, item_id: not empty.
        timestamp: Unix milliseconds.
        order: rank within equal timestamps; 0 if there is no such column.
        kind: POSITIVE, OBSERVED_NEGATIVE or LOW_RATED.
        file, row: as in BadRow.
        nanoseconds: within the millisecond.
        weight: of the row in training, 0 or more; 1 without columns.weight and events.
        declared: values of the declared features of interactions, in their order; None where missing.
    """

    user_id: str
    item_id: str
    timestamp: int
    order: float
    kind: int
    file: str
    row: int
    nanoseconds: int = 0
    weight: float = 1.0
    declared: tuple[Value | None, ...] = ()


def read_interactions(path: str, config: DataConfig) -> Iterator[Interaction | BadRow]:
    """Every row of one interactions file, in the order of the file.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    with open_table(path, config.csv, "data.csv") as table:
        columns = interaction_columns(table, config)
        declared = config.feature_sizes.of_tables(INTERACTION)
        for number, values in table.rows(columns):
            if isinstance(values, RowError):
                yield BadRow(path, number, values.reason, values.problem)
                continue
            try:
                yield _interaction(values, config, declared, path, number)
            except RowError as error:
                yield BadRow(path, number, error.reason, error.problem)


@dataclasses.dataclass
class ItemCells:
    """What read_items met in the cells of the items.

    Attributes:
        null_like: by column, how many cells hold what a program writes for a missing value; they count as empty.
        html: by column, how many cells hold HTML, and the first of them.
        twice_encoded: by column, how many cells were written as UTF-8 and read as another encoding, and the first.
        categories: the plain text cells of the categories, at most MAX_CATEGORY_CELLS.
    """

    null_like: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    html: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    twice_encoded: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    categories: list[str] = dataclasses.field(default_factory=list)

    def see(self, columns: Sequence[str | None], values: Sequence[Any]) -> None:
        """Counts one row."""
        for column, value in zip(columns[1:], values[1:], strict=True):
            if column is None or not isinstance(value, str):
                continue
            if is_null_like(value):
                self.null_like[column] += 1
            for found, holds in ((self.html, _HTML.search), (self.twice_encoded, repaired)):
                if holds(value):
                    count, first = found.get(column, (0, value))
                    found[column] = (count + 1, first)
        categories = values[2]
        if (
            isinstance(categories, str)
            and categories
            and not looks_like_list(categories)
            and len(self.categories) < MAX_CATEGORY_CELLS
        ):
            self.categories.append(categories)


MAX_CATEGORY_CELLS = 100_000
_HTML = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);|</?(?:b|i|p|br|em|div|span|strong|li|ul)\b[^<>]*>"
)


def read_items(paths: Iterable[str], config: DataConfig, cells: ItemCells | None = None) -> Iterator[Item | BadRow]:
    """Every item of all files. Repeated ids come out as BadRow, the first one stays.

    If the items have a column of times from which their features hold, an item may have a row for each time; it comes
    out after all files are read.

    Args:
        paths: the files in their order.
        config: how they are read.
        cells: collects what the cells hold.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    first_places: dict[str, str] = {}
    declared = config.feature_sizes.of_tables(ITEM)
    versioned: dict[str, Item] = {}
    for path in paths:
        with open_table(path, config.item_table_csv, "data.items_csv") as table:
            columns = item_columns(table, config)
            has_times = bool(declared) and columns[-len(declared) - 1] is not None
            for number, values in table.rows(columns):
                if isinstance(values, RowError):
                    yield BadRow(path, number, values.reason, values.problem)
                    continue
                try:
                    item = _item(values, config, declared)
                    if has_times and item.item_id in versioned:
                        versioned[item.item_id] = _with_version(versioned[item.item_id], item)
                        continue
                except RowError as error:
                    yield BadRow(path, number, error.reason, error.problem)
                    continue
                if item.item_id in first_places:
                    problem = (
                        f"item_id must be unique, got {item.item_id!r} again after"
                        f" {first_places[item.item_id]}; remove one of the two"
                    )
                    yield BadRow(path, number, "duplicate_item_id", problem)
                    continue
                first_places[item.item_id] = f"{path}:{number}"
                if cells is not None:
                    cells.see(columns, values)
                if has_times:
                    versioned[item.item_id] = item
                else:
                    yield item
    yield from versioned.values()


def _with_version(item: Item, other: Item) -> Item:
    """Adds to an item the version of another row with the same id.

    Raises:
        RowError: the rows differ in a field that cannot change, or hold from the same time on.
    """
    for field in ("title", "categories", "brand", "text"):
        if getattr(item, field) != getattr(other, field):
            raise RowError(
                "item_changes",
                f"the rows of item_id {item.item_id!r} must have one {field}, got {getattr(other, field)!r} after"
                f" {getattr(item, field)!r}; give all its rows the same, and declare what changes as a feature",
            )
    (version,) = other.versions
    if any(version.valid_from == known.valid_from for known in item.versions):
        raise RowError(
            "duplicate_item_id",
            f"item_id and the time from which a row holds must be unique, got {item.item_id!r} again; remove one row",
        )
    versions = sorted((*item.versions, version), key=lambda v: v.valid_from)
    return dataclasses.replace(item, versions=tuple(versions))


class UserRow(NamedTuple):
    """One valid row of the users.

    Attributes:
        user_id: not empty.
        version: the declared features, and from when on they hold.
        file, row: as in BadRow.
    """

    user_id: str
    version: Version
    file: str
    row: int


def read_users(path: str, config: DataConfig) -> Iterator[UserRow | BadRow]:
    """Every row of one users file, in the order of the file.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    declared = config.feature_sizes.of_tables(USER)
    with open_table(path, config.user_table_csv, "data.users_csv") as table:
        for number, values in table.rows(user_columns(table, config)):
            if isinstance(values, RowError):
                yield BadRow(path, number, values.reason, values.problem)
                continue
            user_id, valid_from, *cells = values
            try:
                user_id = parse_id(user_id, config.user_columns.user_id)
                version = _version(valid_from, cells, declared, config)
            except RowError as error:
                yield BadRow(path, number, error.reason, error.problem)
                continue
            yield UserRow(user_id, version, path, number)


def _version(valid_from: Any, cells: Sequence[Any], declared: Sequence[DeclaredFeature], config: DataConfig) -> Version:
    start = ALWAYS
    if line_of(valid_from):
        try:
            # Rounded up to the next millisecond, so that no row from before that time sees the version.
            start = -(-parse_timestamp(valid_from, config.timestamp_unit) // 1_000_000)
        except (ValueError, OverflowError) as error:
            raise RowError(
                "bad_valid_from",
                f"the time from which a row holds must be a time as in the interactions, or empty for always, got"
                f" {valid_from!r}; {error}",
            ) from None
    parsed = {f.name: parse_feature(cell, f) for cell, f in zip(cells, declared, strict=True)}
    return Version(start, {name: value for name, value in parsed.items() if value is not None})


def catalog_problem(cells: ItemCells, config: DataConfig) -> str | None:
    """Why the categories of a catalog seem to be separated wrongly; None if they do not."""
    found = other_separator(cells.categories, config)
    if found is None:
        return None
    separator, key = found
    example = next(cell for cell in cells.categories if separator in cell)
    default = {"list_separator": DEFAULT_LIST_SEPARATOR, "path_separator": DEFAULT_PATH_SEPARATOR.strip()}[key]
    return (
        f"the categories of data.items seem to be separated by {separator!r}, got {example[:80]!r} as one category; set"
        f" data.item_columns.{key}: {json.dumps(separator, ensure_ascii=False)}, or {key}: {json.dumps(default)} if it"
        " is one"
    )


def catalog_notices(items: Sequence[Item], cells: ItemCells) -> list[str]:
    """Notices about a catalog that can be used."""
    notices = [
        f"{count} cells of {column!r} in data.items hold a missing value in words (nan, None, NULL, \\N) and count as"
        " empty"
        for column, count in sorted(cells.null_like.items())
    ]
    for column, (count, first) in sorted(cells.html.items()):
        notices.append(
            f"{count} cells of {column!r} in data.items hold HTML ({first[:60]!r}), which prompts repeat; remove it"
        )
    for column, (count, first) in sorted(cells.twice_encoded.items()):
        notices.append(
            f"{count} cells of {column!r} in data.items were written as UTF-8 and read as another encoding"
            f" ({first[:40]!r} was {str(repaired(first))[:40]!r}); export the table again"
        )
    notices += _title_notices(items)
    counts = collections.Counter(name for item in items for name in item.categories)
    having = [item for item in items if item.categories]
    alone = sum(all(counts[name] == 1 for name in item.categories) for item in having)
    if len(having) >= MIN_ITEMS_TO_QUESTION and alone > MAX_UNIQUE_FRACTION * len(having):
        notices.append(
            f"{alone} of {len(having)} items share no category with another item ({having[0].categories[0][:60]!r});"
            " is data.item_columns.categories the right column, and are its separators right?"
        )
    return notices


MIN_ITEMS_TO_QUESTION, MAX_UNIQUE_FRACTION = 10, 0.8
MANY_TITLES = 0.5
"""A notice appears if at least this fraction of the items have titles that say nothing."""


def _title_notices(items: Sequence[Item]) -> list[str]:
    many = MANY_TITLES * len(items)
    empty = sum(not item.title for item in items)
    ids = sum(item.title == item.item_id for item in items)
    title, same = (
        collections.Counter(item.title for item in items if item.title).most_common(1)[0]
        if empty < len(items)
        else ("", 0)
    )
    if len(items) < MIN_ITEMS_TO_QUESTION or max(empty, ids, same) < many:
        return []
    what = "have no title"
    if ids >= many:
        what = "have their item_id as title"
    elif same >= many:
        what = f"have the title {title[:60]!r}"
    return [
        f"{max(empty, ids, same)} of {len(items)} items {what}: no prompt can tell them apart; is"
        " data.item_columns.title the right column?"
    ]


def _interaction(
    values: Sequence[Any], config: DataConfig, declared: Sequence[DeclaredFeature], path: str, number: int
) -> Interaction:
    user_id, item_id, timestamp, label, rating, order, event_type, weight_cell, *cells = values
    user_id, item_id = parse_id(user_id, config.columns.user_id), parse_id(item_id, config.columns.item_id)
    try:
        nanoseconds = parse_timestamp(timestamp, config.timestamp_unit)
    except (ValueError, OverflowError) as error:
        raise RowError(
            "bad_timestamp",
            f"{config.columns.timestamp} must be Unix seconds, milliseconds, microseconds or nanoseconds, or ISO"
            f" 8601, got {timestamp!r}; {error}",
        ) from None
    kind = POSITIVE
    if rating is not None and _number(rating, "bad_rating", "rating") < (config.min_rating or 0.0):
        kind = LOW_RATED
    weight = 1.0 if weight_cell is None else _weight(weight_cell, config.columns.weight)
    of_the_event = 1.0
    if event_type is not None:
        of_the_event = _event_weight(_event_type(event_type), config)
    if not weight or not of_the_event:
        kind = LOW_RATED
    if label is not None and not _label(label):
        kind = OBSERVED_NEGATIVE
    if kind == POSITIVE:
        weight *= of_the_event
    rank = 0.0 if order is None else _number(order, "bad_order", "the order within equal timestamps")
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    of_request = tuple(parse_feature(cell, f) for cell, f in zip(cells, declared, strict=True))
    return Interaction(user_id, item_id, milliseconds, rank, kind, path, number, rest, weight, of_request)


def _item(values: Sequence[Any], config: DataConfig, declared: Sequence[DeclaredFeature]) -> Item:
    item_id, title, categories, brand, *further = values
    text, cells = further[: len(config.item_columns.text)], further[len(config.item_columns.text) :]
    return Item(
        item_id=parse_id(item_id, config.item_columns.item_id),
        title=line_of(title),
        categories=parse_categories(categories, config),
        brand=line_of(brand)[:MAX_BRAND_CHARACTERS],
        text=". ".join(line for line in map(line_of, text) if line)[:MAX_TEXT_CHARACTERS].rstrip(),
        versions=(_version(cells[0], cells[1:], declared, config),) if declared else (),
    )


def _number(value: Any, reason: str, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        fix = "correct the cell or map no column to it"
        if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", str(value)):
            fix = "write it with a decimal point and without separators of thousands"
        raise RowError(reason, f"{what} must be a number, got {value!r}; {fix}")
    return number


def _event_type(value: Any) -> str:
    text = text_of(value).strip()
    if not text or is_null_like(text):
        raise RowError("missing_event_type", "the type of event must not be empty; fill it in or remove the row")
    return text


def _event_weight(event_type: str, config: DataConfig) -> float:
    if not config.events:
        return float(event_type in config.positive_event_types)
    if event_type not in config.events:
        known = {**config.events, event_type: 0}
        raise RowError(
            "unknown_event_type",
            f"{config.columns.event_type} must be among the keys of data.events, got {event_type!r}; write"
            f" data: {{events: {json.dumps(known, ensure_ascii=False)}}}   # 0: no positive",
        )
    return config.events[event_type]


def _weight(value: Any, column: str | None) -> float:
    weight = _number(value, "bad_weight", f"the weight in {column!r}")
    if weight < 0:
        raise RowError(
            "bad_weight", f"the weight in {column!r} must be 0 or more, got {value!r}; write 0 for no positive"
        )
    return weight


def _label(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in LABELS:
        raise RowError("bad_label", f"label must be 0 or 1, got {value!r}; correct the cell or map no column to it")
    return LABELS[text]


class UnknownItems:
    """Says why an item of an interaction is not in the items table.

    Args:
        known: ids of the items table.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = known

    @functools.cached_property
    def _example(self) -> str:
        return min(self._known, default="")

    @functools.cached_property
    def _by_canonical(self) -> dict[str, str]:
        return {canonical_id(item_id): item_id for item_id in self._known}

    def problem(self, item_id: str) -> str:
        """The sentence for the report."""
        similar = self._by_canonical.get(canonical_id(item_id))
        if similar is not None:
            return (
                f"item_id must be in the items table, got {item_id!r}, which holds {similar!r}:"
                f" {id_difference(item_id, similar)}"
            )
        return (
            f"item_id must be in the items table, got {item_id!r}; add it or remove the row (the ids there look like"
            f" {self._example!r})"
        )

"""The item catalog as an artifact: written by InteractionsExampleGen, read by LlmScorer and PairBuilder."""

import bisect
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sllmr.models import artifact_files, features
from sllmr.models.declared_features import ITEM, Value
from sllmr.models.features import FeatureSizes

FILE_NAME = "items.jsonl.gz"

NON_POSITIVES_PREFIX = "held_out_non_positives"
"""Files beside it, JSON lines [user id, item id]: interactions after the end of training that are no positives and so
may make no row. Only the replay of scores by user reads them, to leave these items out.
"""

EARLIER_POSITIVES_PREFIX = "earlier_positives"
"""Files beside it, JSON lines [user id, item id]: positives so long before data.window that they make no row and are in
no history. The selection of candidates reads them, to leave these items out.
"""


ALWAYS = 0
"""`valid_from` of a version that already held before the first interaction."""


class Version(NamedTuple):
    """The declared features of an item or a user from a time on.

    Attributes:
        valid_from: Unix milliseconds; ALWAYS if the table names no time.
        values: by name; a feature that is missing is absent.
    """

    valid_from: int
    values: Mapping[str, Value]


def values_at(versions: Sequence[Version], at: int) -> Mapping[str, Value]:
    """The values that held at a time: those of the latest version that starts no later; none before the first.

    Args:
        versions: by rising valid_from.
        at: Unix milliseconds.
    """
    number = bisect.bisect_right(versions, at, key=lambda version: version.valid_from)
    return versions[number - 1].values if number else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One item.

    Attributes:
        item_id: unique.
        title: what a prompt calls it; empty where the source has none, and then no prompt mentions it.
        categories: most specific first, at most FeatureSizes.categories.
        brand: empty where unknown.
        text: further text for prompts.
        train_count: positives among the train rows.
        is_tail: whether it belongs to the long tail by train_count.
        versions: its declared features, by rising valid_from; empty without such features.
    """

    item_id: str
    title: str = ""
    categories: tuple[str, ...] = ()
    brand: str = ""
    text: str = ""
    train_count: int = 0
    is_tail: bool = False
    versions: tuple[Version, ...] = ()


def to_json(item: Item) -> str:
    """One line of the file."""
    values = dataclasses.asdict(item)
    if not item.versions:
        del values["versions"]
    return json.dumps(values, ensure_ascii=False)


def _from_json(line: str) -> Item:
    values = json.loads(line)
    versions = tuple(
        Version(valid_from, {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()})
        for valid_from, found in values.pop("versions", ())
    )
    return Item(**{**values, "categories": tuple(values["categories"]), "versions": versions})


def write_catalog(directory: str, items: Iterable[Item]) -> None:
    """Writes `items` to `directory`, gzip-compressed JSON lines."""
    artifact_files.make_folder(directory)
    with artifact_files.gzip(os.path.join(directory, FILE_NAME), "wt") as file:
        for item in items:
            file.write(to_json(item) + "\n")


def read_catalog(directory: str) -> dict[str, Item]:
    """All items by id, in the order of the file."""
    with artifact_files.gzip(os.path.join(directory, FILE_NAME), "rt") as file:
        return {item.item_id: item for item in map(_from_json, file)}


class ItemFeatures:
    """The catalog as feature values, encoded and padded once.

    Args:
        items: every item that a row or a history names; categories beyond C are cut.
        sizes: L, C and the declared features.
    """

    def __init__(self, items: Iterable[Item], sizes: FeatureSizes):
        self._sizes = sizes
        self._values: dict[str, dict[str, Any]] = {}
        self._words: dict[str, int] = {}
        self._declared = sizes.of_tables(ITEM)
        self._versions: dict[str, tuple[Version, ...]] = {}
        for item in items:
            self._words[item.item_id] = sum(len(text.split()) for text in (item.title, *item.categories, item.text))
            categories = [name.encode() for name in item.categories[: sizes.categories]]
            self._values[item.item_id] = {
                features.ITEM_ID: item.item_id.encode(),
                features.ITEM_CATEGORIES: categories + [b""] * (sizes.categories - len(categories)),
                features.ITEM_BRAND: item.brand.encode(),
                features.ITEM_TRAIN_COUNT: item.train_count,
                features.IS_TAIL: int(item.is_tail),
            }

            if self._declared:
                self._versions[item.item_id] = item.versions

    def item(self, item_id: str, at: int | None = None) -> dict[str, Any]:
        """The Role.ITEM features of one candidate; KeyError where the catalog does not hold it.

        Args:
            item_id: of the candidate.
            at: Unix milliseconds, the time of the row; needed with declared features of items.
        """
        if not self._declared:
            return self._values[item_id]
        return self._values[item_id] | self._at(item_id, at)

    def _at(self, item_id: str, at: int | None) -> dict[str, Any]:
        if at is None:
            raise ValueError("declared features of items need the time of the row, got none; pass `at`")
        found = values_at(self._versions[item_id], at)
        return {f.name: f.encoded(found.get(f.name)) for f in self._declared}

    def words(self, item_id: str) -> int:
        """How many words title, categories and text have; KeyError as above."""
        return self._words[item_id]

    def history(self, item_ids: Sequence[str], at: int | None = None) -> dict[str, Any]:
        """The features of the items of a history, latest first, cut and padded to L; `at` and KeyError as above."""
        items = [self._values[item_id] for item_id in item_ids[: self._sizes.history]]
        missing = self._sizes.history - len(items)
        categories = [name for item in items for name in item[features.ITEM_CATEGORIES]]
        return {
            features.HISTORY_ITEM_IDS: [item[features.ITEM_ID] for item in items] + [b""] * missing,
            features.HISTORY_CATEGORIES: categories + [b""] * (missing * self._sizes.categories),
            features.HISTORY_BRANDS: [item[features.ITEM_BRAND] for item in items] + [b""] * missing,
            **self._declared_history(item_ids[: self._sizes.history], at),
        }

    def _declared_history(self, item_ids: Sequence[str], at: int | None) -> dict[str, Any]:
        in_history = self._sizes.in_history
        if not in_history:
            return {}
        found = [self._at(item_id, at) for item_id in item_ids]
        missing = self._sizes.history - len(found)
        return {f.history_name: [item[f.name] for item in found] + [f.missing] * missing for f in in_history}


def values_of_items(items: Iterable[Item], sizes: FeatureSizes, *, at: int) -> dict[str, list[Any]]:
    """The catalog as an exported model takes it, see models.serving.item_lookup.ItemColumns.

    Args:
        items: all of them.
        sizes: C and the declared features.
        at: Unix milliseconds, when the declared features must hold.
    """
    items = list(items)
    values = ItemFeatures(items, sizes)
    names = [of_candidate for of_candidate, _ in features.OF_ITEMS.values()]
    rows = [values.item(item.item_id, at) for item in items]
    return {name: [row[name] for row in rows] for name in (*names, *(f.name for f in sizes.of_tables(ITEM)))}

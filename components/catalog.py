"""The item catalogue as an artifact: written by InteractionsExampleGen, read by LlmScorer and PairBuilder."""

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from models import features
from models.features import FeatureSizes

FILE_NAME = "items.jsonl.gz"


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
    """

    item_id: str
    title: str = ""
    categories: tuple[str, ...] = ()
    brand: str = ""
    text: str = ""
    train_count: int = 0
    is_tail: bool = False


def to_json(item: Item) -> str:
    """One line of the file."""
    return json.dumps(dataclasses.asdict(item), ensure_ascii=False)


def write_catalog(directory: str, items: Iterable[Item]) -> None:
    """Writes `items` to `directory`, gzip-compressed JSON lines."""
    os.makedirs(directory, exist_ok=True)
    with gzip.open(os.path.join(directory, FILE_NAME), "wt", encoding="utf-8") as file:
        for item in items:
            file.write(to_json(item) + "\n")


def read_catalog(directory: str) -> dict[str, Item]:
    """All items by id, in the order of the file."""
    with gzip.open(os.path.join(directory, FILE_NAME), "rt", encoding="utf-8") as file:
        items = (json.loads(line) for line in file)
        return {i["item_id"]: Item(**{**i, "categories": tuple(i["categories"])}) for i in items}


class ItemFeatures:
    """The catalogue as feature values, encoded and padded once.

    Args:
        items: every item that a row or a history names; categories beyond C are cut.
        sizes: L and C.
    """

    def __init__(self, items: Iterable[Item], sizes: FeatureSizes):
        self._sizes = sizes
        self._values: dict[str, dict[str, Any]] = {}
        self._words: dict[str, int] = {}
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

    def item(self, item_id: str) -> dict[str, Any]:
        """The Role.ITEM features of one candidate; KeyError where the catalogue does not hold it."""
        return self._values[item_id]

    def words(self, item_id: str) -> int:
        """How many words title, categories and text have; KeyError as above."""
        return self._words[item_id]

    def history(self, item_ids: Sequence[str]) -> dict[str, Any]:
        """The features of the items of a history, latest first, cut and padded to L; KeyError as above."""
        items = [self._values[item_id] for item_id in item_ids[: self._sizes.history]]
        missing = self._sizes.history - len(items)
        categories = [name for item in items for name in item[features.ITEM_CATEGORIES]]
        return {
            features.HISTORY_ITEM_IDS: [item[features.ITEM_ID] for item in items] + [b""] * missing,
            features.HISTORY_CATEGORIES: categories + [b""] * (missing * self._sizes.categories),
            features.HISTORY_BRANDS: [item[features.ITEM_BRAND] for item in items] + [b""] * missing,
        }

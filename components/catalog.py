"""The item catalogue as an artifact: written by InteractionsExampleGen, read by LlmScorer and PairBuilder."""

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
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


def item_features(item: Item, sizes: FeatureSizes) -> dict[str, Any]:
    """The Role.ITEM features of one candidate."""
    return {
        features.ITEM_ID: item.item_id,
        features.ITEM_CATEGORIES: _pad(item.categories, sizes.categories),
        features.ITEM_BRAND: item.brand,
        features.ITEM_TRAIN_COUNT: item.train_count,
        features.IS_TAIL: int(item.is_tail),
    }


def history_features(
    history_item_ids: Sequence[str], catalog: Mapping[str, Item], sizes: FeatureSizes
) -> dict[str, Any]:
    """The history's features: ids, categories and brands, cut and padded to L.

    Args:
        history_item_ids: earlier positives, latest first; may be longer than L.
        catalog: every item of the history.
        sizes: L and C.

    Raises:
        KeyError: an item is not in the catalogue.
    """
    items = [catalog[item_id] for item_id in history_item_ids[: sizes.history]]
    missing = sizes.history - len(items)
    return {
        features.HISTORY_ITEM_IDS: _pad([i.item_id for i in items], sizes.history),
        features.HISTORY_CATEGORIES: [_pad(i.categories, sizes.categories) for i in items]
        + [[""] * sizes.categories] * missing,
        features.HISTORY_BRANDS: _pad([i.brand for i in items], sizes.history),
    }


def _pad(values: Sequence[str], length: int) -> list[str]:
    return list(values[:length]) + [""] * (length - len(values))

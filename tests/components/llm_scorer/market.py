"""A small market with titles: items, contexts and train rows for the tests of this folder."""

import json
import pathlib
from collections.abc import Iterable

from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, Item
from sllmr.components.llm_scorer.messages import Candidate, Context
from sllmr.components.pair_yield import PairYield
from sllmr.components.scores import POPULAR
from sllmr.models import features
from sllmr.models.tf_examples import to_example

SIZES = features.FeatureSizes(history=5, categories=2)
PAIR_YIELD = PairYield(
    per_context=6, calibration_fraction=0.5, negatives_per_target=2, max_per_context=8, selection="widest"
)
GENRES = ("Crime", "Comedy", "Western", "Drama", "Musical", "Horror")
NAMES = (
    "Heat",
    "Fargo",
    "Alien",
    "Big",
    "Psycho",
    "Casino",
    "Jaws",
    "Rocky",
    "Ran",
    "Network",
    "Ghost",
    "Speed",
)


def market_items(count: int = 60) -> dict[str, Item]:
    """Items i0 ..: the higher the number the more popular; the first fifth is the tail."""
    return {
        f"i{n}": Item(
            item_id=f"i{n}",
            title=f"{NAMES[n % len(NAMES)]} {n}",
            categories=(GENRES[n % len(GENRES)],),
            train_count=n,
            is_tail=n < count // 5,
        )
        for n in range(count)
    }


def write_earlier_positives(catalog_directory: str, user: str, items: Iterable[str]) -> None:
    """As InteractionsExampleGen writes them beside the catalog."""
    pathlib.Path(catalog_directory).mkdir(exist_ok=True)
    lines = [json.dumps([user, item]) + "\n" for item in items]
    (pathlib.Path(catalog_directory) / f"{EARLIER_POSITIVES_PREFIX}-00000-of-00001.jsonl").write_text("".join(lines))


def context(name: str = "c0", items: Iterable[str] = ("i20", "i21", "i22"), history: Iterable[str] = ("i1", "i2")):
    return Context(
        context_id=name,
        history_item_ids=tuple(history),
        history_length=len(tuple(history)),
        candidates=tuple(Candidate(item_id=i, role=POPULAR) for i in items),
    )


def row(
    user: str,
    position: int,
    history: list[str],
    item: str,
    label: int = 1,
    sizes: features.FeatureSizes = SIZES,
    user_positives: int = 0,
) -> bytes:
    """A serialized row as InteractionsExampleGen writes it; what the scorer does not read is empty."""
    padded = (history[::-1] + [""] * sizes.history)[: sizes.history]
    values = {
        features.USER_ID: user,
        features.HISTORY_ITEM_IDS: padded,
        features.HISTORY_CATEGORIES: [""] * (sizes.history * sizes.categories),
        features.HISTORY_BRANDS: [""] * sizes.history,
        features.HISTORY_LENGTH: len(history),
        features.ITEM_ID: item,
        features.ITEM_CATEGORIES: [""] * sizes.categories,
        features.ITEM_BRAND: "",
        features.ITEM_TRAIN_COUNT: 0,
        features.IS_TAIL: 0,
        features.USER_TRAIN_COUNT: user_positives,
        features.POSITION: position,
        features.IS_COLD: 0,
        features.LABEL: label,
    }
    return to_example(values, features.row_features(sizes)).SerializeToString()


def market_rows(users: int = 12, length: int = 6, count: int = 60) -> list[bytes]:
    """Rows of users who all chose `length` items."""
    return [line for u in range(users) for line in user_rows(u, length, count)]


def user_rows(u: int, length: int, count: int = 60) -> list[bytes]:
    """Positive rows of positions 2 .. `length` of one user, each with a negative row beside it."""
    rows = []
    items = [f"i{(7 * u + 5 * n) % count}" for n in range(length)]
    for position in range(2, length + 1):
        history, negative = items[: position - 1], f"i{(7 * u + 5 * position + 3) % count}"
        for item, label in ((items[position - 1], 1), (negative, 0)):
            rows.append(row(f"user-{u}", position, history, item, label, user_positives=length - 1))
    return rows

"""What a prompt tells of a history, and what it calls an item."""

from collections.abc import Mapping

from components.catalog import Item
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Context

MAX_CHARACTERS = 160


def describe(item: Item) -> str:
    """`title: category, category` on one line, cut at MAX_CHARACTERS; the title alone where there are no
    categories.
    """
    text = item.title
    if item.categories:
        text += ": " + ", ".join(item.categories)
    return " ".join(text.split())[:MAX_CHARACTERS].rstrip()


def told_history(context: Context, catalog: Mapping[str, Item], config: LlmConfig) -> list[Item]:
    """The latest `history_items` items that have a title, latest first, behind the `history_lag` newest of all."""
    past = context.history_item_ids[config.history_lag :]
    return [catalog[i] for i in past if i in catalog and catalog[i].title][: config.history_items]

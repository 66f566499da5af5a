"""The text of an item that is turned into its vector."""

from sllmr.components.catalog import Item


def item_text(item: Item) -> str:
    """`title. category, category. brand. text` on one line; what the item lacks is left out.

    The most specific category comes first. A model that reads only the beginning (the bundled one: 128 tokens, about 90
    words) reads the title and leaves out the end of the text.
    """
    parts = (item.title, ", ".join(item.categories), item.brand, item.text)
    return ". ".join(" ".join(part.split()) for part in parts if part.strip())

"""What a prompt calls an item."""

from components.catalog import Item

MAX_CHARACTERS = 160


def describe(item: Item) -> str:
    """`title: category, category` on one line, cut at MAX_CHARACTERS; the title alone where there are no
    categories.
    """
    text = item.title
    if item.categories:
        text += ": " + ", ".join(item.categories)
    return " ".join(text.split())[:MAX_CHARACTERS].rstrip()

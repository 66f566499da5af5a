"""A small seeded market as two CSV tables."""

import random

USERS, ITEMS = 30, 40


def interactions(seed=0):
    """Lists of item ids by user, in time order: 5 to 9 different items each."""
    draw = random.Random(seed)
    items = [f"i{n:02}" for n in range(ITEMS)]
    return {f"u{n:02}": draw.sample(items, draw.randint(5, 9)) for n in range(USERS)}


def with_other_future(chosen):
    """The same users, whose last two choices are other items."""
    result = {}
    for user, items in chosen.items():
        unused = [f"i{n:02}" for n in range(ITEMS) if f"i{n:02}" not in items]
        result[user] = [*items[:-2], unused[0], unused[-1]]
    return result


def write_tables(directory, chosen, extra_rows=()):
    """Writes both tables and returns the settings that name them."""
    rows = [
        f"{user},{item},{1_000_000_000 + 86_400 * position}"
        for user, items in chosen.items()
        for position, item in enumerate(items)
    ]
    (directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows, *extra_rows]) + "\n")
    items = [f"i{n:02},Title {n},Root > Branch {n % 5} > Leaf {n},Brand {n % 3}" for n in range(ITEMS)]
    (directory / "items.csv").write_text("\n".join(["item_id,title,categories,brand", *items]) + "\n")
    return {"interactions": str(directory / "interactions.csv"), "items": str(directory / "items.csv")}

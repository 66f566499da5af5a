"""Writes the tables of the golden run: a seeded market of teas and coffees, and scores that know the users' taste."""

import csv
import pathlib
import random
from collections.abc import Iterable, Sequence

import numpy as np

HERE = pathlib.Path(__file__).parent
USERS, ITEMS = 80, 30
KINDS = ("Black tea", "Green tea", "Herbal tea", "Espresso", "Filter coffee")
BRANDS = ("Alba", "Borea", "Corvo")
DAY = 86_400


def write_market(directory: pathlib.Path) -> None:
    """Interactions, items, scores of every user and item, and vectors of the items.

    User u likes the kinds u % 5 and u // 5 % 5, and takes an item of them four times in five, else any item; low
    numbers more often. A score is .75 for an item of a liked kind and .25 for others, give or take .2.
    """
    draw = random.Random(17)
    interactions, scores = [], []
    for user in range(USERS):
        liked = [n for n in range(ITEMS) if n % len(KINDS) in (user % len(KINDS), user // len(KINDS) % len(KINDS))]
        taken: list[int] = []
        for position in range(3 + (user * 7) % 8):
            among = liked if draw.random() < 0.8 and not set(liked) <= set(taken) else range(ITEMS)
            free = [n for n in among if n not in taken]
            taken.append(free[int(len(free) * draw.random() ** 2)])
            interactions.append((f"u{user:02}", f"i{taken[-1]:02}", 1_700_000_000 + DAY * (3 * position + user % 3)))
        for item in range(ITEMS):
            level = 0.75 if item in liked else 0.25
            scores.append((f"u{user:02}", f"i{item:02}", f"{level + 0.4 * (draw.random() - 0.5):.2f}"))
    items = [
        (f"i{n:02}", f"{KINDS[n % len(KINDS)]} No. {n}", f"Drinks > {KINDS[n % len(KINDS)]}", BRANDS[n % len(BRANDS)])
        for n in range(ITEMS)
    ]
    _write(directory / "interactions.csv", ("user_id", "item_id", "timestamp"), interactions)
    _write(directory / "items.csv", ("item_id", "title", "categories", "brand"), items)
    _write(directory / "scores.csv", ("user_id", "item_id", "score"), scores)
    kind_of_item = np.arange(ITEMS) % len(KINDS)
    noise = np.array([[draw.random() for _ in KINDS] for _ in range(ITEMS)])
    vectors = (np.eye(len(KINDS))[kind_of_item] + 0.2 * noise).round(2)
    np.savez(directory / "vectors.npz", item_id=np.array([row[0] for row in items]), vector=vectors)


def _write(file: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(file, "w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    write_market(HERE)

"""Checks a user's rows, and everything that was made from them, against each other. Pure functions; no Beam.

A row of a user at position p knows the p - 1 positives before it. So the positive rows of all splits name the user's
positives by position, and every history can be compared with them. A positive that makes no row, such as the first one
or one before data.window, is taken from the earliest history that holds it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sllmr.components.leakage_guard.report import Kind
from sllmr.models import features

TRAIN = "train"

EMPTY_VOCABULARY = "49d0cd50-04bb-48c0-bc6f-5b575dce351a"
"""The one value that TensorFlow Transform writes to an empty vocabulary, for instance if all brands are empty."""


class SeenRow(NamedTuple):
    """One row as the guard sees it.

    Attributes:
        split: its name.
        item_id, label: of the candidate.
        position: 1-based, in the user's order of positives; a negative has that of the next positive.
        history: item ids, latest first, cut and without padding.
        history_length, user_train_count, item_train_count: the row's features.
    """

    split: str
    item_id: str
    label: int
    position: int
    history: tuple[str, ...]
    history_length: int
    user_train_count: int
    item_train_count: int

    def name(self, user_id: str) -> str:
        """The row in an error."""
        kind = "positive" if self.label else "negative"
        return f"{self.split} row of user {user_id}, {kind} item {self.item_id}, position {self.position}"


class SeenPair(NamedTuple):
    """One preference pair as the guard sees it; the counts are the pair's features of both items."""

    history: tuple[str, ...]
    history_length: int
    item_ids: tuple[str, str]
    item_train_counts: tuple[int, int]
    calibration_label: int

    def name(self, user_id: str) -> str:
        """The pair in an error."""
        return f"pair of user {user_id}, items {self.item_ids[0]} and {self.item_ids[1]}, position {self.position}"

    @property
    def position(self) -> int:
        """Of the target item."""
        return self.history_length + 1


class Leak(NamedTuple):
    """One leak: its kind, and the row and the rule in words."""

    kind: Kind
    text: str


def leaks_of_user(
    user_id: str, rows: Sequence[SeenRow], pairs: Iterable[SeenPair], train_counts: Mapping[str, int]
) -> Iterator[Leak]:
    """Yields the leaks in the rows and pairs of one user.

    Args:
        user_id: whose rows they are.
        rows: of all splits.
        pairs: preference pairs of the user.
        train_counts: positive train rows by item, counted anew.
    """
    known = _Positives(rows)
    yield from known.leaks_into_train(user_id)
    own_count = sum(row.split == TRAIN and row.label for row in rows)
    for row in sorted(rows):
        for problem in known.problems_of_history(row.position, row.history, row.history_length):
            yield Leak("history", f"{row.name(user_id)}: {problem}")
        for name, value, counted in (
            (features.USER_TRAIN_COUNT, row.user_train_count, own_count),
            (features.ITEM_TRAIN_COUNT, row.item_train_count, train_counts.get(row.item_id, 0)),
        ):
            if value != counted:
                yield Leak(
                    "count", f"{row.name(user_id)}: {name} is {value}, but the train rows hold {counted} positives"
                )
    for pair in sorted(pairs):
        for problem in _problems_of_pair(pair, known, train_counts):
            yield Leak("pair", f"{pair.name(user_id)}: {problem}")


def leaks_of_scores(
    context_id: str, histories: Iterable[tuple[tuple[str, ...], str]], rows: Sequence[tuple[str, SeenRow]]
) -> Iterator[Leak]:
    """Yields the leaks in the scores of one context.

    Args:
        context_id: see components.scores.context_id.
        histories: history and target item of each score record of the context; the target is "" if there is none.
        rows: user and positive row of that context, of any split.
    """
    for history, target in histories:
        if not any(row.split == TRAIN for _, row in rows):
            whose = f"the {rows[0][1].name(rows[0][0])}" if rows else "no row"
            yield Leak("scores", f"scores of context {context_id}: the context is that of {whose}, and of no train row")
            continue
        user_id, row = next((user_id, row) for user_id, row in rows if row.split == TRAIN)
        if target and target != row.item_id:
            yield Leak("scores", f"scores of the {row.name(user_id)}: the target item is {target}")
        if history != row.history[: len(history)]:
            wrong = next(i for i, (a, b) in enumerate(zip((*history, ""), (*row.history, ""), strict=False)) if a != b)
            yield Leak(
                "scores",
                f"scores of the {row.name(user_id)}: the history holds {(*history, 'nothing')[wrong]} at place "
                f"{wrong + 1}, where the row's holds {(*row.history, 'nothing')[wrong]}",
            )


def leaks_of_catalog(items: Iterable[tuple[str, int, bool]], train_counts: Mapping[str, int]) -> Iterator[Leak]:
    """Yields the leaks in the counts of a catalog.

    Args:
        items: id, train count and whether it belongs to the long tail, of each item.
        train_counts: as in leaks_of_user.
    """
    highest_of_tail = ("", -1)
    lowest_of_head: tuple[str, int] | None = None
    for item_id, count, is_tail in items:
        counted = train_counts.get(item_id, 0)
        if count != counted:
            yield Leak(
                "count", f"catalog item {item_id}: train_count is {count}, but the train rows hold {counted} positives"
            )
        if is_tail:
            highest_of_tail = max(highest_of_tail, (item_id, counted), key=lambda item: item[1])
        elif lowest_of_head is None or counted < lowest_of_head[1]:
            lowest_of_head = item_id, counted
    if lowest_of_head is not None and highest_of_tail[1] > lowest_of_head[1]:
        yield Leak(
            "count",
            f"catalog item {highest_of_tail[0]}: it belongs to the long tail with {highest_of_tail[1]} train positives,"
            f" and item {lowest_of_head[0]} with {lowest_of_head[1]} does not",
        )


def leaks_of_vocabulary(name: str, values: Iterable[str], seen: Collection[str]) -> Iterator[Leak]:
    """Yields a leak for each value of the vocabulary `name` that no train row holds."""
    for value in values:
        if value not in seen and value != EMPTY_VOCABULARY:
            yield Leak("vocabulary", f"vocabulary {name}: {value} is in no train row")


class _Positives:
    """A user's positives by position, as the rows of all splits name them."""

    def __init__(self, rows: Sequence[SeenRow]):
        ordered = sorted(rows, key=lambda row: (row.position, row.split != TRAIN))
        self._rows = [row for row in ordered if row.label]
        self._negatives = [row for row in ordered if not row.label]
        self._by_position: dict[int, SeenRow] = {}
        for row in self._rows:
            self._by_position.setdefault(row.position, row)
        self._item_ids = {position: row.item_id for position, row in self._by_position.items()}
        for row in (*self._rows, *self._negatives):  # observed negatives may be the only rows after a positive
            for place, item_id in enumerate(row.history, 1):
                self._item_ids.setdefault(row.position - place, item_id)
        self._first_held_out = min((row for row in self._rows if row.split != TRAIN), default=None, key=_position)

    def row(self, position: int) -> SeenRow | None:
        """The positive row at a position; None without one."""
        return self._by_position.get(position)

    def leaks_into_train(self, user_id: str) -> Iterator[Leak]:
        """Yields the train rows that do not lie before every held-out positive."""
        first = self._first_held_out
        if first is None:
            return
        for row in (*self._rows, *self._negatives):
            # A negative just before the first held-out positive has the position of that positive.
            if row.split == TRAIN and row.position >= first.position + (not row.label):
                yield Leak("train_row", f"{row.name(user_id)}: it does not lie before the {first.name(user_id)}")

    def problems_of_history(self, position: int, history: Sequence[str], length: int) -> Iterator[str]:
        """Yields where a history differs from the user's positives before `position`."""
        if length != position - 1:
            yield f"history_length is {length}, where {position - 1} positives come before it"
        for place, item_id in enumerate(history, 1):
            expected = self._item_ids.get(position - place) if place < position else None
            if item_id != expected:
                yield (
                    f"the history holds {item_id} at place {place}{self._origin(item_id, position)}, where the user's "
                    f"positive of position {position - place} is {expected or 'none'}"
                )

    def _origin(self, item_id: str, position: int) -> str:
        for row in self._rows:
            if row.item_id == item_id and row.position >= position:
                return f", the {row.split} interaction of position {row.position}"
        return ""


def _position(row: SeenRow) -> int:
    return row.position


def _problems_of_pair(pair: SeenPair, known: _Positives, train_counts: Mapping[str, int]) -> Iterator[str]:
    row = known.row(pair.position)
    if row is None or row.split != TRAIN:
        yield f"it is made for {'no row' if row is None else f'a {row.split} row'}, and pairs are made for train rows"
        return
    yield from known.problems_of_history(pair.position, pair.history, pair.history_length)
    if pair.calibration_label != features.NOT_CALIBRATION:
        target = pair.item_ids[0 if pair.calibration_label == 1 else 1]
        if target != row.item_id:
            yield f"its calibration label says that the user took {target}, but the train row holds {row.item_id}"
    for item_id, count in zip(pair.item_ids, pair.item_train_counts, strict=True):
        if count != train_counts.get(item_id, 0):
            yield (
                f"{features.ITEM_TRAIN_COUNT} of {item_id} is {count}, but the train rows hold "
                f"{train_counts.get(item_id, 0)} positives"
            )

"""One user's interactions become the rows of train, valid and test. Pure functions; no Beam.

Positions are 1-based and count positives in time order. Times are Unix milliseconds.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sllmr.components.catalog import Item, ItemFeatures, Version, values_at
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.tables import POSITIVE
from sllmr.models import features
from sllmr.models.declared_features import USER, DeclaredFeature, Value

TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")


class Event(NamedTuple):
    """One interaction of a known user; the fields of tables.Interaction without the user."""

    item_id: str
    timestamp: int
    order: float
    kind: int
    file: str
    row: int
    nanoseconds: int = 0
    weight: float = 1.0
    declared: tuple[Value | None, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Decisions that need the whole data set, made before any row is.

    Attributes:
        valid_from, test_from: global_date only.
        window_start: events before it make no row; 0 if there is no window.
        observed_negatives: whether negatives are the observed ones; sampled otherwise.
        buckets: number of parts in which the rows are put into their seeded order.
    """

    valid_from: int = 0
    test_from: int = 0
    window_start: int = 0
    observed_negatives: bool = False
    buckets: int = 1


class Timeline(NamedTuple):
    """One user's interactions, sorted and without repetitions.

    Attributes:
        events: sorted by (timestamp, nanoseconds, order); among equals non-positives come first, then the order
            of the file decides.
        splits: of each event; None if it makes no row (first positive, negatives after the last positive, whatever
            lies before the window). A positive without a split still joins the histories after it.
        positives_before: of each event, the number of positives before it.
        known_in_training: how many of the first events lie before the end of training.
    """

    events: tuple[Event, ...]
    splits: tuple[str | None, ...]
    positives_before: tuple[int, ...]
    known_in_training: int


def without_duplicates(events: Iterable[Event]) -> tuple[list[Event], list[Event]]:
    """Sorted events with one for each (item, time), and the surplus ones.

    Of duplicates, a positive is kept before a non-positive, then the heaviest one, then the first in the file.
    """
    kept: dict[tuple[str, int, int], Event] = {}
    surplus = []
    for event in sorted(events, key=lambda e: (e.kind != POSITIVE, -e.weight, e.file, e.row)):
        key = (event.item_id, event.timestamp, event.nanoseconds)
        if key in kept:
            surplus.append(event)
        else:
            kept[key] = event
    return sorted(kept.values(), key=_position), surplus


def without_repeats(events: Sequence[Event], config: DataConfig) -> list[Event]:
    """Sorted events without the positives that data.repeats leaves out."""
    if config.repeats == "keep":
        return list(events)
    kept, taken = [], set()
    for event in events:
        if event.kind != POSITIVE or event.item_id not in taken:
            kept.append(event)
        if event.kind == POSITIVE:
            taken.add(event.item_id)
    return kept


def _position(event: Event) -> tuple:
    # Non-positives first among equals: a negative shown beside the target item must not have it in its history.
    return event.timestamp, event.nanoseconds, event.order, event.kind == POSITIVE, event.file, event.row


def make_timeline(events: Sequence[Event], config: DataConfig, plan: SplitPlan) -> Timeline:
    """Splits one user's sorted events.

    A row needs a non-empty history, so the first positive makes none. With leave_last_two a negative belongs
    to the split of the next positive in time; with global_date to the split of its own time.
    """
    positives_before = []
    count = 0
    for event in events:
        positives_before.append(count)
        count += event.kind == POSITIVE
    if config.split.strategy == "leave_last_two":
        splits = [_by_position(before + 1, count) for before in positives_before]
        known = next((i for i, before in enumerate(positives_before) if before >= count - 2), len(events))
    else:
        splits = [_by_date(event.timestamp, plan) for event in events]
        known = sum(event.timestamp < plan.valid_from for event in events)
    usable = (
        split if before and event.timestamp >= plan.window_start else None
        for event, split, before in zip(events, splits, positives_before, strict=True)
    )
    return Timeline(tuple(events), tuple(usable), tuple(positives_before), known)


def _by_position(position: int, count: int) -> str | None:
    if position > count:
        return None
    return TEST if position == count else VALID if position == count - 1 else TRAIN


def _by_date(timestamp: int, plan: SplitPlan) -> str:
    return TRAIN if timestamp < plan.valid_from else VALID if timestamp < plan.test_from else TEST


def train_positives(timeline: Timeline) -> list[str]:
    """Items of the user's positive train rows; popularity and cohorts are counted on these alone."""
    pairs = zip(timeline.events, timeline.splits, strict=True)
    return [event.item_id for event, split in pairs if split == TRAIN and event.kind == POSITIVE]


def items_known_in_training(timeline: Timeline) -> frozenset[str]:
    """Items that the user touched before the end of training, none of which may be a train negative.

    Later items may be: to avoid them would leak to training what the user takes later.
    """
    return frozenset(event.item_id for event in timeline.events[: timeline.known_in_training])


def held_out_non_positives(timeline: Timeline) -> list[str]:
    """Items of the user's interactions after the end of training that are no positives."""
    return [event.item_id for event in timeline.events[timeline.known_in_training :] if event.kind != POSITIVE]


def earlier_positives(timeline: Timeline, config: DataConfig) -> list[str]:
    """Items of the user's positives that come before the history of the first positive train row.

    There are such items only with data.window: without it, the history of the first positive train row is one item, the
    user's first positive. From the first positive train row on, every positive of training is a row. A user without a
    positive train row has no scoring context, and no items here.
    """
    before: list[str] = []
    for event, split in zip(timeline.events, timeline.splits, strict=True):
        if event.kind == POSITIVE:
            if split == TRAIN:
                return sorted(set(before[: -config.sizes.history]))
            before.append(event.item_id)
    return []


def items_known(timeline: Timeline) -> frozenset[str]:
    """Every item that the user ever touched: what an evaluation negative must not be."""
    return frozenset(event.item_id for event in timeline.events)


def seeded_hash(*parts: object) -> int:
    """64-bit hash of `parts`, the same in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


DRAWS = 20


def sample_negative(catalog: Sequence[str], known: Collection[str], *key: object) -> str | None:
    """One item, uniform over `catalog` without `known`.

    Args:
        catalog: item ids, sorted.
        known: a set of items that it must not be.
        key: the seed and what the draw is for.

    Returns:
        The item id, or None where nothing is left.
    """
    for attempt in range(DRAWS):
        item_id = catalog[seeded_hash(*key, attempt) % len(catalog)]
        if item_id not in known:
            return item_id
    rest = [item_id for item_id in catalog if item_id not in known]
    return rest[seeded_hash(*key, DRAWS) % len(rest)] if rest else None


class Row(NamedTuple):
    """One row without the catalog's attributes, small enough to be sent between workers.

    Attributes:
        split: one of SPLITS.
        user_id: the user.
        history: the latest positives before the row, latest first, at most `sizes.history`.
        history_length: number of positives before the row.
        user_train_count: the user's positives among the train rows.
        is_cold: whether the row belongs to the cold-start slice.
        item_id: the candidate.
        label: 1 positive, 0 negative.
        weight: of the loss in training; 1 for every row of valid and test.
        timestamp: of the interaction, Unix milliseconds; a sampled negative has that of its positive.
        declared: values of the declared features of users, then of interactions; None where missing. They are those
            of the request: a sampled negative has those of its positive.
    """

    split: str
    user_id: str
    history: tuple[str, ...]
    history_length: int
    user_train_count: int
    is_cold: bool
    item_id: str
    label: int
    weight: float = 1.0
    timestamp: int = 0
    declared: tuple[Value | None, ...] = ()


def make_rows(
    user_id: str,
    timeline: Timeline,
    item_ids: Sequence[str],
    config: DataConfig,
    plan: SplitPlan,
    versions: Sequence[Version] = (),
) -> Iterator[Row]:
    """Every row of one user.

    Args:
        user_id: the user.
        timeline: the user's split events.
        item_ids: the catalog, sorted.
        config: lengths, seed, cold-start definition.
        plan: whether negatives are observed. A sampled negative follows its positive; a positive for which no
            negative is left stands alone.
        versions: of the user, by rising valid_from. Each row sees the one that held at its time.
    """
    of_users = config.feature_sizes.of_tables(USER)
    user_train_count = len(train_positives(timeline))
    known_in_training, known = items_known_in_training(timeline), items_known(timeline)
    positives: list[str] = []
    for event, split in zip(timeline.events, timeline.splits, strict=True):
        is_positive = event.kind == POSITIVE
        if split is not None and (is_positive or plan.observed_negatives):
            cold_value = user_train_count if config.cold_by == "user_train_positives" else len(positives)
            found = values_at(versions, event.timestamp)
            row = Row(
                split=split,
                user_id=user_id,
                history=tuple(reversed(positives[-config.sizes.history :])),
                history_length=len(positives),
                user_train_count=user_train_count,
                is_cold=cold_value < config.cold.below,
                item_id=event.item_id,
                label=int(is_positive),
                weight=event.weight if split == TRAIN else 1.0,
                timestamp=event.timestamp,
                declared=(*(found.get(f.name) for f in of_users), *event.declared),
            )
            yield row
            if not plan.observed_negatives:
                avoided = known_in_training if split == TRAIN else known
                negative = sample_negative(item_ids, avoided, config.seed, "negative", user_id, len(positives) + 1)
                if negative is not None:
                    yield row._replace(item_id=negative, label=0)
        if is_positive:
            positives.append(event.item_id)


def row_values(row: Row, catalog: ItemFeatures, declared: Sequence[DeclaredFeature] = ()) -> dict[str, Any]:
    """The row by feature name, ready for `models.tf_examples.to_example`.

    Args:
        row: one row.
        catalog: all items.
        declared: the features of `row.declared`.
    """
    return {
        features.USER_ID: row.user_id,
        features.HISTORY_LENGTH: row.history_length,
        features.USER_TRAIN_COUNT: row.user_train_count,
        features.POSITION: row.history_length + 1,
        features.IS_COLD: int(row.is_cold),
        features.LABEL: row.label,
        features.EXAMPLE_WEIGHT: row.weight,
        features.TIMESTAMP: row.timestamp,
        **catalog.history(row.history, row.timestamp),
        **catalog.item(row.item_id, row.timestamp),
        **{f.name: f.encoded(value) for f, value in zip(declared, row.declared, strict=True)},
    }


def with_popularity(items: Iterable[Item], train_counts: Mapping[str, int], fraction: float) -> list[Item]:
    """The catalog sorted by id, with train counts and the long tail.

    The long tail is the floor(fraction * items with a train positive) least popular of these, and every item
    without one. Ties in popularity are broken by the SHA-256 of the item id: item ids often grow with time,
    so their own order would put the older items into the tail.
    """
    ranked = sorted(train_counts, key=lambda i: (train_counts[i], hashlib.sha256(i.encode()).digest()))
    tail = set(ranked[: int(fraction * len(ranked))])
    return [
        dataclasses.replace(
            item,
            train_count=train_counts.get(item.item_id, 0),
            is_tail=item.item_id in tail or item.item_id not in train_counts,
        )
        for item in sorted(items, key=lambda item: item.item_id)
    ]


BINS = 65_536


def bin_width(first: int, last: int) -> int:
    """Milliseconds of one of at most BINS bins that cover [first, last]."""
    return (last - first) // BINS + 1


def date_cuts(bins: Mapping[int, int], first: int, width: int, config: DataConfig) -> tuple[int, int]:
    """valid_from and test_from such that the configured fractions of positives come after them.

    Args:
        bins: positives by number of the bin, `(timestamp - first) // width`.
        first: start of bin 0, Unix milliseconds.
        width: of a bin, milliseconds.
        config: the fractions.

    Returns:
        Each is the start of the first bin with at least the required number of positives before it, and never lies
        beyond the last bin, so that the test split is not empty.
    """
    total = sum(bins.values())
    valid, test = config.split.valid_fraction, config.split.test_fraction
    targets = [round((1 - valid - test) * total), round((1 - test) * total)]
    cuts: list[int] = []
    before = last = 0
    for last in sorted(bins):
        while len(cuts) < len(targets) and before >= targets[len(cuts)]:
            cuts.append(first + last * width)
        before += bins[last]
    while len(cuts) < 2:
        cuts.append(first + last * width)
    return cuts[0], cuts[1]

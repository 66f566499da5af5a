"""Which scoring contexts and which candidates the LLM scores: pure choices from train rows, seeded by hashes of ids.

A scoring context is one positive row of the train split: its user at that point in time, with the history strictly
before it. The plan has `budget.pairs // per_context` contexts, first contexts of users before second ones, in three
strata:

    tail            the target item is a long-tail item: the fraction `tail_target_fraction`, all calibration contexts
    short_history   at most `short_history_max` earlier positives: the fraction `short_history_fraction`
    other           the rest

A stratum with too few rows leaves its slots to the next. The fraction `calibration_fraction` of all contexts are
calibration contexts: they contain the target item and negatives. By default the negatives are about as popular as the
target item, drawn among its neighbors in the order of train counts, so that the LLM cannot get them right by popularity
alone. Every context also contains long-tail items and, if configured, items similar to those of the history: a random
draw rarely contains any, and the LLM knows little about the others. The slots left go to the popularity pool, and in
contexts with a short history first to diverse items: the paper's synthetic sets.

Apart from the target item of a calibration context, no candidate is the item of a positive that the user had before the
end of training, and none has an empty title. The train rows and their histories name these items; items of positives
too long before data.window for any history are read from files beside the catalog (catalog.EARLIER_POSITIVES_PREFIX).
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from sllmr.components import scores
from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import CandidateConfig
from sllmr.components.llm_scorer.messages import Candidate, Context, user_key
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.scores import ScoreRecord
from sllmr.models.item_vectors import ItemVectors, unit

Drawn = TypeVar("Drawn")

TAIL = "tail"
SHORT_HISTORY = "short_history"
OTHER = "other"
STRATA = (TAIL, SHORT_HISTORY, OTHER)

NEIGHBOURS = 50
"""Negatives are drawn from this many items on either side of the target item in the order of train counts, and items
similar to one of the history from this many nearest vectors.
"""

_DRAWS_OF_SIMILAR = 200
"""Tries to find similar items that were not drawn yet: small categories may not hold enough."""

_LATEST = 10
"""Items of the history that candidates are similar to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositiveRow:
    """A positive train row: a user, the history before the row, and the target item.

    Attributes:
        history_item_ids: latest first.
        item_id: the target item.
        user_positives: how many positive train rows the user has, before and after this one.
        timestamp, about_user: see messages.Context.
    """

    user_id: str
    position: int
    history_item_ids: tuple[str, ...]
    history_length: int
    item_id: str
    user_positives: int = 0
    timestamp: int = 0
    about_user: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(list(dataclasses.asdict(self).values()), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "PositiveRow":
        values = dict(zip((field.name for field in dataclasses.fields(cls)), json.loads(text), strict=True))
        return cls(**values | {name: tuple(values[name]) for name in ("history_item_ids", "about_user")})


class RowKey(NamedTuple):
    """Names a row, and says whether its context can be a calibration context: all that choosing contexts takes."""

    user_id: str
    position: int
    can_calibrate: bool


def context_id(row: PositiveRow, seed: int) -> str:
    """Name of a context that does not reveal the user id."""
    return scores.context_id(row.user_id, row.position, seed)


def is_record_of(record: ScoreRecord, row: PositiveRow) -> bool:
    """Whether a record has the history of this row, as far as both contain it, and no other target item."""
    pairs = zip(record.history_item_ids, row.history_item_ids, strict=False)  # data.sizes.history may have changed
    return (
        record.history_length == row.history_length
        and all(recorded == today for recorded, today in pairs)
        and record.target_item_id in ("", row.item_id)
    )


def candidates_of(
    record: ScoreRecord, catalog: Mapping[str, Item], interacted: Collection[str]
) -> tuple[Candidate, ...]:
    """The candidates of a record that could still be drawn, and its target item.

    Items that the user has interacted with since, that lost their title, or that left the catalog are dropped.
    """
    return tuple(
        Candidate(item_id=item_id, role=role)
        for item_id, role in zip(record.item_ids, record.roles, strict=True)
        if item_id in catalog and catalog[item_id].title and (role == scores.TARGET or item_id not in interacted)
    )


def context_of(
    record: ScoreRecord,
    row: PositiveRow,
    candidates: tuple[Candidate, ...],
    *,
    last_position: int,
    seed: int,
    user_id: str,
) -> Context:
    """A record's context as it is today, at the record's own row."""
    return Context(
        context_id=context_id(row, seed),
        history_item_ids=row.history_item_ids,
        history_length=row.history_length,
        candidates=candidates,
        target_item_id=record.target_item_id,
        user_id=user_id,
        user_key=user_key(row.user_id, seed),
        user_positives=row.user_positives,
        last_position=last_position,
        timestamp=row.timestamp,
        about_user=row.about_user,
    )


def number_of_contexts(pairs: int, per_context: int) -> int:
    """How many contexts a budget of pairs can hold; at least one, which then has fewer candidates."""
    return max(1, pairs // per_context)


def stratum(row: PositiveRow, catalog: Mapping[str, Item], config: CandidateConfig) -> str:
    """One of STRATA. If tail_target_fraction is 0, TAIL stays empty: its rows would come last, and no calibration
    context would have a long-tail target item.
    """
    item = catalog.get(row.item_id)
    if config.tail_target_fraction and item is not None and item.is_tail and item.title:
        return TAIL
    return SHORT_HISTORY if row.history_length <= config.short_history_max else OTHER


def can_be_scored(row: PositiveRow, catalog: Mapping[str, Item], *, history_lag: int) -> bool:
    """Whether a prompt can describe some of the history without its newest `history_lag` items."""
    return any(i in catalog and catalog[i].title for i in row.history_item_ids[history_lag:])


def can_calibrate(row: PositiveRow, catalog: Mapping[str, Item]) -> bool:
    """Whether a prompt can name the target item."""
    return row.item_id in catalog and bool(catalog[row.item_id].title)


def choose_contexts(
    by_stratum: Mapping[str, Sequence[RowKey]], contexts: int, config: CandidateConfig
) -> list[tuple[RowKey, str]]:
    """Fills the fraction of each stratum, then gives what is left over to the others.

    Args:
        by_stratum: each in order of priority.
        contexts: how many to choose at most.

    Returns:
        Rows with their stratum.
    """
    sizes = {
        TAIL: int(contexts * config.tail_target_fraction),
        SHORT_HISTORY: int(contexts * config.short_history_fraction),
    }
    chosen: list[tuple[RowKey, str]] = []
    left: dict[str, Sequence[RowKey]] = {}
    for name in STRATA:
        size = sizes.get(name, contexts - len(chosen))
        users = {row.user_id for row, _ in chosen}
        # Users whom no other stratum asks about come first.
        ordered = by_stratum.get(name, ())
        rows = [m for m in ordered if m.user_id not in users] + [m for m in ordered if m.user_id in users]
        chosen += [(row, name) for row in rows[:size]]
        left[name] = rows[size:]
    for name in (OTHER, SHORT_HISTORY, TAIL):
        chosen += [(row, name) for row in left[name][: contexts - len(chosen)]]
    return chosen


def choose_calibration(rows: Sequence[tuple[RowKey, str]], config: CandidateConfig, seed: int) -> set[RowKey]:
    """Which of the chosen rows become calibration contexts: all of the tail stratum, then others by hash.

    At least one, unless the fraction is 0: without any, a gate could not be fitted, although everything is paid for
    by then.
    """
    wanted = max(round(config.calibration_fraction * len(rows)), int(config.calibration_fraction > 0))
    able = [(m, name) for m, name in rows if m.can_calibrate]
    # "probe" is a salt: another one would draw other contexts and pay for them again.
    able.sort(key=lambda pair: (pair[1] != TAIL, seeded_fraction(seed, "probe", pair[0].user_id, pair[0].position)))
    return {row for row, _ in able[:wanted]}


class CandidatePools:
    """The catalog in the orders that candidates are drawn from.

    Args:
        catalog: all items.
        config: which candidates are drawn.
        vectors: items with near vectors are similar; if None, items of one category are.
    """

    def __init__(self, catalog: Mapping[str, Item], config: CandidateConfig, vectors: ItemVectors | None = None):
        titled = [item for item in catalog.values() if item.title]
        # Ties are broken by a hash, or items would follow the order of their ids.
        titled.sort(key=lambda item: (item.train_count, seeded_fraction("rank", item.item_id)))
        self._config = config
        self._by_popularity = [item.item_id for item in titled]
        self._rank = {item_id: n for n, item_id in enumerate(self._by_popularity)}
        self._popular = self._by_popularity[: -config.popularity_pool - 1 : -1]
        self._tail = [item.item_id for item in titled if item.is_tail]
        groups: dict[str, list[str]] = {}
        for item in titled:
            groups.setdefault(item.categories[0] if item.categories else "", []).append(item.item_id)
        self._by_category = [groups[name] for name in sorted(groups)]
        self._same_category = {item_id: groups[name] for name in groups if name for item_id in groups[name]}
        self._nearest: dict[str, list[str]] = {}
        self._vectors = None
        if vectors is not None:
            self._with_vector = [item_id for item_id in sorted(self._by_popularity) if item_id in vectors.row]
            self._vectors = unit(vectors.vectors[[vectors.row[item_id] for item_id in self._with_vector]])
            self._vector_row = {item_id: n for n, item_id in enumerate(self._with_vector)}

    def context(
        self,
        row: PositiveRow,
        *,
        name: str,
        calibration: bool,
        interacted: Collection[str],
        size: int,
        seed: int,
        last_position: int = 0,
        user_id: str = "",
        carried: Sequence[Candidate] = (),
    ) -> Context:
        """Draws the candidates of one context.

        Args:
            row: the positive row.
            name: its stratum.
            calibration: whether the target item and negatives are candidates.
            interacted: items of the user's positives before the end of training, before or after the row.
            size: candidates at most.
            seed: of the draw, with the context's id.
            last_position: of the user's last positive train row; stored with the context.
            user_id: stored with the context; empty to store none.
            carried: candidates that come first after the target item and its negatives, for comparison with an
                earlier context.
        """
        identifier = context_id(row, seed)
        rng = random.Random(int.from_bytes(hashlib.sha256(f"draw\x1f{seed}\x1f{identifier}".encode()).digest()))
        taken = set(interacted) | set(row.history_item_ids) | {row.item_id}
        drawn: list[Candidate] = []

        def draw(pool: Iterable[str], number: int, role: str) -> None:
            for item_id in pool:
                if number <= 0 or len(drawn) >= size:
                    return
                if item_id not in taken:
                    taken.add(item_id)
                    drawn.append(Candidate(item_id=item_id, role=role))
                    number -= 1

        if calibration:
            drawn.append(Candidate(item_id=row.item_id, role=scores.TARGET))
            negatives = (
                self._neighbours(row.item_id, rng)
                if self._config.calibration_negatives == "popularity"
                else _shuffled(self._by_popularity, rng)
            )
            draw(negatives, self._config.negatives_per_target, scores.NEGATIVE)
        for candidate in carried:
            draw([candidate.item_id], 1, candidate.role)
        draw(_shuffled(self._tail, rng), self._config.tail_per_context, scores.TAIL)
        draw(self._similar(row.history_item_ids, rng), self._config.similar_per_context, scores.SIMILAR)
        if name == SHORT_HISTORY:
            draw(self._diverse(rng), size, scores.DIVERSE)
        draw(_shuffled(self._popular, rng), size, scores.POPULAR)
        return Context(
            context_id=identifier,
            history_item_ids=row.history_item_ids,
            history_length=row.history_length,
            candidates=tuple(drawn),
            target_item_id=row.item_id if calibration else "",
            user_id=user_id,
            user_key=user_key(row.user_id, seed),
            user_positives=row.user_positives,
            last_position=last_position,
            timestamp=row.timestamp,
            about_user=row.about_user,
        )

    def _neighbours(self, item_id: str, rng: random.Random) -> Iterable[str]:
        rank = self._rank[item_id]
        return _shuffled(self._by_popularity[max(0, rank - NEIGHBOURS) : rank + NEIGHBOURS + 1], rng)

    def _similar(self, history: Sequence[str], rng: random.Random) -> Iterable[str]:
        """Yields items, each similar to a random item of the history: of its category, or near its vector."""
        known: Collection[str] = self._same_category if self._vectors is None else self._vector_row
        like = [item_id for item_id in history[:_LATEST] if item_id in known]
        for _ in range(_DRAWS_OF_SIMILAR if like else 0):
            item_id = like[rng.randrange(len(like))]
            group = self._same_category[item_id] if self._vectors is None else self._neighbours_by_vector(item_id)
            yield group[rng.randrange(len(group))]

    def _neighbours_by_vector(self, item_id: str) -> list[str]:
        """The NEIGHBOURS items of the highest cosine, itself among them; kept, as histories repeat items."""
        assert self._vectors is not None
        if item_id not in self._nearest:
            cosines = self._vectors @ self._vectors[self._vector_row[item_id]]
            # By cosine and then by id: which of equals is in must not depend on the machine.
            rows = np.lexsort((np.arange(len(cosines)), -cosines))[:NEIGHBOURS]
            self._nearest[item_id] = [self._with_vector[row] for row in rows]
        return self._nearest[item_id]

    def _diverse(self, rng: random.Random) -> Iterable[str]:
        """One item of each category, in a random order of categories, then a second round in the same order."""
        categories = list(_shuffled(self._by_category, rng))
        for _ in range(2):
            for items in categories:
                yield items[rng.randrange(len(items))]


def _shuffled(values: Sequence[Drawn], rng: random.Random) -> Iterable[Drawn]:
    """All values in random order, at a cost that grows only with how many are taken."""
    swapped: dict[int, int] = {}
    for n in range(len(values)):
        other = rng.randrange(n, len(values))
        index = swapped.get(other, other)
        swapped[other] = swapped.get(n, n)
        yield values[index]

"""Whom to ask about, and which items: pure choices from train rows, seeded by hashes of ids.

A context is one positive row of the train split: its user, at the moment of the row, with the history
strictly before it. `budget.pairs // per_context` contexts are chosen, users before second contexts of a user,
in three strata:

    tail    the row's item is a long-tail item; a share `tail_chosen_fraction`, all of them labelled probes
    cold    at most `cold_max_history` earlier positives; a share `cold_fraction`
    other   the rest

A stratum that has too few rows leaves its places to the next. A share `probe_fraction` of all contexts are
labelled probes: they hold the row's own item beside negatives, by default about as popular as it, drawn among its
neighbours in the order of train counts, so that what the LLM gets right on them is not popularity. Every
context also holds long-tail items and, where configured, items like those of the history: among items drawn at
random hardly one is like them, and where none is the LLM has little to say. The places left go to the popularity
pool, in cold contexts to diverse items: the paper's synthetic sets.

No candidate is among the items that the user chose anywhere in the train split, the row's own in probes
aside, and none has an empty title.
"""

import dataclasses
import hashlib
import json
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from components import scores
from components.catalog import Item
from components.llm_scorer.config import CandidateConfig
from components.llm_scorer.exchange import Candidate, Context
from components.scores import ScoreRecord
from models.item_vectors import ItemVectors, unit

Drawn = TypeVar("Drawn")

TAIL = "tail"
COLD = "cold"
OTHER = "other"
STRATA = (TAIL, COLD, OTHER)

NEIGHBOURS = 50
"""Negatives of a probe come from so many items on either side of the chosen one in the order of train
counts; items similar to one of the history from so many nearest vectors.
"""

_DRAWS_OF_SIMILAR = 200
"""Tries to find similar items that were not drawn yet: small categories may not hold enough."""

_LATEST = 10
"""Items of the history that candidates are similar to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """A positive train row: a user, what was chosen before it (latest first), and what was chosen then.

    `user_positives` counts the user's positive train rows, before and after this one.
    """

    user_id: str
    position: int
    history_item_ids: tuple[str, ...]
    history_length: int
    item_id: str
    user_positives: int = 0

    def to_json(self) -> str:
        return json.dumps(list(dataclasses.asdict(self).values()), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Moment":
        values = dict(zip((field.name for field in dataclasses.fields(cls)), json.loads(text), strict=True))
        return cls(**values | {"history_item_ids": tuple(values["history_item_ids"])})


class MomentKey(NamedTuple):
    """Which moment, and whether it can become a labelled probe: all that choosing moments takes."""

    user_id: str
    position: int
    can_probe: bool


def seeded_fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone, not on process, order or bundle."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


def context_id(moment: Moment, seed: int) -> str:
    """Name of a context that does not tell the user id."""
    return hashlib.sha256(f"context\x1f{seed}\x1f{moment.user_id}\x1f{moment.position}".encode()).hexdigest()[:24]


def user_key(user_id: str, seed: int) -> str:
    """Name that the contexts of one user share, and that does not tell the user id."""
    return hashlib.sha256(f"user\x1f{seed}\x1f{user_id}".encode()).hexdigest()[:24]


def is_moment_of(record: ScoreRecord, moment: Moment) -> bool:
    """Whether a record tells the history of this moment, as far as both tell it, and its choice."""
    pairs = zip(record.history_item_ids, moment.history_item_ids, strict=False)  # data.sizes.history may have changed
    return (
        record.history_length == moment.history_length
        and all(recorded == today for recorded, today in pairs)
        and record.chosen_item_id in ("", moment.item_id)
    )


def candidates_of(
    record: ScoreRecord, catalog: Mapping[str, Item], chosen_anywhere: Collection[str]
) -> tuple[Candidate, ...]:
    """The candidates of a record that could still be drawn, and the choice of its probe.

    Left out are items that the user has chosen since, and those that have lost their title or left the catalogue.
    """
    return tuple(
        Candidate(item_id=item_id, role=role)
        for item_id, role in zip(record.item_ids, record.roles, strict=True)
        if item_id in catalog and catalog[item_id].title and (role == scores.CHOSEN or item_id not in chosen_anywhere)
    )


def context_of(
    record: ScoreRecord, moment: Moment, candidates: tuple[Candidate, ...], *, seed: int, user_id: str
) -> Context:
    """A record's context as it is today, at the record's own moment."""
    return Context(
        context_id=context_id(moment, seed),
        history_item_ids=moment.history_item_ids,
        history_length=moment.history_length,
        candidates=candidates,
        chosen_item_id=record.chosen_item_id,
        user_id=user_id,
        user_key=user_key(moment.user_id, seed),
        user_positives=moment.user_positives,
    )


def number_of_contexts(pairs: int, per_context: int) -> int:
    """How many contexts a budget of pairs can hold; at least one, which then has fewer candidates."""
    return max(1, pairs // per_context)


def stratum(moment: Moment, catalog: Mapping[str, Item], config: CandidateConfig) -> str:
    """One of STRATA; without a share of its own TAIL holds nothing, or its rows would be asked about last of all and no
    probe would show a long-tail item that was chosen."""
    item = catalog.get(moment.item_id)
    if config.tail_chosen_fraction and item is not None and item.is_tail and item.title:
        return TAIL
    return COLD if moment.history_length <= config.cold_max_history else OTHER


def can_be_asked(moment: Moment, catalog: Mapping[str, Item], *, history_lag: int) -> bool:
    """Whether a prompt can tell anything of the history, its newest `history_lag` items left out."""
    return any(i in catalog and catalog[i].title for i in moment.history_item_ids[history_lag:])


def can_probe(moment: Moment, catalog: Mapping[str, Item]) -> bool:
    """Whether a prompt can name the item that was chosen then."""
    return moment.item_id in catalog and bool(catalog[moment.item_id].title)


def choose_moments(
    by_stratum: Mapping[str, Sequence[MomentKey]], contexts: int, config: CandidateConfig
) -> list[tuple[MomentKey, str]]:
    """Fills the strata's shares, then lets what is left over go to the others.

    Args:
        by_stratum: each in order of priority.
        contexts: how many to choose at most.

    Returns:
        Moments with their stratum.
    """
    shares = {TAIL: int(contexts * config.tail_chosen_fraction), COLD: int(contexts * config.cold_fraction)}
    chosen: list[tuple[MomentKey, str]] = []
    left: dict[str, Sequence[MomentKey]] = {}
    for name in STRATA:
        share = shares.get(name, contexts - len(chosen))
        users = {moment.user_id for moment, _ in chosen}
        # Users whom no other stratum asks about come first.
        ordered = by_stratum.get(name, ())
        moments = [m for m in ordered if m.user_id not in users] + [m for m in ordered if m.user_id in users]
        chosen += [(moment, name) for moment in moments[:share]]
        left[name] = moments[share:]
    for name in (OTHER, COLD, TAIL):
        chosen += [(moment, name) for moment in left[name][: contexts - len(chosen)]]
    return chosen


def choose_probes(moments: Sequence[tuple[MomentKey, str]], config: CandidateConfig, seed: int) -> set[MomentKey]:
    """Which of the chosen moments become labelled probes: all of the tail stratum, then others by hash."""
    wanted = round(config.probe_fraction * len(moments))
    able = [(m, name) for m, name in moments if m.can_probe]
    able.sort(key=lambda pair: (pair[1] != TAIL, seeded_fraction(seed, "probe", pair[0].user_id, pair[0].position)))
    return {moment for moment, _ in able[:wanted]}


class CandidatePools:
    """The catalogue in the orders that candidates are drawn from.

    Args:
        catalog: all items.
        config: which candidates are drawn.
        vectors: by which items are similar; None: those of one category are.
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
        moment: Moment,
        *,
        name: str,
        probe: bool,
        chosen_anywhere: Collection[str],
        size: int,
        seed: int,
        user_id: str = "",
        carried: Sequence[Candidate] = (),
    ) -> Context:
        """Draws the candidates of one context.

        Args:
            moment: the user's moment.
            name: its stratum.
            probe: whether the chosen item and negatives beside it are asked about.
            chosen_anywhere: items that the user chose in the train split, before or after the moment.
            size: candidates at most.
            seed: of the draw, with the context's id.
            user_id: stored with the context; empty to store none.
            carried: candidates that take the first places after those of a probe, for comparison with an earlier
                context.
        """
        identifier = context_id(moment, seed)
        rng = random.Random(int.from_bytes(hashlib.sha256(f"draw\x1f{seed}\x1f{identifier}".encode()).digest()))
        taken = set(chosen_anywhere) | set(moment.history_item_ids) | {moment.item_id}
        drawn: list[Candidate] = []

        def draw(pool: Iterable[str], number: int, role: str) -> None:
            for item_id in pool:
                if number <= 0 or len(drawn) >= size:
                    return
                if item_id not in taken:
                    taken.add(item_id)
                    drawn.append(Candidate(item_id=item_id, role=role))
                    number -= 1

        if probe:
            drawn.append(Candidate(item_id=moment.item_id, role=scores.CHOSEN))
            negatives = (
                self._neighbours(moment.item_id, rng)
                if self._config.probe_negatives == "popularity"
                else _shuffled(self._by_popularity, rng)
            )
            draw(negatives, self._config.negatives_per_probe, scores.NEGATIVE)
        for candidate in carried:
            draw([candidate.item_id], 1, candidate.role)
        draw(_shuffled(self._tail, rng), self._config.tail_per_context, scores.TAIL)
        draw(self._similar(moment.history_item_ids, rng), self._config.similar_per_context, scores.SIMILAR)
        if name == COLD:
            draw(self._diverse(rng), size, scores.DIVERSE)
        draw(_shuffled(self._popular, rng), size, scores.POPULAR)
        return Context(
            context_id=identifier,
            history_item_ids=moment.history_item_ids,
            history_length=moment.history_length,
            candidates=tuple(drawn),
            chosen_item_id=moment.item_id if probe else "",
            user_id=user_id,
            user_key=user_key(moment.user_id, seed),
            user_positives=moment.user_positives,
        )

    def _neighbours(self, item_id: str, rng: random.Random) -> Iterable[str]:
        rank = self._rank[item_id]
        return _shuffled(self._by_popularity[max(0, rank - NEIGHBOURS) : rank + NEIGHBOURS + 1], rng)

    def _similar(self, history: Sequence[str], rng: random.Random) -> Iterable[str]:
        """Items like a random one of the history, again and again: of its category, or near its vector."""
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
        """One item of each category in a random order of categories, then a second round, and so on."""
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

"""What every arm of a domain ranks: each user's next positive among sampled items, or among all items."""

import bisect
import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from sllmr.components.catalog import Item, ItemFeatures
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.rows import sample_negative, seeded_hash
from sllmr.components.interactions_example_gen.tables import BadRow, read_interactions, table_paths
from sllmr.components.llm_scorer.messages import Candidate, Context
from sllmr.components.llm_scorer.strategies import Strategy
from sllmr.models import features, inputs
from sllmr.models.features import Feature, FeatureSizes, Role
from sllmr.models.parsing import parsing_spec
from sllmr.models.ranking import Scorer
from sllmr.pipeline.ablation.ranking_config import RankingConfig
from sllmr.pipeline.ablation.results import RankingInfo

SAMPLED, ALL_ITEMS = "sampled", "all_items"
"""Names of the rankings: among sampled items, and among all items of the catalog."""

NO_CANDIDATE = -1
"""Pads the candidates of a user who has fewer than others."""

_ROWS_AT_ONCE = 16384
_BEFORE_ALL_VERSIONS = -1

Columns = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedUser:
    """One user of a ranking.

    Attributes:
        user_id: the user.
        row: number of the test row of the user's first test positive.
        item_id: of that row.
        history: item ids as of that row, latest first.
        timestamp: of that row, Unix milliseconds; None without declared features.
    """

    user_id: str
    row: int
    item_id: str
    history: tuple[str, ...]
    timestamp: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """Users with their candidates, the same for every arm.

    Attributes:
        users: transformed columns of each user's positive test row, [users] + shape.
        items: transformed columns of Role.ITEM of every candidate, [any] + shape.
        candidates: int32 [users, candidates], rows of `items`; the first is the positive, NO_CANDIDATE pads.
        llm_scores: raw scores of the LLM scorer, float32 [users, candidates], NaN where there is none; None where it
            cannot score candidates without requests.
        hash: SHA-256 of the users and the item ids of their candidates.
    """

    users: Columns
    items: Columns
    candidates: np.ndarray
    llm_scores: np.ndarray | None
    hash: str

    @property
    def info(self) -> RankingInfo:
        """What the results file says of it."""
        users, candidates = self.candidates.shape
        return RankingInfo(users=users, candidates=candidates, hash=self.hash)

    @property
    def popularity(self) -> np.ndarray:
        """Train positives of each candidate, int [users, candidates]; of no meaning where NO_CANDIDATE is."""
        return np.asarray(self.items[features.ITEM_TRAIN_COUNT])[self.candidates]

    def scores(self, score: Scorer) -> np.ndarray:
        """Logits of the candidates, float32 [users, candidates], NaN where NO_CANDIDATE is.

        A candidate's row is the user's positive test row with the item's columns replaced.
        """
        result = np.full(self.candidates.shape, np.nan, np.float32)
        user, place = np.nonzero(self.candidates != NO_CANDIDATE)
        for start in range(0, len(user), _ROWS_AT_ONCE):
            of_users, places = user[start : start + _ROWS_AT_ONCE], place[start : start + _ROWS_AT_ONCE]
            batch = {
                **{name: tf.gather(values, of_users) for name, values in self.users.items()},
                **{name: tf.gather(values, self.candidates[of_users, places]) for name, values in self.items.items()},
            }
            result[of_users, places] = score(batch).numpy()
        return result


def make_rankings(
    config: RankingConfig,
    *,
    data: DataConfig,
    catalog: Mapping[str, Item],
    test: Columns,
    test_files: str,
    transform: inputs.Transform,
    strategy: Strategy | None,
) -> dict[str, Ranking]:
    """Draws the candidates of a domain's test users; of one seed they are the same in every process.

    Args:
        config: how many users and candidates.
        data: names the interactions, for the items that a user has.
        catalog: all items.
        test: transformed test rows, in the order of the files.
        test_files: glob of the raw test rows.
        transform: the transform graph.
        strategy: the LLM scorer, if it scores without requests.

    Returns:
        By name, those of SAMPLED and ALL_ITEMS that the configuration has.
    """
    everyone = ranked_users(test_files, data.feature_sizes, config.seed)
    counts = {SAMPLED: config.users, ALL_ITEMS: config.all_items_users}
    taken = everyone[: max(counts.values())]
    own = items_of_users(data, {user.user_id for user in taken})
    item_ids = sorted(catalog)
    table = ItemTable([catalog[item_id] for item_id in item_ids], data.feature_sizes, transform)
    rankings = {}
    for name, count in counts.items():
        users = taken[:count]
        if not users:
            continue
        ids = []
        for user in users:
            avoided = own.get(user.user_id, set()) | {user.item_id, *user.history}
            if name == SAMPLED:
                negatives = sample_items(item_ids, avoided, config.candidates, config.seed, user.user_id)
            else:
                negatives = [item_id for item_id in item_ids if item_id not in avoided]
            ids.append([user.item_id, *negatives])
        rows = np.array([user.row for user in users])
        rankings[name] = Ranking(
            users={column: tf.gather(values, rows) for column, values in test.items()},
            items=table.columns,
            candidates=_padded([table.rows(of, user.timestamp) for user, of in zip(users, ids, strict=True)]),
            llm_scores=None if strategy is None else _llm_scores(strategy, users, ids),
            hash=_sha256(users, ids),
        )
    return rankings


def ranked_users(test_files: str, sizes: FeatureSizes, seed: int) -> list[RankedUser]:
    """Every user with a positive test row, in the order of a seeded hash, with the first of these rows."""
    wanted = (
        features.USER_ID,
        features.ITEM_ID,
        features.HISTORY_ITEM_IDS,
        features.LABEL,
        features.POSITION,
        features.TIMESTAMP,
    )
    columns = [f for f in features.row_features(sizes) if f.name in wanted]
    rows = {name: np.asarray(values) for name, values in _load(test_files, columns).items()}
    positives = np.flatnonzero(rows[features.LABEL] == 1)
    positives = positives[np.argsort(rows[features.POSITION][positives], kind="stable")]
    _, first = np.unique(rows[features.USER_ID][positives], return_index=True)
    users = [
        RankedUser(
            user_id=rows[features.USER_ID][row].decode(),
            row=int(row),
            item_id=rows[features.ITEM_ID][row].decode(),
            history=tuple(item.decode() for item in rows[features.HISTORY_ITEM_IDS][row] if item),
            timestamp=int(rows[features.TIMESTAMP][row]) if features.TIMESTAMP in rows else None,
        )
        for row in positives[first]
    ]
    return sorted(users, key=lambda user: seeded_hash(seed, "ranked user", user.user_id))


def _load(files: str, columns: Sequence[Feature]) -> dict[str, np.ndarray]:
    # Without narrow: milliseconds do not fit into int32.
    spec = parsing_spec(columns)
    batches = [tf.io.parse_example(b, spec) for b in inputs.records([files], "rows").batch(_ROWS_AT_ONCE)]
    return {f.name: np.concatenate([batch[f.name].numpy() for batch in batches]) for f in columns}


def items_of_users(data: DataConfig, users: Collection[str]) -> dict[str, set[str]]:
    """By user, every item that the tables have an interaction of, positive or not, at any time."""
    found: dict[str, set[str]] = {}
    for path in table_paths(data.interactions, "data.interactions"):
        for row in read_interactions(path, data):
            if not isinstance(row, BadRow) and row.user_id in users:
                found.setdefault(row.user_id, set()).add(row.item_id)
    return found


def sample_items(item_ids: Sequence[str], avoided: Collection[str], number: int, seed: int, user_id: str) -> list[str]:
    """Different items, uniform over `item_ids` without `avoided`; all of these where they are fewer than `number`.

    Args:
        item_ids: the catalog, sorted.
        avoided: what is never sampled.
        number: of items.
        seed, user_id: of the draw.
    """
    taken: list[str] = []
    known = set(avoided)
    for place in range(number):
        item_id = sample_negative(item_ids, known, seed, "ranked item", user_id, place)
        if item_id is None:
            break
        taken.append(item_id)
        known.add(item_id)
    return taken


class ItemTable:
    """The transformed columns of items: one row for each version of each item, so that a candidate has the declared
    features that held at the time of the ranking.

    Args:
        items: each once.
        sizes: C and the declared features.
        transform: the transform graph.

    Attributes:
        columns: [versions of items] + shape, by name.
    """

    def __init__(self, items: Sequence[Item], sizes: FeatureSizes, transform: inputs.Transform):
        values = ItemFeatures(items, sizes)
        self._starts: dict[str, list[int]] = {}
        self._first: dict[str, int] = {}
        rows: list[dict[str, Any]] = []
        for item in items:
            self._first[item.item_id] = len(rows)
            self._starts[item.item_id] = [version.valid_from for version in item.versions]
            for at in (_BEFORE_ALL_VERSIONS, *self._starts[item.item_id]):
                rows.append(values.item(item.item_id, at))
        columns = [f for f in features.row_features(sizes) if f.role is Role.ITEM]
        raw = {f.name: [row[f.name] for row in rows] for f in columns}
        of_items = [f.name for f in features.transformed_features(sizes, use_user_id=False) if f.role is Role.ITEM]
        batches = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = {f.name: _tensor(raw[f.name][start : start + _ROWS_AT_ONCE], f) for f in columns}
            batches.append(inputs.narrow(transform(part)))
        self.columns: Columns = {name: tf.concat([b[name] for b in batches], axis=0) for name in of_items}

    def rows(self, item_ids: Sequence[str], at: int | None) -> list[int]:
        """Rows of `columns`, one for each item; `at`: Unix milliseconds, None without declared features."""
        if at is None:
            return [self._first[item_id] for item_id in item_ids]
        return [self._first[item_id] + bisect.bisect_right(self._starts[item_id], at) for item_id in item_ids]


def _tensor(values: Sequence, f: Feature) -> tf.Tensor:
    return tf.reshape(tf.constant(values, tf.dtypes.as_dtype(f.dtype)), [-1, *f.shape])


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), NO_CANDIDATE, np.int32)
    for number, of_user in enumerate(rows):
        padded[number, : len(of_user)] = of_user
    return padded


def _llm_scores(strategy: Strategy, users: Sequence[RankedUser], ids: Sequence[Sequence[str]]) -> np.ndarray:
    scores = np.full((len(ids), max(map(len, ids))), np.nan, np.float32)
    for number, (user, of_user) in enumerate(zip(users, ids, strict=True)):
        context = Context(
            context_id="",
            history_item_ids=user.history,
            history_length=len(user.history),
            candidates=tuple(Candidate(item_id=item_id, role="evaluation") for item_id in of_user),
        )
        found = [result.raw_score for result in strategy.results(context, ())]
        scores[number, : len(found)] = [np.nan if score is None else score for score in found]
    return scores


def _sha256(users: Sequence[RankedUser], ids: Sequence[Sequence[str]]) -> str:
    digest = hashlib.sha256()
    for user, of_user in zip(users, ids, strict=True):
        digest.update("\x1f".join([user.user_id, *of_user, "\n"]).encode())
    return digest.hexdigest()

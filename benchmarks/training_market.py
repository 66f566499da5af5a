"""Made-up rows for the training benchmark: a market with tastes, skewed popularity and every feature of a row."""

import dataclasses
import functools
import multiprocessing
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import DeclaredFeature, DeclaredSize
from sllmr.models.features import OTHER, PREFERRED, Role
from sllmr.models.tf_examples import to_example

SIZES = features.FeatureSizes()
ITEMS = 10_000
LEAVES, BRANCHES, ROOTS = 200, 40, 8
BRANDS = 1000
NEGATIVES = 4
VALUES_OF_A_FIELD = 100
ROWS_A_CONTEXT = 1 + NEGATIVES
ROWS_A_SHARD = 100_000

_TASTES = 16
_CHOICE = 8  # items that a user chooses from at a time
_SHARPNESS = 2.0  # of the choice: 0 picks any of them
_TAIL_FRACTION = 0.8  # of the items, the least popular
_CONTEXTS_AT_ONCE = 4000

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Market:
    """The items of a market; item number n has index n, number 0 pads.

    Attributes:
        popularity: float64 [items + 1], the fraction of each item among the interactions; 0 for padding.
        vectors: float32 [items + 1, tastes]; items of one category or brand have similar vectors.
        item_columns: [items + 1] + shape, the transformed features of the role ITEM by name.
    """

    popularity: np.ndarray
    vectors: np.ndarray
    item_columns: Columns

    def vocabulary(self, fields: int = 0) -> features.VocabularySizes:
        """Sizes of the embedding tables, with those of so many extra fields, see `extra_fields`."""
        return features.VocabularySizes(
            items=ITEMS,
            categories=LEAVES + BRANCHES + ROOTS,
            brands=BRANDS,
            declared=tuple(DeclaredSize(feature=f, values=VALUES_OF_A_FIELD) for f in _extra_features(fields)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contexts:
    """Scoring contexts, with the target item and negatives of each.

    Attributes:
        history: int32 [contexts, L], latest first.
        length: int32 [contexts], not cut at L.
        candidates: int32 [contexts, 1 + NEGATIVES], the target item first.
        affinity: float32 [contexts, 1 + NEGATIVES], how well each candidate fits the user's taste.
    """

    history: np.ndarray
    length: np.ndarray
    candidates: np.ndarray
    affinity: np.ndarray


def make_market(seed: int = 0) -> Market:
    """Items with a path of categories, a brand, a popularity that falls as 1 / rank^0.8, and a taste vector."""
    rng = np.random.default_rng([seed, 0])
    leaf = rng.integers(LEAVES, size=ITEMS)
    branch = leaf % BRANCHES
    root = branch % ROOTS
    path = np.stack([1 + leaf, 1 + LEAVES + branch, 1 + LEAVES + BRANCHES + root], axis=1)
    second_leaf = 1 + rng.integers(LEAVES, size=ITEMS)
    categories = np.column_stack([path, second_leaf]) * (np.arange(4) < rng.integers(1, 5, size=(ITEMS, 1)))
    brand = rng.integers(BRANDS, size=ITEMS)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / _TASTES**0.25

    vectors = normal(ITEMS, _TASTES) * 0.5
    vectors += normal(LEAVES, _TASTES)[leaf] + normal(BRANCHES, _TASTES)[branch] + 0.7 * normal(BRANDS, _TASTES)[brand]
    rank = rng.permutation(ITEMS) + 1
    popularity = 1.0 / rank**0.8

    def padded(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        return np.concatenate([np.zeros((1, *values.shape[1:])), values]).astype(dtype)

    return Market(
        popularity=padded(popularity / popularity.sum(), np.float64),
        vectors=padded(vectors, np.float32),
        item_columns={
            features.ITEM_INDEX: np.arange(ITEMS + 1, dtype=np.int32),
            features.ITEM_CATEGORY_INDICES: padded(categories),
            features.ITEM_BRAND_INDEX: padded(1 + brand),
            features.ITEM_TRAIN_COUNT: padded(np.round(popularity / popularity.sum() * 1e6)),
            features.IS_TAIL: padded(rank > (1 - _TAIL_FRACTION) * ITEMS),
        },
    )


def make_contexts(market: Market, contexts: int, seed: int) -> Contexts:
    """One context per user: a taste, a history and a target item chosen by that taste, and uniform negatives."""
    rng = np.random.default_rng([seed, 1])
    chunks = [
        _chunk(market, min(_CONTEXTS_AT_ONCE, contexts - start), rng) for start in range(0, contexts, _CONTEXTS_AT_ONCE)
    ]
    return Contexts(
        **{f.name: np.concatenate([getattr(c, f.name) for c in chunks]) for f in dataclasses.fields(Contexts)}
    )


def _chunk(market: Market, users: int, rng: np.random.Generator) -> Contexts:
    liked = rng.integers(1, ITEMS + 1, size=(users, 2))
    taste = market.vectors[liked].sum(axis=1) + 0.5 * rng.normal(size=(users, _TASTES))
    taste = (taste / np.linalg.norm(taste, axis=1, keepdims=True) * 2).astype(np.float32)
    cumulative = np.cumsum(market.popularity[1:])
    draws = rng.random((users, 1 + SIZES.history, _CHOICE)) * cumulative[-1]
    offered = np.minimum(np.searchsorted(cumulative, draws), ITEMS - 1) + 1
    fit = np.einsum("usck,uk->usc", market.vectors[offered], taste)
    best = (_SHARPNESS * fit + rng.gumbel(size=fit.shape)).argmax(axis=-1)
    chosen = np.take_along_axis(offered, best[..., np.newaxis], axis=-1)[..., 0]
    length = np.minimum(1 + rng.geometric(0.12, size=users), 200)
    candidates = np.column_stack([chosen[:, 0], rng.integers(1, ITEMS + 1, size=(users, NEGATIVES))])
    return Contexts(
        history=(chosen[:, 1:] * (np.arange(SIZES.history) < length[:, np.newaxis])).astype(np.int32),
        length=length.astype(np.int32),
        candidates=candidates.astype(np.int32),
        affinity=np.einsum("uck,uk->uc", market.vectors[candidates], taste),
    )


def context_columns(market: Market, contexts: Contexts) -> Columns:
    """[contexts] + shape, the transformed features of the role CONTEXT, by name."""
    return {
        features.HISTORY_ITEM_INDICES: contexts.history,
        features.HISTORY_CATEGORY_INDICES: market.item_columns[features.ITEM_CATEGORY_INDICES][contexts.history],
        features.HISTORY_BRAND_INDICES: market.item_columns[features.ITEM_BRAND_INDEX][contexts.history],
        features.HISTORY_LENGTH: contexts.length,
        features.USER_HASH: np.arange(len(contexts.length), dtype=np.int32),
    }


def make_rows(market: Market, rows: int, seed: int) -> Columns:
    """Transformed rows as inputs.load_rows returns them, [rows] + shape by name; a context's rows follow each other."""
    contexts = make_contexts(market, -(-rows // ROWS_A_CONTEXT), seed)
    items = contexts.candidates.reshape(-1)
    columns = {n: v.repeat(ROWS_A_CONTEXT, axis=0) for n, v in context_columns(market, contexts).items()}
    columns |= {name: values[items] for name, values in market.item_columns.items()}
    columns[features.IS_COLD] = (columns[features.HISTORY_LENGTH] <= 3).astype(np.int32)
    columns[features.LABEL] = np.tile(np.arange(ROWS_A_CONTEXT) == 0, len(contexts.length)).astype(np.int32)
    return {name: values[:rows] for name, values in columns.items()}


def extra_fields(rows: int, fields: int, seed: int) -> Columns:
    """Values of declared features of the interaction, drawn evenly: int32 [rows] in 1..VALUES_OF_A_FIELD, by name."""
    rng = np.random.default_rng([seed, 3])
    drawn = rng.integers(1, VALUES_OF_A_FIELD + 1, size=(fields, rows), dtype=np.int32)
    return {f.index: values for f, values in zip(_extra_features(fields), drawn, strict=True)}


def _extra_features(fields: int) -> list[DeclaredFeature]:
    return [DeclaredFeature(name=f"field_{n}", table="interaction", kind="categorical") for n in range(fields)]


def make_pairs(market: Market, pairs: int, seed: int) -> dict[str, tf.Tensor]:
    """Pairs as models.inputs.load_pairs returns them, from an LLM that knows the tastes up to noise.

    The first quarter pairs the target item with a negative, as calibration pairs; the others hold two negatives.
    """
    rng = np.random.default_rng([seed, 2])
    contexts = make_contexts(market, pairs, seed)
    is_calibration = np.arange(pairs) < pairs // 4
    sides = np.stack([np.where(is_calibration, 0, 1), np.full(pairs, 2)], axis=1)
    affinity = np.take_along_axis(contexts.affinity, sides, axis=1)
    scores = 1 / (1 + np.exp(-affinity - rng.normal(size=affinity.shape)))
    order = np.argsort(-scores, axis=1)
    result = context_columns(market, contexts)
    for rank, prefix in enumerate((PREFERRED, OTHER)):
        items = contexts.candidates[np.arange(pairs), np.take_along_axis(sides, order, axis=1)[:, rank]]
        result |= {prefix + name: values[items] for name, values in market.item_columns.items()}
        result[prefix + features.LLM_SCORE] = np.take_along_axis(scores, order, axis=1)[:, rank].astype(np.float32)
    right = (order[:, 0] == 0).astype(np.int32)
    result[features.CALIBRATION_LABEL] = np.where(is_calibration, right, features.NOT_CALIBRATION).astype(np.int32)
    for f in features.pair_features(SIZES):
        if not f.served and f.name not in result:  # columns that some gates read, but not the default gate
            result[f.name] = np.zeros(pairs, np.float32 if f.dtype == "float32" else np.int32)
    return {name: tf.constant(values) for name, values in result.items()}


def serialized_rows(market: Market, rows: int, seed: int) -> Iterator[bytes]:
    """The rows of `make_rows` as serialized tf.Examples.

    Concatenated encodings of messages encode the merged message. So a row is the encodings of its context, its item
    and its label, each made only once.
    """
    columns = features.transformed_features(SIZES, use_user_id=False)
    of_context, of_item, of_row = (
        [f for f in columns if f.role is role] for role in (Role.CONTEXT, Role.ITEM, Role.ROW)
    )
    values = make_rows(market, rows, seed)

    def encoded(row: int, part: list[features.Feature]) -> bytes:
        return to_example({f.name: values[f.name][row].tolist() for f in part}, part).SerializeToString()

    items: dict[int, bytes] = {}
    labels: dict[tuple[int, int], bytes] = {}
    context = b""
    keys = [values[f.name].tolist() for f in of_row]
    for row, (item, *label) in enumerate(zip(values[features.ITEM_INDEX].tolist(), *keys, strict=True)):
        if row % ROWS_A_CONTEXT == 0:
            context = encoded(row, of_context)
        if item not in items:
            items[item] = encoded(row, of_item)
        if tuple(label) not in labels:
            labels[tuple(label)] = encoded(row, of_row)
        yield context + items[item] + labels[tuple(label)]


def write_rows(directory: pathlib.Path, rows: int, processes: int) -> str:
    """Writes rows in gzipped TFRecords, in shards of ROWS_A_SHARD; returns their glob.

    Raises:
        ValueError: `rows` is not a whole number of shards.
    """
    shards, rest = divmod(rows, ROWS_A_SHARD)
    if rest or not shards:
        raise ValueError(f"rows in files must be a multiple of {ROWS_A_SHARD}, got {rows}; round --linear-rows")
    pattern = str(directory / "rows-*.tfrecord.gz")
    if (directory / "complete").exists():
        return pattern
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(functools.partial(_write_shard, directory), range(shards)), 1):
            if done % 10 == 0 or done == shards:
                print(f"{done * ROWS_A_SHARD} of {rows} rows written", flush=True)
    (directory / "complete").touch()
    return pattern


def _write_shard(directory: pathlib.Path, shard: int) -> None:
    with tf.io.TFRecordWriter(str(directory / f"rows-{shard:04d}.tfrecord.gz"), "GZIP") as file:
        for row in serialized_rows(make_market(), ROWS_A_SHARD, seed=1000 + shard):
            file.write(row)

"""Warm start: the weights of an earlier exported model as the initial weights of a new one.

Rows of embedding tables are matched by what they stand for, through the vocabularies of both models: an item's id, a
category, a brand, a user's id, a value of a declared feature, all unknown values of a table. A value that the earlier
model did not know keeps its usual initial vector. All other weights are copied.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from sllmr.models import artifact_files, features
from sllmr.models.declared_features import UNKNOWN_AFTER, DeclaredFeature
from sllmr.models.embeddings import declared_offsets
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.declared_asset import read_declared
from sllmr.models.serving.index_lookup import Vocabularies
from sllmr.models.serving.line_table import read_lines
from sllmr.models.training.report import WarmStart

_WEIGHT = "scoring_variables/{}/.ATTRIBUTES/VARIABLE_VALUE"
_ITEM_VECTORS = "item_vectors/.ATTRIBUTES/VARIABLE_VALUE"
"""Names in the checkpoint that signatures.export writes."""

_MIN_EQUAL_VECTORS = 0.5
"""Of the items that both models know, at least this fraction must have the same item vectors. Otherwise another model
embedded the texts, and the learned projection of the vectors is meaningless."""


class EarlierModel(NamedTuple):
    """The parts of an exported model that a warm start reads.

    Attributes:
        directory: of the SavedModel.
        weights: of embedding and backbone, in the order of RankingModel's.
        vocabularies: see models.serving.index_lookup.
        declared: the declared features.
        item_vectors: float32 [items + 2 or more, any] by item index; None without.
    """

    directory: str
    weights: list[np.ndarray]
    vocabularies: Vocabularies
    declared: tuple[DeclaredFeature, ...]
    item_vectors: np.ndarray | None


class Mismatch(Exception):
    """The earlier model is of another kind; the message is a clause that says how."""


def read_earlier_model(directory: str) -> EarlierModel:
    """Reads an export of models.signatures from the folder of its SavedModel."""
    reader = tf.train.load_checkpoint(os.path.join(directory, "variables", "variables"))
    weights: list[np.ndarray] = []
    while reader.has_tensor(_WEIGHT.format(len(weights))):
        weights.append(reader.get_tensor(_WEIGHT.format(len(weights))))
    declared = read_declared(directory).declared
    assets = os.path.join(directory, "assets")
    names = [*features.INDEXED, *(f.name for f in declared if f.has_vocabulary)]
    return EarlierModel(
        directory=directory,
        weights=weights,
        vocabularies={n: read_lines(p) for n in names if artifact_files.exists(p := os.path.join(assets, n))},
        declared=declared,
        item_vectors=reader.get_tensor(_ITEM_VECTORS) if reader.has_tensor(_ITEM_VECTORS) else None,
    )


def start_from(
    model: RankingModel, vocabularies: Vocabularies, declared: Sequence[DeclaredFeature], earlier: EarlierModel
) -> WarmStart:
    """Sets the weights of `model`, all of whose variables exist, to those of `earlier`.

    Raises:
        Mismatch: features, weights, or item vectors are of another kind; `model` is unchanged.
    """
    table = model.embedding.item_vector_table
    variables = [v for v in (*model.embedding.variables, *model.backbone.variables) if v is not table]
    tables = model.embedding.tables
    by_row = {v.ref() for of_name in tables.values() for v in of_name} | {
        v.ref() for v in (*model.embedding.declared_tables, *(v for v in variables if v.dtype == tf.bool))
    }
    _check(variables, vocabularies, declared, earlier, by_row, None if table is None else table.numpy())
    matches = {name: _matches(vocabularies[name], earlier.vocabularies[name]) for name in tables}
    rows = {variable.ref(): matches[name] for name, of_name in tables.items() for variable in of_name}
    if declared:
        of_declared = _declared_matches(vocabularies, declared, earlier)
        rows |= {variable.ref(): of_declared for variable in model.embedding.declared_tables}
    for variable, weights in zip(variables, earlier.weights, strict=True):
        if variable.dtype == tf.bool:
            continue  # which items are new is a property of today's rows
        if variable.ref() in rows:
            to, of = rows[variable.ref()]
            values = variable.numpy()
            values[to] = weights[of]
            variable.assign(values)
        else:
            variable.assign(weights)
    counted = [*tables, *(f.name for f in declared if f.has_vocabulary)]
    copied = {name: len(set(vocabularies[name]) & set(earlier.vocabularies[name])) for name in counted}
    return WarmStart(
        model=earlier.directory,
        copied=copied,
        new={name: len(vocabularies[name]) - number for name, number in copied.items()},
    )


def _check(
    variables: Sequence[tf.Variable],
    vocabularies: Vocabularies,
    declared: Sequence[DeclaredFeature],
    earlier: EarlierModel,
    by_row: set,
    item_vectors: np.ndarray | None,
) -> None:
    if tuple(declared) != earlier.declared:
        raise Mismatch("the earlier model has other declared features")
    if vocabularies.keys() != earlier.vocabularies.keys():
        raise Mismatch("the earlier model has other vocabularies")
    if len(variables) != len(earlier.weights) or not all(
        _has_shape_of(variable, weights, by_row) for variable, weights in zip(variables, earlier.weights, strict=True)
    ):
        raise Mismatch("the earlier model has weights of other shapes; its `model` section was another one")
    if (item_vectors is None) != (earlier.item_vectors is None):
        raise Mismatch("one of the two models has item vectors, and the other has none")
    if item_vectors is None or earlier.item_vectors is None:
        return
    to, of = _matches(vocabularies[features.ITEMS], earlier.vocabularies[features.ITEMS])
    now, then = item_vectors[to[:-1]], earlier.item_vectors[of[:-1]]
    equal = np.isclose(now, then, atol=1e-4).all(axis=1)
    if len(equal) and equal.mean() < _MIN_EQUAL_VECTORS:
        raise Mismatch("the earlier model has other item vectors for the same items")


def _has_shape_of(variable: tf.Variable, weights: np.ndarray, by_row: set) -> bool:
    """Whether the weights fit. Variables of `by_row` have a row per value, so their number of rows may change."""
    shape = tuple(variable.shape)
    return shape[1:] == weights.shape[1:] if variable.ref() in by_row else shape == weights.shape


def _matches(now: Sequence[bytes], then: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the new table and the rows of the earlier one that stand for the same values; unknown values last."""
    earlier = {value: index for index, value in enumerate(then, start=1)}
    pairs = [(index, earlier[value]) for index, value in enumerate(now, start=1) if value in earlier]
    pairs.append((len(now) + UNKNOWN_AFTER, len(then) + UNKNOWN_AFTER))
    to, of = np.array(pairs).T
    return to, of


def _declared_matches(
    vocabularies: Vocabularies, declared: Sequence[DeclaredFeature], earlier: EarlierModel
) -> tuple[np.ndarray, np.ndarray]:
    """`_matches` for the table of declared features: of each feature the values, the unknown and the missing one."""
    sizes = [f.fixed_size or len(vocabularies[f.name]) for f in declared]
    earlier_sizes = [f.fixed_size or len(earlier.vocabularies[f.name]) for f in declared]
    to: list[np.ndarray] = []
    of: list[np.ndarray] = []
    offsets = zip(declared, sizes, declared_offsets(sizes)[:-1], declared_offsets(earlier_sizes)[:-1], strict=True)
    for f, size, offset, earlier_offset in offsets:
        if f.has_vocabulary:
            now, then = _matches(vocabularies[f.name], earlier.vocabularies[f.name])
        else:
            now = then = np.arange(1, size + UNKNOWN_AFTER + 1)
        for rows, found, before in ((to, now, offset), (of, then, earlier_offset)):
            rows.append(found + before)
            rows.append(found[-1:] + 1 + before)  # the missing value follows the unknown one
    return np.concatenate(to), np.concatenate(of)

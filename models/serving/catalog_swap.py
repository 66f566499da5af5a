"""Puts another catalog into a served model, without training."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils

from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes
from sllmr.models.serving.declared_asset import read_declared
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.serving.item_lookup import (
    CATALOG_ITEM_IDS,
    ItemColumns,
    catalog_table,
    check_item_ids,
    index_values,
    with_new_vectors,
)
from sllmr.models.serving.line_table import read_lines, table_name

_ROWS_AT_ONCE = 4096
_VARIABLES = os.path.join("variables", "variables")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_INDICES, _HALVES, _VECTORS = "item_lookup/_indices/", "item_halves/", "item_vectors"
_LEAST_COSINE = 0.5
"""Two embedding models of one width give a text nearly orthogonal vectors. One model gives similar vectors to
a text before and after an edit."""


class Swapped(NamedTuple):
    """Counts of the new catalog's items.

    Attributes:
        unseen: items that the training did not see.
        with_vector: those of the unseen items that have a vector.
    """

    unseen: int
    with_vector: int


def served_sizes(directory: str) -> FeatureSizes:
    """L, C and the declared features of a SavedModel that models.signatures.export wrote.

    Raises:
        UserError: the folder holds no such SavedModel.
    """
    try:
        inputs = _read(directory).meta_graphs[0].signature_def["raw"].inputs
        _, history, categories = (d.size for d in inputs[features.HISTORY_CATEGORIES].tensor_shape.dim)
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"a served model must be one that a run pushed, got {directory}, which is none: {error}; name "
            "a version below a run's serving/<model>"
        ) from None
    return FeatureSizes(history=history, categories=categories, declared=read_declared(directory).declared)


def trained_item_ids(directory: str) -> list[bytes]:
    """The items that the training of a SavedModel saw; number n has the index n + 1."""
    return read_lines(os.path.join(directory, "assets", features.ITEMS))


def has_item_vectors(directory: str) -> bool:
    """Whether a SavedModel reads vectors of items.

    Raises:
        UserError: it does, but an earlier version of this program wrote it, with a table that cannot grow.
    """
    if _VECTORS + _VALUE in tf.train.load_checkpoint(os.path.join(directory, _VARIABLES)).get_variable_to_shape_map():
        return True
    if any(
        node.op == "VarHandleOp" and _VECTORS in node.name for node in _read(directory).meta_graphs[0].graph_def.node
    ):
        raise UserError(
            f"a model with item vectors must hold a table of them that can grow, got {directory}, which an earlier "
            "version of this program wrote; run the pipeline again, then put the catalog in"
        )
    return False


def swap_catalog(
    source: str, target: str, catalog: ItemColumns, vectors: Mapping[bytes, np.ndarray] | None = None
) -> Swapped:
    """Copies a SavedModel with other items; the weights stay.

    The model ranks an item that the training did not see as an unknown item, by its categories, brand, declared
    features and vector. An item that the training saw keeps the vector that it was trained with.

    Args:
        source: a SavedModel that models.signatures.export wrote.
        target: the folder to write; it must not exist.
        catalog: the items, with categories of the model's C and its declared features of items.
        vectors: for a model with item vectors: float32 [dimensions] of length 1 by id, of items that the training did
            not see, and of some that it saw, which show whether the vectors come from the training's embedding model.

    Raises:
        UserError: see item_lookup.check_item_ids and has_item_vectors; or the vectors are of another model.
    """
    ids = list(catalog[features.ITEM_ID])
    check_item_ids(ids)
    sizes = served_sizes(source)
    vocabulary = trained_item_ids(source)
    known = set(vocabulary)
    table, rows = None, None
    if has_item_vectors(source):
        vectors = vectors or {}
        trained = _value(source, _VECTORS)[: len(vocabulary) + 2]
        _check_vectors(vectors, trained, vocabulary)
        table, rows = with_new_vectors(trained, {i: vectors[i] for i in ids if i in vectors and i not in known})
    shutil.copytree(source, target)
    old_ids = read_lines(os.path.join(source, "assets", CATALOG_ITEM_IDS))
    with tempfile.TemporaryDirectory() as scratch:
        vocabularies = {
            name: read_lines(os.path.join(source, "assets", name))
            for name in (*features.INDEXED, *(f.name for f in sizes.declared))
            if os.path.exists(os.path.join(source, "assets", name))
        }
        lookup = IndexLookup(vocabularies, scratch, sizes, read_declared(source).numbers)
        indices = index_values(catalog, sizes, lookup, rows)
        catalog_table(ids, os.path.join(target, "assets"))
    _rename_table(target, table_name(CATALOG_ITEM_IDS, old_ids), table_name(CATALOG_ITEM_IDS, ids))
    of_items = {} if table is None else {_VECTORS: table}
    _rewrite(target, of_items | {_INDICES + name: values for name, values in indices.items()})
    _rewrite(target, _halves(target, 2 + len(ids)))
    fingerprinting_utils.write_fingerprint(target)
    return Swapped(sum(item_id not in known for item_id in ids), len(rows or {}))


def _check_vectors(vectors: Mapping[bytes, np.ndarray], trained: np.ndarray, vocabulary: list[bytes]) -> None:
    widths = {len(vector) for vector in vectors.values()}
    problem = f"vectors of {sorted(widths)} numbers where the model has {trained.shape[1]}"
    if widths <= {trained.shape[1]}:
        pairs = [(vectors[i], trained[n]) for n, i in enumerate(vocabulary, 1) if i in vectors and trained[n].any()]
        cosine = np.median([new @ old for new, old in pairs]) if pairs else 1.0
        if cosine >= _LEAST_COSINE:
            return
        problem = f"vectors whose cosines with those of the training have the median {cosine:.2f} on {len(pairs)} items"
    raise UserError(
        f"the vectors of new items must come from the model that made those of the training, got {problem}; give the "
        "section item_vectors of the run that trained the model"
    )


def _halves(directory: str, number_of_rows: int) -> dict[str, np.ndarray]:
    """By key in the checkpoint: the precomputed values of all rows, from the model's own function `item_half`."""
    loaded = tf.saved_model.load(directory)
    if not len(loaded.item_halves):
        return {}
    rows = tf.range(number_of_rows, dtype=tf.int64)
    batches = [loaded.item_half(rows[n : n + _ROWS_AT_ONCE]) for n in range(0, number_of_rows, _ROWS_AT_ONCE)]
    return {f"{_HALVES}{n}": tf.concat(parts, axis=0).numpy() for n, parts in enumerate(zip(*batches, strict=True))}


def _rewrite(directory: str, values: Mapping[str, np.ndarray]) -> None:
    """Replaces variables in the checkpoint of a SavedModel, by their path among its objects."""
    prefix = os.path.join(directory, _VARIABLES)
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}
    tensors |= {key + _VALUE: new.astype(tensors[key + _VALUE].dtype) for key, new in values.items()}
    del reader
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors), tensors=list(tensors.values())
    )


def _rename_table(directory: str, old: str, new: str) -> None:
    saved_model = _read(directory)
    for meta_graph in saved_model.meta_graphs:
        graph = meta_graph.graph_def
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if "shared_name" in node.attr and node.attr["shared_name"].s.decode() == old:
                    node.attr["shared_name"].s = new.encode()
    with open(os.path.join(directory, "saved_model.pb"), "wb") as file:
        file.write(saved_model.SerializeToString(deterministic=True))


def _value(directory: str, key: str) -> np.ndarray:
    return tf.train.load_checkpoint(os.path.join(directory, _VARIABLES)).get_tensor(key + _VALUE)


def _read(directory: str) -> Any:
    saved_model = saved_model_pb2.SavedModel()
    with open(os.path.join(directory, "saved_model.pb"), "rb") as file:
        saved_model.ParseFromString(file.read())
    return saved_model

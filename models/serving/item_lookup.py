"""The catalog inside a served model: item id -> indices of the item, its categories and its brand, and its vector."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import ITEM
from sllmr.models.embeddings import ITEM_VECTOR_ROW
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.serving.line_table import line_table

ItemColumns = Mapping[str, Sequence]
"""The catalog's raw values by feature name: ITEM_ID, bytes [items]; ITEM_CATEGORIES, bytes [items, C], padded with b"";
ITEM_BRAND, bytes [items]; the declared features of items, [items] + shape."""

CATALOG_ITEM_IDS = "catalog_item_ids"
"""The asset of item ids."""

_UNKNOWN, _FIRST_ITEM = 1, 2
_NOT_AN_ITEM = b"\x00not in the catalog"
_ITEMS_AT_ONCE = 65536
_LINE_BREAKS = (b"\n", b"\r")


def check_item_ids(item_ids: Sequence[bytes]) -> None:
    """Checks that the ids can be the lines of a vocabulary file.

    Raises:
        UserError: an id is empty, repeated or holds a line break.
    """
    for row, item_id in enumerate(item_ids):
        if not item_id or any(line_break in item_id for line_break in _LINE_BREAKS):
            raise UserError(
                f"an item id must be a text without line breaks, got {item_id!r} in row {row} of the catalog; "
                "change it in the table of items"
            )
    if len(set(item_ids)) != len(item_ids):
        raise UserError(
            f"item ids must be unique, got {len(item_ids) - len(set(item_ids))} repeated ones in the catalog; "
            "remove them from the table of items"
        )


class ItemLookup(tf.Module):
    """Looks up an item's indices by its id.

    Export computes the indices once for each item; they are constants of the model. The empty string gives padding. An
    id that is not in the catalog gives the unknown item without categories and brand.

    Args:
        columns: see ItemColumns.
        sizes: C and the declared features.
        indices: see IndexLookup.
        directory: where the file of ids is written; it must exist until the model is saved.
        new_vector_rows: see index_values.

    Attributes:
        number_of_rows: number of items in the catalog + 2, for padding and the unknown item.
    """

    padding = 0
    """The row of the empty string."""

    def __init__(
        self,
        columns: ItemColumns,
        sizes: FeatureSizes,
        indices: IndexLookup,
        directory: str,
        new_vector_rows: Mapping[bytes, int] | None = None,
    ):
        super().__init__(name="item_lookup")
        ids = list(columns[features.ITEM_ID])
        check_item_ids(ids)
        self.number_of_rows = _FIRST_ITEM + len(ids)
        self._table = catalog_table(ids, directory)
        self._indices = {
            # The shape allows any number of rows, so that another catalog fits the same graph.
            name: tf.Variable(values, trainable=False, name=name, shape=[None, *values.shape[1:]])
            for name, values in index_values(columns, sizes, indices, new_vector_rows).items()
        }

    def rows(self, item_ids: tf.Tensor) -> tf.Tensor:
        """Item ids, string of any shape -> rows for `gather`, int64 of that shape."""
        known = self._table.lookup(item_ids) + _FIRST_ITEM
        return tf.where(tf.equal(item_ids, ""), tf.constant(self.padding, tf.int64), known)

    def gather(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """By name, the candidate's transformed features, and ITEM_VECTOR_ROW if the model has item vectors: int32, or
        float32 for standardized numbers, in the shape of `rows` + that of the feature."""
        return {name: tf.gather(values, rows) for name, values in self._indices.items()}

    def vector_rows(self, item_ids: tf.Tensor, item_indices: tf.Tensor) -> tf.Tensor:
        """Rows of the table of item vectors: the item's index, or the catalog's row for an id outside the vocabulary.

        Args:
            item_ids: string of any shape.
            item_indices: the indices of these items, int64 of the same shape.
        """
        of_catalog = tf.cast(tf.gather(self._indices[ITEM_VECTOR_ROW], self.rows(item_ids)), item_indices.dtype)
        unknown = tf.cast(self._indices[features.ITEM_INDEX][_UNKNOWN], item_indices.dtype)
        return tf.where(tf.equal(item_indices, unknown), of_catalog, item_indices)


def catalog_table(item_ids: Sequence[bytes], directory: str) -> tf.lookup.StaticHashTable:
    """Item id -> its row minus the row of the first item; see line_table."""
    return line_table(item_ids, directory, CATALOG_ITEM_IDS, default_value=_UNKNOWN - _FIRST_ITEM)


def with_new_vectors(trained: np.ndarray, new: Mapping[bytes, np.ndarray]) -> tuple[np.ndarray, dict[bytes, int]]:
    """The table of item vectors with rows of further items.

    Args:
        trained: float32 [V + 2, dimensions], by item index.
        new: by id of an item outside the vocabulary, float32 [dimensions] of length 1.

    Returns:
        float32 [V + 2 + new items, dimensions], and the new items' rows by id.
    """
    rows = {item_id: len(trained) + number for number, item_id in enumerate(new)}
    return np.concatenate([trained, *(vector[np.newaxis] for vector in new.values())]), rows


def index_values(
    columns: ItemColumns,
    sizes: FeatureSizes,
    indices: IndexLookup,
    new_vector_rows: Mapping[bytes, int] | None = None,
) -> dict[str, np.ndarray]:
    """By transformed feature, int32 or float32: the row of padding, of the unknown item, and of each item of the
    catalog. The declared features of the unknown item are missing.

    Args:
        columns: see ItemColumns.
        sizes: C and the declared features.
        indices: see IndexLookup.
        new_vector_rows: see with_new_vectors. If given, even if empty, the result also has ITEM_VECTOR_ROW, in which
            every other item has its index. None for a model without item vectors.
    """
    no_item: dict[str, Sequence] = {
        **{of_candidate: [b""] * _FIRST_ITEM for of_candidate, _ in features.OF_ITEMS.values()},
        features.ITEM_ID: [b"", _NOT_AN_ITEM],
        features.ITEM_CATEGORIES: [[b""] * sizes.categories] * _FIRST_ITEM,
    }
    no_item |= {f.name: [f.missing] * _FIRST_ITEM for f in sizes.of_tables(ITEM)}
    batches = [indices({name: tf.constant(no_item[name]) for name in no_item})]
    for start in range(0, len(columns[features.ITEM_ID]), _ITEMS_AT_ONCE):
        batches.append(indices({name: tf.constant(columns[name][start : start + _ITEMS_AT_ONCE]) for name in no_item}))
    values = {n: tf.concat([batch[n] for batch in batches], axis=0).numpy() for n in batches[0]}
    values = {n: column if column.dtype == np.float32 else column.astype(np.int32) for n, column in values.items()}
    for f in sizes.of_tables(ITEM):  # padding is not an item with a missing value
        values[f.index][ItemLookup.padding] = features.PADDING
    if new_vector_rows is not None:
        rows = values[features.ITEM_INDEX].copy()
        for number, item_id in enumerate(columns[features.ITEM_ID], _FIRST_ITEM):
            rows[number] = new_vector_rows.get(item_id, rows[number])
        values[ITEM_VECTOR_ROW] = rows
    return values

"""Index features -> vectors: the one input that every backbone takes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sllmr.models import features
from sllmr.models.config import ModelConfig
from sllmr.models.declared_features import ITEM, MISSING_AFTER, DeclaredFeature, DeclaredSize
from sllmr.models.replicas import replica_sum, replicas_with
from sllmr.models.text_match import TextMatch

ITEM_VECTOR_ROW = "item_vector_row"
HISTORY_VECTOR_ROWS = "history_vector_rows"
_VECTOR_ROWS = {features.ITEM_INDEX: ITEM_VECTOR_ROW, features.HISTORY_ITEM_INDICES: HISTORY_VECTOR_ROWS}
"""Extra inputs of FeatureEmbedding in an exported model, whose catalog may have vectors of items that the vocabulary
lacks: rows of the table of item vectors, shaped like the item indices. Without them an item's index is its row."""


class EmbeddedFeatures(NamedTuple):
    """The input of a backbone.

    Attributes:
        fields: float32 [batch, fields, dim]: item, its categories, its brand, with item vectors its vector, the
            declared features of items, first those that the history has; the same of the history; with `use_user_id`
            the user; the declared features of users and interactions; with `text_match` the text match. A field is the
            mean of its values, zeros without any.
        candidate: float32 [batch, candidate's fields, dim], the first of `fields`.
        history: float32 [batch, L, history's fields, dim]: the first fields of the candidate, at each position, latest
            first; None unless the backbone sets `uses_history`.
        history_mask: bool [batch, L]: True where the history holds an item; None as above.
        first_order: float32 [batch]: each value has one weight; their mean in each field, summed over the fields. None
            unless the backbone sets `uses_first_order`.
        history_fields: how many fields the history has; None: as many as the candidate.
    """

    fields: tf.Tensor
    candidate: tf.Tensor
    history: tf.Tensor | None = None
    history_mask: tf.Tensor | None = None
    first_order: tf.Tensor | None = None
    history_fields: int | None = None

    @property
    def user(self) -> tf.Tensor:
        """float32 [batch, any, dim]: the fields that belong to neither the candidate nor the history."""
        of_candidate = self.candidate.shape[1]
        # Keras passes numbers to a layer as tensors.
        of_history = of_candidate if self.history_fields is None else int(tf.get_static_value(self.history_fields))
        return self.fields[:, of_candidate + of_history :]


class EmbeddingTable(keras.layers.Layer):
    """One vector for each index; index 0 pads and has none.

    A batch repeats its indices many times (above all the categories of a history). So the layer reads the table
    once for each distinct index and takes segment means over those few rows: the cost and the gradient, an
    IndexedSlices of distinct rows, grow with the batch and never with the table.

    In training the layer adds l2 / batch * sum of ||row||^2 over the distinct rows read. Divided by the batch, the
    penalty compares with one example's part of the mean loss.

    Args:
        rows: indices 0..rows - 1.
        dim: width of a vector.
        l2: weight of the penalty.
    """

    def __init__(self, rows: int, dim: int, l2: float, name: str):
        super().__init__(name=name)
        self._l2 = l2
        self.table = self.add_weight(
            name=name, shape=(rows, dim), initializer=keras.initializers.RandomNormal(stddev=0.01)
        )

    def call(self, groups: list[tf.Tensor], training: bool = False) -> list[tf.Tensor]:
        """The mean vector over the last axis of each group, without padding.

        Args:
            groups: integer tensors [batch, ..., values]; 0 pads.
            training: whether to add the penalty.

        Returns:
            One float32 [batch, ..., dim] for each group; zeros where all values pad.
        """
        ids = tf.concat([tf.reshape(group, [-1]) for group in groups], axis=0)
        places = tf.where(tf.not_equal(ids, features.PADDING))[:, 0]
        distinct, inverse = tf.unique(tf.gather(ids, places))
        rows = self.vectors(distinct)
        if training and self._l2:
            batch = replica_sum(tf.cast(tf.shape(groups[0])[0], tf.float32))
            # A row that several replicas read counts once.
            squares = tf.reduce_sum(tf.square(rows), axis=-1) / replicas_with(distinct)
            self.add_loss(self._l2 * tf.reduce_sum(squares) / batch)
        numbers = [tf.size(group) // group.shape[-1] for group in groups]
        *starts, number = itertools.accumulate(numbers, initial=0)
        segments = tf.concat(
            [start + tf.range(tf.size(group)) // group.shape[-1] for group, start in zip(groups, starts, strict=True)],
            axis=0,
        )
        # One operation for all groups: the gradient of a segment mean that reads no value is uninitialized memory
        # (tensorflow/tensorflow#72785, in 2.21). If no group has a value, that is harmless, since there are no rows.
        means = tf.sparse.segment_mean(rows, inverse, tf.gather(segments, places), num_segments=number)
        return [
            tf.reshape(mean, [-1, *group.shape[1:-1], rows.shape[-1]])
            for mean, group in zip(tf.split(means, tf.stack(numbers), num=len(groups)), groups, strict=True)
        ]

    def vectors(self, indices: tf.Tensor) -> tf.Tensor:
        """Indices, int [rows] -> their vectors, float32 [rows, dim]."""
        return tf.gather(self.table, indices)


class ProjectedVectors(EmbeddingTable):
    """Fixed vectors in place of learned ones, through a learned projection: W v.

    Args:
        vectors: float32 [rows, any]; the catalog of an exported model may add rows.
        dim: width after the projection.
    """

    def __init__(self, vectors: np.ndarray, dim: int, name: str):
        keras.layers.Layer.__init__(self, name=name)
        self._l2 = 0.0
        self.table = tf.Variable(vectors, trainable=False, name=name, shape=[None, vectors.shape[1]])
        self._projection = keras.layers.Dense(dim, use_bias=False)

    def vectors(self, indices: tf.Tensor) -> tf.Tensor:
        return self._projection(super().vectors(indices))


def declared_offsets(sizes: Sequence[int]) -> list[int]:
    """What DeclaredTable adds to the indices of each feature, given each n; last, its number of rows less padding."""
    return [0, *itertools.accumulate(size + MISSING_AFTER for size in sizes)]


class DeclaredTable(keras.layers.Layer):
    """The vectors of all declared features in one table, which is read once.

    Args:
        declared: the features and their numbers of values.
        dim, l2, name: see EmbeddingTable.
    """

    def __init__(self, declared: Sequence[DeclaredSize], dim: int, l2: float, name: str):
        super().__init__(name=name)
        *before, rows = declared_offsets([size.values for size in declared])
        self._before = {size.feature.name: offset for size, offset in zip(declared, before, strict=True)}
        self._table = EmbeddingTable(rows + 1, dim, l2, f"{name}_table")
        self._declared = [size.feature for size in declared]

    @property
    def table(self) -> tf.Variable:
        """float32 [rows, dim]."""
        return self._table.table

    def call(
        self, inputs: Mapping[str, tf.Tensor], by_position: bool = False, training: bool = False
    ) -> dict[str, tf.Tensor]:
        """A field of each declared feature.

        Args:
            inputs: transformed features.
            by_position: whether to return the history's vectors by position, too.
            training: see EmbeddingTable.

        Returns:
            float32 [batch, dim] by name of the feature; means over the history by `history_name`; with `by_position`
            float32 [batch, L, dim] by `history_index`.
        """
        groups = {}
        for f in self._declared:
            groups[f.name] = self._flat(self._rows(f, inputs[f.index]))
            if f.table == ITEM and f.history:
                rows = self._rows(f, inputs[f.history_index])
                groups[f.history_name] = self._flat(rows)
                if by_position:
                    groups[f.history_index] = rows if f.shape else rows[:, :, tf.newaxis]
        fields = dict(zip(groups, self._table(list(groups.values()), training=training), strict=True))
        for f in self._declared:
            if f.is_standardized:
                is_given = tf.equal(inputs[f.index], 1)
                scale = tf.where(is_given, inputs[f.value], tf.ones_like(inputs[f.value]))
                fields[f.name] *= scale[:, tf.newaxis]
        return fields

    def _rows(self, f: DeclaredFeature, indices: tf.Tensor) -> tf.Tensor:
        indices = tf.cast(indices, tf.int32)  # an exported model has int64 of some tables
        return tf.where(tf.equal(indices, features.PADDING), indices, indices + self._before[f.name])

    @staticmethod
    def _flat(rows: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rows, [-1, math.prod(rows.shape[1:])])


class FeatureEmbedding(keras.layers.Layer):
    """Embeds a row. Candidate and history read the same tables.

    The history's fields are means over all of its values: items over L, categories over L * C, brands over L.

    Args:
        vocabulary: number of known values; each table has two rows more, for padding and for unknown values.
        config: widths and penalty.
        uses_history: whether to return the history by position, too.
        uses_first_order: whether to return the first-order term, too.
        item_vectors: float32 [items + 2, any] by item index; None unless config.item_vectors.
        item_dropout: fraction of item ids that training replaces by the unknown item.
        new_items: bool [items + 2] by item index: items without a train positive, whose ids are always replaced by the
            unknown item, so that no id is trained on negatives alone; None: every id is trained.
    """

    def __init__(
        self,
        vocabulary: features.VocabularySizes,
        config: ModelConfig,
        *,
        uses_history: bool = False,
        uses_first_order: bool = False,
        item_vectors: np.ndarray | None = None,
        item_dropout: float = 0.0,
        new_items: np.ndarray | None = None,
    ):
        super().__init__(name="embedding")
        if config.use_user_id and vocabulary.users is None:
            raise ValueError("model.use_user_id needs a vocabulary of users; run Transform with use_user_id too")
        if (item_vectors is not None) != config.item_vectors:
            raise ValueError(
                "item vectors must be given exactly with model.item_vectors, got "
                f"{config.item_vectors} {'without' if item_vectors is None else 'with'} vectors; read them with "
                "sllmr.models.item_vectors"
            )
        self._item_vectors = (
            None if item_vectors is None else ProjectedVectors(item_vectors, config.embedding_dim, "item_vectors")
        )
        self._text_match = TextMatch(config.embedding_dim) if config.text_match else None
        self._use_user_id = config.use_user_id
        self._uses_history = uses_history
        self._item_dropout = item_dropout
        self._unknown_item = vocabulary.items + 1
        self._new_items = None
        if new_items is not None:
            self._new_items = self.add_weight(
                name="new_items",
                shape=new_items.shape,
                dtype=tf.bool,
                initializer=keras.initializers.Constant(new_items),
                trainable=False,
            )
        counts = vocabulary.model_dump(include=set(_table_names(config.use_user_id)))
        self._tables = {
            name: EmbeddingTable(count + 2, config.embedding_dim, config.embedding_l2, name)
            for name, count in counts.items()
        }
        self._weights_by_value = (
            {
                name: EmbeddingTable(count + 2, 1, config.embedding_l2, f"{name}_weight")
                for name, count in counts.items()
            }
            if uses_first_order
            else None
        )
        # Those that the history has come first, so that the history's fields match the candidate's first ones.
        of_items = sorted(
            (size.feature for size in vocabulary.declared if size.feature.table == ITEM), key=lambda f: not f.history
        )
        self._declared_of_items = of_items
        self._declared_of_users = [size.feature for size in vocabulary.declared if size.feature.table != ITEM]
        self._declared, self._declared_weights = None, None
        if vocabulary.declared:
            declared, l2 = vocabulary.declared, config.embedding_l2
            self._declared = DeclaredTable(declared, config.embedding_dim, l2, "declared")
            if uses_first_order:
                self._declared_weights = DeclaredTable(declared, 1, l2, "declared_weight")

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> EmbeddedFeatures:
        """Embeds a batch of the served transformed features; reads the inputs of _VECTOR_ROWS if they are given."""
        ids = self._with_unknown_items(inputs, training)
        batch_groups = _groups(ids, self._use_user_id)
        history_ids = inputs[features.HISTORY_ITEM_INDICES]
        vector_rows = {**inputs, **{index: inputs[row] for index, row in _VECTOR_ROWS.items() if row in inputs}}
        candidate, history, user, positions = [], [], [], []
        tables = [(name, self._tables[name], ids) for name in batch_groups]
        if self._item_vectors is not None:
            after_the_item_fields = 3
            tables.insert(after_the_item_fields, (features.ITEMS, self._item_vectors, vector_rows))
        for name, table, of_table in tables:
            asked = list(_groups(of_table, self._use_user_id)[name])
            if self._uses_history and name != features.USERS:
                asked.append(_by_position(of_table, name))
            vectors = table(asked, training=training)
            if name == features.USERS:
                user = vectors
                continue
            candidate.append(vectors[0])
            history.append(vectors[1])
            positions += vectors[2:]
        if self._declared is not None:
            fields = self._declared(inputs, by_position=self._uses_history, training=training)
            in_history = [f for f in self._declared_of_items if f.history]
            candidate += [fields[f.name] for f in self._declared_of_items]
            history += [fields[f.history_name] for f in in_history]
            user = [*user, *(fields[f.name] for f in self._declared_of_users)]
            if self._uses_history:
                positions += [fields[f.history_index] for f in in_history]
        first_order = None
        if self._weights_by_value is not None:
            terms = [
                term[:, 0]
                for name, groups in batch_groups.items()
                for term in self._weights_by_value[name](list(groups), training=training)
            ]
            if self._declared_weights is not None:
                terms += [term[:, 0] for term in self._declared_weights(inputs, training=training).values()]
            first_order = tf.add_n(terms)
        match = []
        if self._text_match is not None:
            rows_of_candidate = vector_rows[features.ITEM_INDEX][:, tf.newaxis]
            match.append(self.text_match(rows_of_candidate, vector_rows[features.HISTORY_ITEM_INDICES])[:, 0])
        return EmbeddedFeatures(
            fields=tf.stack(candidate + history + user + match, axis=1),
            candidate=tf.stack(candidate, axis=1),
            history=tf.stack(positions, axis=2) if self._uses_history else None,
            history_mask=tf.not_equal(history_ids, features.PADDING) if self._uses_history else None,
            first_order=first_order,
            history_fields=len(history),
        )

    @property
    def tables(self) -> dict[str, list[tf.Variable]]:
        """By vocabulary, the variables with a row for each of its indices."""
        by_value = self._weights_by_value or {}
        return {
            name: [table.table, *([by_value[name].table] if name in by_value else [])]
            for name, table in self._tables.items()
        }

    @property
    def declared_tables(self) -> list[tf.Variable]:
        """The variables with a row for each value of the declared features, see declared_offsets."""
        return [table.table for table in (self._declared, self._declared_weights) if table is not None]

    @property
    def has_text_match(self) -> bool:
        """Whether the last field is the text match."""
        return self._text_match is not None

    @property
    def item_vector_table(self) -> tf.Variable | None:
        """float32 [any, any]: a vector per item index, and per row that a catalog adds; None without item vectors."""
        return None if self._item_vectors is None else self._item_vectors.table

    def text_match(self, candidates: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        """The text match of each candidate with the history of its user.

        Args:
            candidates: int [users, candidates], rows of item_vector_table.
            history: int [users, L], rows of item_vector_table, latest first.

        Returns:
            float32 [users, candidates, dim].
        """
        assert self._text_match is not None
        assert self._item_vectors is not None
        return self._text_match(*(tf.gather(self._item_vectors.table, ids) for ids in (candidates, history)))

    def _with_unknown_items(self, inputs: Mapping[str, tf.Tensor], training: bool) -> Mapping[str, tf.Tensor]:
        """The inputs with the index of the unknown item in place of ids that count as unknown."""
        changed: dict[str, tf.Tensor] = {}
        if self._new_items is None and not (training and self._item_dropout):
            return inputs
        for name in features.INDEXED[features.ITEMS].values():
            indices = inputs[name]
            is_unknown = tf.zeros_like(indices, tf.bool)
            if self._new_items is not None:
                is_unknown = tf.gather(self._new_items, indices)
            if training and self._item_dropout:
                is_unknown |= tf.random.uniform(tf.shape(indices)) < self._item_dropout
            is_item = tf.not_equal(indices, features.PADDING)
            changed[name] = tf.where(is_item & is_unknown, tf.cast(self._unknown_item, indices.dtype), indices)
        return {**inputs, **changed}


def _groups(inputs: Mapping[str, tf.Tensor], use_user_id: bool) -> dict[str, tuple[tf.Tensor, ...]]:
    """By table: the index tensors [batch, values] of the candidate and of the whole history; of users only one."""

    def flat(name: str) -> tf.Tensor:
        ids = inputs[name]
        values = 1
        for size in ids.shape[1:]:
            values *= size
        return tf.reshape(ids, [-1, values])

    return {
        table: tuple(flat(index) for index in features.INDEXED[table].values()) for table in _table_names(use_user_id)
    }


def _table_names(use_user_id: bool) -> list[str]:
    return [table for table in features.INDEXED if use_user_id or table != features.USERS]


def _by_position(inputs: Mapping[str, tf.Tensor], table: str) -> tf.Tensor:
    """The history's indices as [batch, L, values]."""
    _, index = features.INDEXED[table].values()
    ids = inputs[index]
    return ids if ids.shape.rank == 3 else ids[:, :, tf.newaxis]

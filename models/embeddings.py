"""Index features -> vectors: the one input that every backbone takes."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from models import features
from models.config import ModelConfig


class EmbeddedFeatures(NamedTuple):
    """The input of a backbone.

    Attributes:
        fields: float32 [batch, fields, dim]: item, its categories, its brand, with item vectors its vector; the
            same of the history; with `use_user_id` the user. Several values are averaged, none give zeros.
        candidate: float32 [batch, 3 or 4, dim]: the candidate's fields.
        history: float32 [batch, L, 3 or 4, dim]: the same at each position, latest first; None unless the backbone
            sets `uses_history`.
        history_mask: bool [batch, L]: True where the history holds an item; None as above.
        first_order: float32 [batch]: sum over the fields of the mean of one weight for each value; None unless the
            backbone sets `uses_first_order`.
    """

    fields: tf.Tensor
    candidate: tf.Tensor
    history: tf.Tensor | None = None
    history_mask: tf.Tensor | None = None
    first_order: tf.Tensor | None = None

    @property
    def user(self) -> tf.Tensor:
        """float32 [batch, 0 or 1, dim]: the fields of neither the candidate nor the history."""
        return self.fields[:, 2 * self.candidate.shape[1] :]


class EmbeddingTable(keras.layers.Layer):
    """One vector for each index; index 0 pads and has none.

    A batch repeats its indices many times over (the categories of a history above all). So the table is read
    once for each distinct index, and means are segment means over those few rows: the cost and the gradient,
    an IndexedSlices of distinct rows, grow with the batch and never with the table.

    In training adds l2 / batch * sum of ||row||^2 over the distinct rows read. Dividing by the batch sets the
    penalty against one example's share of the mean loss.

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
        """Means over the last axis.

        Args:
            groups: integer tensors [batch, ..., values]; 0 pads.
            training: whether to add the penalty.

        Returns:
            One float32 [batch, ..., dim] for each group; zeros where all values pad.
        """
        masks = [tf.not_equal(ids, features.PADDING) for ids in groups]
        present = [tf.boolean_mask(ids, mask) for ids, mask in zip(groups, masks, strict=True)]
        distinct, inverse = tf.unique(tf.concat(present, axis=0))
        rows = self.vectors(distinct)
        if training and self._l2:
            batch = tf.cast(tf.shape(groups[0])[0], tf.float32)
            self.add_loss(self._l2 * tf.reduce_sum(tf.square(rows)) / batch)
        sizes = [tf.size(ids) for ids in present]
        positions = tf.split(inverse, tf.stack(sizes), num=len(groups))
        means = []
        for ids, mask, position in zip(groups, masks, positions, strict=True):
            leading = tf.shape(ids)[:-1]
            segments = tf.where(tf.reshape(mask, [-1, ids.shape[-1]]))[:, 0]
            mean = tf.sparse.segment_mean(rows, position, segments, num_segments=tf.reduce_prod(leading))
            mean = tf.reshape(mean, tf.concat([leading, [rows.shape[-1]]], axis=0))
            means.append(tf.ensure_shape(mean, [*ids.shape[:-1], rows.shape[-1]]))
        return means

    def vectors(self, indices: tf.Tensor) -> tf.Tensor:
        """[rows] -> float32 [rows, dim]."""
        return tf.gather(self.table, indices)


class ProjectedVectors(EmbeddingTable):
    """Given vectors in place of learnt ones, through a learnt projection: W v.

    Args:
        vectors: float32 [rows, any], fixed.
        dim: width after the projection.
    """

    def __init__(self, vectors: np.ndarray, dim: int, name: str):
        keras.layers.Layer.__init__(self, name=name)
        self._l2 = 0.0
        self.table = self.add_weight(
            name=name, shape=vectors.shape, initializer=keras.initializers.Constant(vectors), trainable=False
        )
        self._projection = keras.layers.Dense(dim, use_bias=False)

    def vectors(self, indices: tf.Tensor) -> tf.Tensor:
        return self._projection(super().vectors(indices))


class FeatureEmbedding(keras.layers.Layer):
    """Embeds a row. Candidate and history read the same tables.

    The history's fields are means over all of its values: items over L, categories over L * C, brands over L.

    Args:
        vocabulary: number of known values; each table has two rows more, for padding and for unknown values.
        config: widths and penalty.
        uses_history: also give the history position by position.
        uses_first_order: also give the first-order term.
        item_vectors: float32 [items + 2, any] by item index; None unless config.item_vectors_file.
    """

    def __init__(
        self,
        vocabulary: features.VocabularySizes,
        config: ModelConfig,
        *,
        uses_history: bool = False,
        uses_first_order: bool = False,
        item_vectors: np.ndarray | None = None,
    ):
        super().__init__(name="embedding")
        if config.use_user_id and vocabulary.users is None:
            raise ValueError("model.use_user_id needs a vocabulary of users; run Transform with use_user_id too")
        if (item_vectors is None) != (config.item_vectors_file is None):
            raise ValueError(
                "item vectors must be given exactly with model.item_vectors_file, got "
                f"{config.item_vectors_file} {'without' if item_vectors is None else 'with'} vectors; read them with "
                "models.item_vectors"
            )
        self._item_vectors = (
            None if item_vectors is None else ProjectedVectors(item_vectors, config.embedding_dim, "item_vectors")
        )
        self._use_user_id = config.use_user_id
        self._uses_history = uses_history
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

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> EmbeddedFeatures:
        """Embeds the served features of models.features.transformed_features, batched."""
        batch_groups = _groups(inputs, self._use_user_id)
        history_ids = inputs[features.HISTORY_ITEM_INDICES]
        candidate, history, user, positions = [], [], [], []
        tables = [(name, self._tables[name]) for name in batch_groups]
        if self._item_vectors is not None:
            after_the_item_fields = 3
            tables.insert(after_the_item_fields, (features.ITEMS, self._item_vectors))
        for name, table in tables:
            asked = list(batch_groups[name])
            if self._uses_history and name != features.USERS:
                asked.append(_by_position(inputs, name))
            vectors = table(asked, training=training)
            if name == features.USERS:
                user = vectors
                continue
            candidate.append(vectors[0])
            history.append(vectors[1])
            positions += vectors[2:]
        first_order = None
        if self._weights_by_value is not None:
            terms = [
                term[:, 0]
                for name, groups in batch_groups.items()
                for term in self._weights_by_value[name](list(groups), training=training)
            ]
            first_order = tf.add_n(terms)
        return EmbeddedFeatures(
            fields=tf.stack(candidate + history + user, axis=1),
            candidate=tf.stack(candidate, axis=1),
            history=tf.stack(positions, axis=2) if self._uses_history else None,
            history_mask=tf.not_equal(history_ids, features.PADDING) if self._uses_history else None,
            first_order=first_order,
        )


def _groups(inputs: Mapping[str, tf.Tensor], use_user_id: bool) -> dict[str, tuple[tf.Tensor, ...]]:
    """By table: the index tensors [batch, values] of the candidate and of the whole history."""

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

"""Scores the candidates of users, from item ids alone."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import INTERACTION, USER
from sllmr.models.embeddings import HISTORY_VECTOR_ROWS, ITEM_VECTOR_ROW, EmbeddedFeatures
from sllmr.models.features import FeatureSizes
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.item_lookup import ItemLookup

MOST_PRECOMPUTED_BYTES = 256 * 2**20
_ROWS_AT_ONCE = 4096


class Ranker:
    """Ranks by a trained model and the catalog inside it.

    Export computes what depends on an item alone (Backbone.item_half) for the whole catalog. If the result takes more
    than MOST_PRECOMPUTED_BYTES, each request computes it for its candidates instead.

    Attributes:
        lookup: as given.
        item_half: rows of the lookup, int64 [items] -> Backbone.item_half of them.
        halves: one variable, float32 [rows of the lookup, any], for each part of Backbone.item_half; none if too large.
    """

    def __init__(
        self,
        model: RankingModel,
        lookup: ItemLookup,
        sizes: FeatureSizes,
        *,
        use_user_id: bool,
        most_precomputed_bytes: int = MOST_PRECOMPUTED_BYTES,
    ):
        self._model, self.lookup, self._sizes, self._use_user_id = model, lookup, sizes, use_user_id
        rows_spec = tf.TensorSpec([None], tf.int64, name="rows")
        self.item_half = tf.function(self._item_half, input_signature=[rows_spec], autograph=False)
        self.halves: list[tf.Variable] = []
        row_bytes = sum(4 * part.shape[1] for part in self._item_half(tf.zeros([1], tf.int64)))
        if lookup.number_of_rows * row_bytes <= most_precomputed_bytes:
            rows = tf.range(lookup.number_of_rows, dtype=tf.int64)
            batches = [
                self.item_half(rows[n : n + _ROWS_AT_ONCE]) for n in range(0, lookup.number_of_rows, _ROWS_AT_ONCE)
            ]
            self.halves = [
                tf.Variable(
                    tf.concat(parts, axis=0), trainable=False, name=f"item_half_{n}", shape=[None, parts[0].shape[1]]
                )
                for n, parts in enumerate(zip(*batches, strict=True))
            ]

    def logits(
        self, history_item_ids: tf.Tensor, candidate_item_ids: tf.Tensor, user: Mapping[str, tf.Tensor]
    ) -> tf.Tensor:
        """Logits; minus infinity for a candidate that pads.

        Args:
            history_item_ids: string [users, any], latest first; "" pads.
            candidate_item_ids: string [users, N]; "" pads.
            user: transformed features of the users and of their requests, [users] + shape: USER_INDEX if and only if
                `use_user_id` is set, and the declared features of users and interactions.

        Returns:
            float32 [users, N].
        """
        rows = self.lookup.rows(candidate_item_ids)
        history = self._histories(history_item_ids)
        match = None
        if self._model.embedding.has_text_match:
            of_candidates = self.lookup.gather(rows)[ITEM_VECTOR_ROW]
            match = self._model.embedding.text_match(of_candidates, history[ITEM_VECTOR_ROW])
        logits = self._model.backbone.rank(self._items(rows), self._embedded_users(history, user), match)
        return tf.where(rows == self.lookup.padding, float("-inf"), logits)

    def _items(self, rows: tf.Tensor) -> Sequence[tf.Tensor]:
        """Backbone.item_half of candidates, float32 [users, N, any] each."""
        if self.halves:
            return [tf.gather(half, rows) for half in self.halves]
        users, number = tf.unstack(tf.shape(rows))
        parts = self._item_half(tf.reshape(rows, [-1]))
        return [tf.reshape(part, [users, number, part.shape[1]]) for part in parts]

    def _item_half(self, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Backbone.item_half of candidates, embedded with padding as the user and as a history of one position."""
        no_history = self.lookup.gather(tf.fill([tf.size(rows), 1], tf.constant(self.lookup.padding, tf.int64)))
        no_user = {features.USER_INDEX: tf.zeros_like(rows)} if self._use_user_id else {}
        for f in self._sizes.of_tables(USER, INTERACTION):
            shape = tf.concat([tf.shape(rows), tf.constant(f.shape, tf.int32)], axis=0)
            no_user[f.index] = tf.reshape(tf.zeros(shape, tf.int64), [-1, *f.shape])
            if f.is_standardized:
                no_user[f.value] = tf.zeros(shape)
        return self._model.backbone.item_half(
            self._model.embedding(self._indices(self.lookup.gather(rows), no_history, no_user))
        )

    def _histories(self, history_item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """The lookup's features for each position of the histories, cut and padded to [users, L]."""
        rows, length = self.lookup.rows(history_item_ids), self._sizes.history
        # Padding goes last, so that a history with padding in front loses no item at the cut.
        latest = tf.argsort(tf.cast(rows == self.lookup.padding, tf.int32), axis=1, stable=True)[:, :length]
        rows = tf.gather(rows, latest, batch_dims=1)
        rows = tf.pad(rows, [[0, 0], [0, length - tf.shape(rows)[1]]], constant_values=self.lookup.padding)
        return self.lookup.gather(tf.ensure_shape(rows, [None, length]))

    def _embedded_users(self, history: Mapping[str, tf.Tensor], user: Mapping[str, tf.Tensor]) -> EmbeddedFeatures:
        """The users, embedded with padding as the candidate, whose fields are then zeros."""
        users = tf.shape(history[features.ITEM_INDEX])[:1]
        no_candidate = self.lookup.gather(tf.fill(users, tf.constant(self.lookup.padding, tf.int64)))
        return self._model.embedding(self._indices(no_candidate, history, user))

    def _indices(
        self, candidate: Mapping[str, tf.Tensor], history: Mapping[str, tf.Tensor], user: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """The transformed features of rows, put together from those of their candidates, of each position of their
        histories, and of their users."""
        result = {**candidate, **user}
        for table in features.OF_ITEMS:
            of_candidate, of_history = features.INDEXED[table].values()
            result[of_history] = history[of_candidate]
        for f in self._sizes.in_history:
            result[f.history_index] = history[f.index]
        if ITEM_VECTOR_ROW in history:
            result[HISTORY_VECTOR_ROWS] = history[ITEM_VECTOR_ROW]
        return result

"""The base class of the backbones, and the layers that they share."""

from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras as keras

from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class Backbone(keras.layers.Layer):
    """Embedded features -> logit.

    A subclass takes the ModelConfig as its only argument and implements `call`.

    Attributes:
        uses_history: whether `call` reads `embedded.history` and `embedded.history_mask`.
        uses_first_order: whether `call` reads `embedded.first_order`.
    """

    uses_history = False
    uses_first_order = False

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        """Returns logits, float32 [batch]."""
        raise NotImplementedError

    def item_half(self, item: EmbeddedFeatures) -> tuple[tf.Tensor, ...]:
        """The intermediate values that depend on the candidates alone; `rank` takes them as `items`.

        Args:
            item: candidates embedded without a user, [items, ...].

        Returns:
            float32 [items, any] each.
        """
        fields = side_by_side(item.candidate)
        return (fields,) if item.first_order is None else (fields, item.first_order[:, tf.newaxis])

    def rank(self, items: Sequence[tf.Tensor], user: EmbeddedFeatures, match: tf.Tensor | None = None) -> tf.Tensor:
        """The logits of `call` for N candidates of each user; a subclass may compute a user's part only once.

        Args:
            items: float32 [users, N, any] each, the parts that `item_half` returns.
            user: users embedded with padding in place of the candidate, [users, ...].
            match: float32 [users, N, dim], the text match, which replaces the last field of `user`; None without one.

        Returns:
            float32 [users, N].
        """
        return tf.reshape(self(_joined(items, user, match)), tf.shape(items[0])[:2])


def _joined(items: Sequence[tf.Tensor], user: EmbeddedFeatures, match: tf.Tensor | None) -> EmbeddedFeatures:
    """The input of `call`, one row for each candidate of each user."""
    fields, *first_order = items
    _, number, dim = user.candidate.shape
    candidate = tf.reshape(fields, [-1, number, dim])
    users, of_each = tf.unstack(tf.shape(fields)[:2])
    user_of_row = tf.repeat(tf.range(users), of_each)

    def of_rows(values: tf.Tensor | None) -> tf.Tensor | None:
        return None if values is None else tf.gather(values, user_of_row)

    parts = [candidate, of_rows(user.fields[:, number:])]
    if match is not None:
        parts = [candidate, parts[1][:, :-1], tf.reshape(match, [-1, 1, dim])]
    return EmbeddedFeatures(
        fields=tf.concat(parts, axis=1),
        candidate=candidate,
        history=of_rows(user.history),
        history_mask=of_rows(user.history_mask),
        first_order=tf.reshape(first_order[0], [-1]) + of_rows(user.first_order) if first_order else None,
        history_fields=user.history_fields,
    )


def of_the_user(user: EmbeddedFeatures, *, has_match: bool) -> tf.Tensor:
    """The fields that do not depend on the candidate, side by side, float32 [users, any]."""
    fields = user.fields[:, user.candidate.shape[1] :]
    return side_by_side(fields[:, :-1] if has_match else fields)


def mlp_of_halves(layers: keras.Sequential, item: tf.Tensor, user: tf.Tensor, match: tf.Tensor | None) -> tf.Tensor:
    """The MLP over [item's fields, user's fields, match]; its first layer is the sum of one product for each.

    Args:
        layers: as `mlp` returns them.
        item: float32 [users, N, width of the first layer], from `first_layer_of_items`.
        user: float32 [users, any], from `of_the_user`.
        match: see Backbone.rank.

    Returns:
        float32 [users * N, width of the last layer].
    """
    kernel, bias = layers.layers[0].weights
    end = kernel.shape[0] - (0 if match is None else match.shape[2])
    of_user = tf.matmul(user, kernel[end - user.shape[1] : end]) + bias
    hidden = tf.reshape(item + of_user[:, tf.newaxis], [-1, item.shape[2]])
    if match is not None:
        hidden += tf.matmul(tf.reshape(match, [-1, match.shape[2]]), kernel[end:])
    for layer in layers.layers[1:]:
        hidden = layer(hidden)
    return hidden


def first_layer_of_items(layers: keras.Sequential, item: EmbeddedFeatures) -> tf.Tensor:
    """The candidate's part of the MLP's first layer, float32 [items, width of that layer]."""
    fields = side_by_side(item.candidate)
    return tf.matmul(fields, layers.layers[0].kernel[: fields.shape[1]])


def mlp(config: ModelConfig, activation: Callable[[], keras.layers.Layer] = keras.layers.ReLU) -> keras.Sequential:
    """The hidden layers, [batch, any] -> [batch, last width]: for each width Dense, activation, Dropout."""
    layers: list[keras.layers.Layer] = []
    for width in config.mlp:
        layers += [keras.layers.Dense(width), activation(), keras.layers.Dropout(config.dropout)]
    return keras.Sequential(layers, name="mlp")


def logit_layer() -> keras.layers.Layer:
    """The last layer, [batch, any] -> float32 [batch, 1]; float32 whatever the precision of the other layers."""
    return keras.layers.Dense(1, dtype="float32")


def side_by_side(vectors: tf.Tensor) -> tf.Tensor:
    """[batch, number, dim] -> [batch, number * dim]."""
    _, number, dim = vectors.shape
    return tf.reshape(vectors, [-1, number * dim])

"""What every backbone is."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf
import tf_keras as keras

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.embeddings import EmbeddedFeatures


class Backbone(keras.layers.Layer):
    """Embedded features -> logit.

    A subclass takes the ModelConfig as its only argument and implements `call`.

    Attributes:
        uses_history: whether `call` reads `embedded.history` and `embedded.history_mask`.
        uses_first_order: whether `call` reads `embedded.first_order`.
    """

    uses_history = False
    uses_first_order = False

    def call(self, embedded: "EmbeddedFeatures", training: bool = False) -> tf.Tensor:
        """Returns logits, float32 [batch]."""
        raise NotImplementedError


def mlp(config: "ModelConfig", activation: Callable[[], keras.layers.Layer] = keras.layers.ReLU) -> keras.Sequential:
    """The hidden layers: for each width Dense, activation, Dropout."""
    layers: list[keras.layers.Layer] = []
    for width in config.mlp:
        layers += [keras.layers.Dense(width), activation(), keras.layers.Dropout(config.dropout)]
    return keras.Sequential(layers, name="mlp")


def side_by_side(vectors: tf.Tensor) -> tf.Tensor:
    """[batch, number, dim] -> [batch, number * dim]."""
    _, number, dim = vectors.shape
    return tf.reshape(vectors, [-1, number * dim])

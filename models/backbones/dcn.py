"""DCN, the first version: cross layers with a weight vector."""

import tensorflow as tf
import tf_keras as keras

from sllmr.models.backbones.backbone import Backbone, logit_layer, mlp, side_by_side
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class VectorCross(keras.layers.Layer):
    """x_{l+1} = x_0 (x_l . w_l) + b_l + x_l, float32 [batch, width].

    TFRS's Cross is no substitute: it has a matrix for w_l and multiplies b_l by x_0.

    Source: Wang et al., "Deep & Cross Network for Ad Click Predictions", arXiv 1708.05123, eq. 3.
    """

    def build(self, x0_shape: tf.TensorShape) -> None:
        width = x0_shape[-1]
        self._w = self.add_weight(name="w", shape=(width, 1), initializer="glorot_uniform")
        self._b = self.add_weight(name="b", shape=(width,), initializer="zeros")

    def call(self, x0: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return x0 * tf.matmul(x, self._w) + self._b + x


class DCN(Backbone):
    """Deep & cross network.

    x_0 = the fields side by side, crossed by VectorCross; logit = w . [x_cross, mlp(x_0)] + b.

    The paper also applies batch normalization in the deep part; this class does not.

    Source: Wang et al., "Deep & Cross Network for Ad Click Predictions", arXiv 1708.05123, eq. 3 to 5.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(name=type(self).__name__.lower())
        self._cross = [self._cross_layer() for _ in range(config.cross_layers)]
        self._mlp = mlp(config)
        self._logit = logit_layer()

    def _cross_layer(self) -> keras.layers.Layer:
        return VectorCross()

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        x0 = side_by_side(embedded.fields)
        crossed = x0
        for layer in self._cross:
            crossed = layer(x0, crossed)
        deep = self._mlp(x0, training=training)
        return tf.squeeze(self._logit(tf.concat([crossed, deep], axis=-1)), axis=-1)

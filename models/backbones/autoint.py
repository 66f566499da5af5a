"""AutoInt: self-attention over the fields."""

import tensorflow as tf
import tf_keras as keras

from sllmr.models.backbones.backbone import Backbone, logit_layer, side_by_side
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class InteractingLayer(keras.layers.Layer):
    """Multi-head self-attention with a residual, [batch, fields, any] -> [batch, fields, heads * head_dim].

    For each head a_mk = softmax over k of <Q e_m, K e_k>, not divided by sqrt(head_dim), and
    e~_m = sum over k of a_mk V e_k; heads side by side; e'_m = ReLU(e~_m + R e_m).

    Keras's MultiHeadAttention is no substitute: it divides and has one more projection.

    Args:
        heads: number of heads.
        head_dim: width of one.
        dropout: fraction of the attention weights dropped in training, as in the authors' code.

    Source: Song et al., "AutoInt", arXiv 1810.11921, eq. 5 to 8.
    """

    def __init__(self, heads: int, head_dim: int, dropout: float):
        super().__init__()
        self._heads = heads
        self._head_dim = head_dim
        self._dropout = keras.layers.Dropout(dropout)

    def build(self, e_shape: tf.TensorShape) -> None:
        shape = (e_shape[-1], self._heads * self._head_dim)
        self._kernels = [
            self.add_weight(name=name, shape=shape, initializer="glorot_uniform")
            for name in ("query", "key", "value", "residual")
        ]

    def call(self, e: tf.Tensor, training: bool = False) -> tf.Tensor:
        _, fields, width = e.shape
        # One matmul computes all four projections. Then the heads move to the front: attention over few fields is a
        # batch of many tiny matrices, which matmul multiplies fastest in this layout.
        projected = tf.matmul(tf.reshape(e, [-1, width]), tf.concat(self._kernels, axis=1))
        projected = tf.reshape(projected, [-1, fields, 4, self._heads, self._head_dim])
        query, key, value, residual = tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]))
        attention = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        attended = tf.matmul(self._dropout(attention, training=training), value)
        combined = tf.transpose(tf.nn.relu(attended + residual), [0, 2, 1, 3])
        return tf.reshape(combined, [-1, fields, self._heads * self._head_dim])


class AutoInt(Backbone):
    """Fields through interacting layers; logit = w . (fields side by side) + b.

    This is plain AutoInt. With an MLP beside it, the paper calls it AutoInt+.

    Source: Song et al., "AutoInt", arXiv 1810.11921, eq. 5 to 9.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(name="autoint")
        self._layers = [
            InteractingLayer(config.attention_heads, config.attention_head_dim, config.dropout)
            for _ in range(config.attention_layers)
        ]
        self._logit = logit_layer()

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        e = embedded.fields
        for layer in self._layers:
            e = layer(e, training=training)
        return tf.squeeze(self._logit(side_by_side(e)), axis=-1)

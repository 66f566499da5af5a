"""xDeepFM: a compressed interaction network beside an MLP."""

import tensorflow as tf
import tf_keras as keras

from sllmr.models.backbones.backbone import Backbone, logit_layer, mlp, side_by_side
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class CompressedInteractionNetwork(keras.layers.Layer):
    """Interactions of degree 2, 3, ... of whole vectors, with the identity as activation and without split-half.

    X^k_h = sum over i, j of W^k_{hij} (X^{k-1}_i * X^0_j); p^k_h = the sum of X^k_h over its elements.

    The code computes p^k without X^k: X^k is linear in the products of k + 1 fields, and the sum over the elements of
    such a product is a dot product of two shorter products. So p^k = (dot products) . mix, where mix is the product of
    W^1 to W^k and does not depend on the rows. With few fields this takes far fewer multiplications; their number
    grows with fields ** (layers + 1).

    Args:
        widths: number of vectors h in each layer k.

    Source: Lian et al., "xDeepFM", arXiv 1803.05170, eq. 6 and 7.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__(name="cin")
        self._widths = widths

    def build(self, x0_shape: tf.TensorShape) -> None:
        fields = x0_shape[1]
        self._kernels = [
            self.add_weight(name=f"w{k}", shape=(previous * fields, width), initializer="glorot_uniform")
            for k, (previous, width) in enumerate(zip((fields, *self._widths[:-1]), self._widths, strict=True))
        ]

    def call(self, x0: tf.Tensor) -> tf.Tensor:
        """[batch, fields, dim] -> all p^k side by side, [batch, sum of widths]."""
        _, fields, dim = x0.shape
        products = [x0]  # of 1, 2, ... fields: [batch, fields ** number, dim]
        while 2 * len(products) <= len(self._widths):
            product = products[-1][:, :, tf.newaxis] * x0[:, tf.newaxis]
            products.append(tf.reshape(product, [-1, fields ** (len(products) + 1), dim]))
        mix = tf.eye(fields, dtype=x0.dtype)
        pooled = []
        for degree, (width, kernel) in enumerate(zip(self._widths, self._kernels, strict=True), start=2):
            mix = tf.reshape(tf.matmul(mix, tf.reshape(kernel, [-1, fields * width])), [-1, width])
            half = degree // 2
            dots = tf.matmul(products[half - 1], products[degree - half - 1], transpose_b=True)
            pooled.append(tf.matmul(side_by_side(dots), mix))
        return tf.concat(pooled, axis=-1)


class XDeepFM(Backbone):
    """logit = first order + w . [p^1, p^2, ..., mlp(fields side by side)] + b.

    Source: Lian et al., "xDeepFM", arXiv 1803.05170, eq. 6 to 9.
    """

    uses_first_order = True

    def __init__(self, config: ModelConfig):
        super().__init__(name="xdeepfm")
        self._cin = CompressedInteractionNetwork(config.cin_widths)
        self._mlp = mlp(config)
        self._logit = logit_layer()

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        crossed = self._cin(embedded.fields)
        deep = self._mlp(side_by_side(embedded.fields), training=training)
        first_order = tf.cast(embedded.first_order, tf.float32)
        return first_order + tf.squeeze(self._logit(tf.concat([crossed, deep], axis=-1)), axis=-1)

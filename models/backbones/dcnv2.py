"""DCNv2 on the cross layers of TFRS."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras
from tensorflow_recommenders.layers.feature_interaction import Cross

from sllmr.models.backbones.backbone import first_layer_of_items, mlp_of_halves, of_the_user, side_by_side
from sllmr.models.backbones.dcn import DCN
from sllmr.models.embeddings import EmbeddedFeatures


class MatrixCross(Cross):
    """TFRS's Cross, but its matrix product runs in the layer's compute precision, not in its variables' precision."""

    _dense: keras.layers.Layer

    def build(self, input_shape: tf.TensorShape) -> None:
        super().build(input_shape)
        if self.compute_dtype != self.variable_dtype:
            config = {**self._dense.get_config(), "dtype": self.dtype_policy}
            self._dense = keras.layers.Dense.from_config(config)


class DCNv2(DCN):
    """Deep & cross network v2, full-rank, parallel structure.

    x_0 = the fields side by side; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; logit = w . [x_cross, mlp(x_0)] + b.

    For `rank`, x_0 = [c, u], the candidate's and the user's fields. W_1 x_0 is linear in both. So is the last layer as
    the logit reads it: w . (x_0 * (W x + b) + x) = x . (W^T (w * x_0) + w) + (w * x_0) . b. `item_half` holds the
    products with c, and `rank` computes those with u once for each user. Only the layers in between multiply their
    matrices with every row. A text match, which depends on both, is a third part of x_0.

    Source: Wang et al., "DCN V2", arXiv 2008.13535, eq. 1 and figure 1b.
    """

    def _cross_layer(self) -> keras.layers.Layer:
        return MatrixCross(kernel_initializer="glorot_uniform")

    def item_half(self, item: EmbeddedFeatures) -> tuple[tf.Tensor, ...]:
        c = side_by_side(item.candidate)
        first, _, last, last_bias, weight = self._ends()
        weighted = c * weight[: c.shape[1]]
        return (
            c,
            tf.matmul(c, first[: c.shape[1]]),
            tf.matmul(weighted, last[:, : c.shape[1]], transpose_b=True),
            first_layer_of_items(self._mlp, item),
            tf.reduce_sum(weighted * last_bias[: c.shape[1]], axis=1, keepdims=True),
        )

    def rank(self, items: Sequence[tf.Tensor], user: EmbeddedFeatures, match: tf.Tensor | None = None) -> tf.Tensor:
        u = of_the_user(user, has_match=match is not None)
        first, first_bias, last, last_bias, weight = self._ends()
        c, c_first, c_last, c_deep, c_bias = items
        width, of_item = first.shape[0], c.shape[2]
        end = of_item + u.shape[1]
        weighted = u * weight[of_item:end]
        u_first = tf.matmul(u, first[of_item:end]) + first_bias
        u_last = tf.matmul(weighted, last[:, of_item:end], transpose_b=True) + weight
        u_bias = tf.reduce_sum(weighted * last_bias[of_item:end], axis=1)

        x0 = tf.concat([c, tf.repeat(u[:, tf.newaxis], tf.shape(c)[1], axis=1)], axis=2)
        by_first = c_first + u_first[:, tf.newaxis]
        by_last = c_last + u_last[:, tf.newaxis]
        bias = c_bias[:, :, 0] + u_bias[:, tf.newaxis]
        if match is not None:
            x0 = tf.concat([x0, match], axis=2)
            weighted = match * weight[end:]
            by_first += tf.einsum("unm,mw->unw", match, first[end:])
            by_last += tf.einsum("unm,wm->unw", weighted, last[:, end:])
            bias += tf.reduce_sum(weighted * last_bias[end:], axis=2)
        crossed = x0 if len(self._cross) == 1 else x0 * by_first + x0
        for layer in self._cross[1:-1]:
            rows = layer(tf.reshape(x0, [-1, width]), tf.reshape(crossed, [-1, width]))
            crossed = tf.reshape(rows, tf.shape(x0))
        cross_logit = tf.reduce_sum(crossed * by_last, axis=2) + bias
        deep = mlp_of_halves(self._mlp, c_deep, u, match)
        deep_logit = tf.matmul(deep, self._logit.kernel[width:]) + self._logit.bias
        return cross_logit + tf.reshape(deep_logit, tf.shape(cross_logit))

    def _ends(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """W^T and b of the first and of the last cross layer, and the cross network's part of w."""
        first, first_bias = self._cross[0].weights
        last, last_bias = self._cross[-1].weights
        return first, first_bias, last, last_bias, self._logit.kernel[: first.shape[0], 0]

"""DCNv2 on the cross layers of TFRS."""

from typing import TYPE_CHECKING

import tensorflow as tf
import tf_keras as keras
from tensorflow_recommenders.layers.feature_interaction import Cross

from models.backbones.backbone import Backbone, mlp, side_by_side

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.embeddings import EmbeddedFeatures


class DCNv2(Backbone):
    """Deep & cross network v2, full-rank, parallel structure.

    x_0 = the fields side by side; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; logit = w . [x_cross, mlp(x_0)] + b.

    Source: Wang et al., "DCN V2", arXiv 2008.13535, eq. 1 and figure 1b.
    """

    def __init__(self, config: "ModelConfig"):
        super().__init__(name="dcnv2")
        self._cross = [Cross(kernel_initializer="glorot_uniform") for _ in range(config.cross_layers)]
        self._mlp = mlp(config)
        self._logit = keras.layers.Dense(1)

    def call(self, embedded: "EmbeddedFeatures", training: bool = False) -> tf.Tensor:
        x0 = side_by_side(embedded.fields)
        crossed = x0
        for layer in self._cross:
            crossed = layer(x0, crossed)
        deep = self._mlp(x0, training=training)
        return tf.squeeze(self._logit(tf.concat([crossed, deep], axis=-1)), axis=-1)

"""DCNv2 on the cross layers of TFRS."""

import tf_keras as keras
from tensorflow_recommenders.layers.feature_interaction import Cross

from models.backbones.dcn import DCN


class DCNv2(DCN):
    """Deep & cross network v2, full-rank, parallel structure.

    x_0 = the fields side by side; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l; logit = w . [x_cross, mlp(x_0)] + b.

    Source: Wang et al., "DCN V2", arXiv 2008.13535, eq. 1 and figure 1b.
    """

    def _cross_layer(self) -> keras.layers.Layer:
        return Cross(kernel_initializer="glorot_uniform")

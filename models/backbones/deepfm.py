"""DeepFM: a factorization machine beside an MLP."""

import tensorflow as tf

from sllmr.models.backbones.backbone import Backbone, logit_layer, mlp, side_by_side
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class DeepFM(Backbone):
    """logit = first order + sum over fields i < j of <v_i, v_j> + w . mlp(fields side by side) + b.

    A field of several values enters by its mean, in the first order too, so values of one field do not
    interact.

    Source: Guo et al., "DeepFM", arXiv 1703.04247, eq. 1 to 4.
    """

    uses_first_order = True

    def __init__(self, config: ModelConfig):
        super().__init__(name="deepfm")
        self._mlp = mlp(config)
        self._logit = logit_layer()

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        deep = self._logit(self._mlp(side_by_side(embedded.fields), training=training))
        first_order, fields = (tf.cast(value, tf.float32) for value in (embedded.first_order, embedded.fields))
        return first_order + second_order(fields) + tf.squeeze(deep, axis=-1)


def second_order(fields: tf.Tensor) -> tf.Tensor:
    """sum over i < j of <v_i, v_j> = (|sum_i v_i|^2 - sum_i |v_i|^2) / 2; [batch, fields, dim] -> [batch].

    The cost is linear in the number of fields. TFRS's DotInteraction would store the product of each pair of fields.

    Source: Rendle, "Factorization Machines", ICDM 2010, lemma 3.1.
    """
    square_of_sum = tf.reduce_sum(tf.square(tf.reduce_sum(fields, axis=1)), axis=-1)
    return (square_of_sum - tf.reduce_sum(tf.square(fields), axis=[1, 2])) / 2.0

"""DIN: attention of the candidate over the history."""

import tensorflow as tf
import tf_keras as keras

from sllmr.models.backbones.backbone import Backbone, logit_layer, mlp, side_by_side
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import EmbeddedFeatures


class ActivationUnit(keras.layers.Layer):
    """a(e_j, v) = PReLU network of [e_j, e_j * v, v], the weight of history position j for the candidate v.

    The paper's "out product" is the product element by element, as in the authors' code. That code also feeds
    the difference e_j - v, but the first layer sees e_j and v and can form their difference itself.

    Args:
        widths: of the hidden layers.

    Source: Zhou et al., "Deep Interest Network", arXiv 1706.06978, section 4.3 and figure 2.
    """

    def __init__(self, widths: tuple[int, ...]):
        super().__init__(name="activation_unit")
        # The first layer in two parts: so v is multiplied once per row, not once per position.
        self._from_position = keras.layers.Dense(widths[0])
        self._from_candidate = keras.layers.Dense(widths[0], use_bias=False)
        layers: list[keras.layers.Layer] = [keras.layers.PReLU(shared_axes=[1])]
        for width in widths[1:]:
            layers += [keras.layers.Dense(width), keras.layers.PReLU(shared_axes=[1])]
        self._rest = keras.Sequential([*layers, keras.layers.Dense(1)])

    def call(self, positions: tf.Tensor, candidate: tf.Tensor) -> tf.Tensor:
        """Positions [batch, L, width], candidate [batch, width] -> weights [batch, L]."""
        candidate = candidate[:, tf.newaxis]
        joined = tf.concat([positions, positions * candidate], axis=-1)
        hidden = self._from_position(joined) + self._from_candidate(candidate)
        return tf.squeeze(self._rest(hidden), axis=-1)


class DIN(Backbone):
    """Deep interest network.

    v holds those fields of the candidate that the history has, too (item, categories, brand, ...), and e_j the same
    fields of history position j. interest = sum over j of a(e_j, v) e_j, without a softmax, to keep the strength of
    the interest. logit = w . mlp([candidate, interest, user if any]) + b. The means of the history are not read.

    Activations are PReLU, as in the paper's plain DIN. The paper's Dice standardizes over the batch, but a batch here
    holds rows and preference pairs: a row's logit must not depend on the pairs beside it.

    Source: Zhou et al., "Deep Interest Network", arXiv 1706.06978, eq. 3 and figure 2.
    """

    uses_history = True

    def __init__(self, config: ModelConfig):
        super().__init__(name="din")
        self._activation_unit = ActivationUnit(config.activation_unit)
        self._mlp = mlp(config, activation=keras.layers.PReLU)
        self._logit = logit_layer()

    def call(self, embedded: EmbeddedFeatures, training: bool = False) -> tf.Tensor:
        assert embedded.history is not None
        number, dim = embedded.history.shape[2:]
        history = tf.ensure_shape(embedded.history, [None, None, number, dim])
        positions = tf.reshape(history, [-1, history.shape[1], number * dim])
        weights = self._activation_unit(positions, side_by_side(embedded.candidate[:, :number]))
        weights = tf.where(embedded.history_mask, weights, 0.0)
        interest = tf.reshape(tf.matmul(weights[:, tf.newaxis], positions), [-1, number, dim])
        joined = tf.concat([embedded.candidate, interest, embedded.user], axis=1)
        return tf.squeeze(self._logit(self._mlp(side_by_side(joined), training=training)), axis=-1)

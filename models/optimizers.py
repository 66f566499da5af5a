"""Adam whose cost does not grow with the embedding tables."""

import tensorflow as tf
import tf_keras as keras


class LazyAdam(keras.optimizers.Adam):
    """Adam that, for an embedding table, touches only the rows that the batch looked up.

    tf_keras's Adam decays both moments of every row and moves every row at every step, although the gradient
    is sparse: a step over 1M x 64 then writes 3 x 256 MB. Here rows that were not looked up keep moments and
    values; the others are updated by Adam's formula, with the global step in the bias correction.

    Source: `LazyAdam` of TensorFlow Addons, whose semantics this follows.
    """

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """One variable's update; the base class has summed repeated rows of an IndexedSlices."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        beta_1, beta_2 = self.beta_1, self.beta_2
        step = tf.cast(self.iterations + 1, variable.dtype)
        correction = tf.sqrt(1 - tf.pow(beta_2, step)) / (1 - tf.pow(beta_1, step))
        rate = tf.cast(self.learning_rate, variable.dtype) * correction
        key = self._var_key(variable)
        momentum, velocity = (slots[self._index_dict[key]] for slots in (self._momentums, self._velocities))
        rows, values = gradient.indices, gradient.values
        m = beta_1 * tf.gather(momentum, rows) + (1 - beta_1) * values
        v = beta_2 * tf.gather(velocity, rows) + (1 - beta_2) * tf.square(values)
        momentum.scatter_update(tf.IndexedSlices(m, rows))
        velocity.scatter_update(tf.IndexedSlices(v, rows))
        variable.scatter_sub(tf.IndexedSlices(rate * m / (tf.sqrt(v) + self.epsilon), rows))

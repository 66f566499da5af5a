"""How well a candidate's text matches the texts of a history: an input that the ranking model computes itself."""

import tensorflow as tf
import tf_keras as keras

POSITIONS = 10
"""Newest items of the history that a candidate is compared with, as many as a prompt names by default."""


class TextMatch(keras.layers.Layer):
    """One field of three numbers: W [best, best^2, mean] + b, of the cosines between a candidate's vector and those of
    the newest POSITIONS items of the history.

    Items without a vector, and padding, have zeros: such a position counts neither for the best nor for the mean.
    Without a position that counts, or without a vector of the candidate, all three numbers are 0.

    Args:
        dim: width of the field.
    """

    def __init__(self, dim: int):
        super().__init__(name="text_match")
        self._field = keras.layers.Dense(dim)

    def call(self, candidates: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        """The field of each candidate.

        Args:
            candidates: float32 [users, candidates, any], of length 1 or 0.
            history: float32 [users, positions, any], of length 1 or 0, newest first.

        Returns:
            float32 [users, candidates, dim].
        """
        history = history[:, :POSITIONS]
        counts = tf.reduce_any(tf.not_equal(history, 0.0), axis=-1)[:, tf.newaxis]
        cosines = tf.matmul(candidates, history, transpose_b=True)
        number = tf.reduce_sum(tf.cast(counts, tf.float32), axis=-1)
        mean = tf.math.divide_no_nan(tf.reduce_sum(cosines, axis=-1), number)  # a position that does not count adds 0
        least = -1.0
        best = tf.reduce_max(tf.where(counts, cosines, least), axis=-1)
        best = tf.where(number > 0, best, 0.0)
        return self._field(tf.stack([best, tf.square(best), mean], axis=-1))

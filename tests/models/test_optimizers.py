import numpy as np
import tensorflow as tf
import tf_keras as keras

from sllmr.models.optimizers import LazyAdam


def steps(optimizer: keras.optimizers.Optimizer, gradients: list, start: np.ndarray) -> np.ndarray:
    variable = tf.Variable(start)
    for gradient in gradients:
        optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy()


def sparse(values: list[list[float]], rows: list[int], number: int = 3) -> tf.IndexedSlices:
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([number, 2]))


START = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_a_dense_variable_moves_as_under_adam():
    gradients = [tf.constant(START) * k - 1.0 for k in (1.0, -0.5, 2.0)]

    actual = steps(LazyAdam(0.1), gradients, START)

    np.testing.assert_allclose(actual, steps(keras.optimizers.Adam(0.1), gradients, START), rtol=1e-6)


def test_rows_looked_up_at_every_step_move_as_under_adam():
    gradients = [sparse([[k, -1.0], [0.5, k], [k, k]], [2, 0, 1]) for k in (1.0, -2.0, 0.3)]

    actual = steps(LazyAdam(0.1), gradients, START)

    np.testing.assert_allclose(actual, steps(keras.optimizers.Adam(0.1), gradients, START), rtol=1e-5)


def test_a_row_that_is_not_looked_up_stays_where_it_is():
    gradients = [sparse([[1.0, 1.0]], [0]), sparse([[1.0, 1.0]], [2]), sparse([[1.0, 1.0]], [2])]
    after_first = steps(LazyAdam(0.1), gradients[:1], START)

    after_all = steps(LazyAdam(0.1), gradients, START)

    np.testing.assert_array_equal(after_all[:2], after_first[:2])
    assert np.all(after_all[2] < START[2])


def test_a_row_named_twice_moves_by_the_sum_of_its_gradients():
    twice = [sparse([[1.0, 2.0], [0.5, -3.0]], [1, 1])]
    summed = [sparse([[1.5, -1.0]], [1])]

    actual = steps(LazyAdam(0.1), twice, START)

    np.testing.assert_allclose(actual, steps(LazyAdam(0.1), summed, START), rtol=1e-6)

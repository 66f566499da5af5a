import math

import numpy as np
import pytest
import tensorflow as tf

from models.config import GateConfig
from models.signals import SIGNALS, PairSide, confidence, entropy, long_tail, short_history


def side(logit=(0.0, 1.0, -4.0), history_length=(3, 4, 40), is_tail=(1, 0, 1)) -> PairSide:
    return PairSide(
        history_length=tf.constant(history_length),
        is_tail=tf.constant(is_tail),
        item_train_count=tf.constant([1, 20, 300]),
        logit=tf.constant(logit),
    )


def test_short_history_counts_up_to_and_with_the_threshold():
    np.testing.assert_array_equal(short_history(side(), GateConfig(cold_max_history=3)), [1.0, 0.0, 0.0])


def test_long_tail_is_the_data_flag():
    np.testing.assert_array_equal(long_tail(side(), GateConfig()), [1.0, 0.0, 1.0])


def test_confidence_is_twice_one_minus_the_larger_probability():
    expected = []
    for logit in (0.0, 1.0, -4.0):
        p = 1 / (1 + math.exp(-logit))
        expected.append(2 * (1 - max(p, 1 - p)))

    np.testing.assert_allclose(confidence(side(), GateConfig()), expected, rtol=1e-5)


def test_entropy_is_the_binary_entropy_in_bits():
    expected = []
    for logit in (0.0, 1.0, -4.0):
        p = 1 / (1 + math.exp(-logit))
        expected.append(-p * math.log2(p) - (1 - p) * math.log2(1 - p))

    np.testing.assert_allclose(entropy(side(), GateConfig()), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_float32_within_0_and_1_at_any_logit(name):
    values = SIGNALS[name](side(logit=(-500.0, 0.0, 500.0)), GateConfig()).numpy()

    assert values.dtype == np.float32
    assert values.min() >= 0.0
    assert values.max() <= 1.0


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_no_gradient_reaches_the_logit_through_uncertainty(name):
    logit = tf.Variable([0.0, 1.0, -4.0])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(SIGNALS[name](side()._replace(logit=logit * 1.0), GateConfig()))

    assert tape.gradient(total, logit) is None

import math
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models.config import GateConfig, SignalName
from sllmr.models.signals import (
    SIGNALS,
    PairSide,
    confidence,
    dropout_variance,
    entropy,
    history_brevity,
    llm_consistency,
    llm_gap,
    long_tail,
    rarity,
    short_history,
    text_richness,
)


def side(logit=(0.0, 1.0, -4.0), history_length=(3, 4, 40), is_tail=(1, 0, 1)) -> PairSide:
    return {
        "history_length": tf.constant(history_length),
        "is_tail": tf.constant(is_tail),
        "item_train_count": tf.constant([1, 20, 300]),
        "text_words": tf.constant([0, 8, 400]),
        "llm_score": tf.constant([0.1, 0.5, 1.0]),
        "llm_gap": tf.constant([0.0, 0.3, 1.0]),
        "llm_disagreement": tf.constant([0.0, 0.25, 1.0]),
        "logit": tf.constant(logit),
    }


def test_short_history_counts_up_to_and_with_the_threshold():
    np.testing.assert_array_equal(short_history(side(), GateConfig(short_history_max=3)), [1.0, 0.0, 0.0])


def test_long_tail_is_the_data_flag():
    np.testing.assert_array_equal(long_tail(side(), GateConfig()), [1.0, 0.0, 1.0])


def test_history_brevity_is_one_over_one_plus_the_log_of_the_length():
    expected = [1 / (1 + math.log(1 + length)) for length in (3, 4, 40)]

    np.testing.assert_allclose(history_brevity(side(), GateConfig()), expected, rtol=1e-5)
    assert float(history_brevity(side(history_length=(0, 0, 0)), GateConfig())[0]) == 1.0


def test_rarity_is_one_over_one_plus_the_log_of_the_train_count():
    expected = [1 / (1 + math.log(1 + count)) for count in (1, 20, 300)]

    np.testing.assert_allclose(rarity(side(), GateConfig()), expected, rtol=1e-5)


def test_text_richness_is_nothing_without_words_and_saturates_with_many():
    expected = [1 - math.exp(-words / 16) for words in (0, 8, 400)]

    np.testing.assert_allclose(text_richness(side(), GateConfig()), expected, atol=1e-6)


def test_llm_gap_is_the_distance_of_the_two_scores():
    np.testing.assert_allclose(llm_gap(side(), GateConfig()), [0.0, 0.3, 1.0], rtol=1e-6)


def test_llm_consistency_is_one_where_both_answers_agree():
    np.testing.assert_allclose(llm_consistency(side(), GateConfig()), [1.0, 0.75, 0.0], rtol=1e-6)


def test_dropout_variance_is_four_times_the_variance_of_the_probability():
    varied = dict(side(), dropout_variance=tf.constant([0.0, 0.01, 0.25]))

    np.testing.assert_allclose(dropout_variance(varied, GateConfig()), [0.0, 0.04, 1.0], rtol=1e-6)


def test_dropout_variance_without_a_base_model_is_refused():
    with pytest.raises(ValueError, match=r"fitted on a base model, got gate.mode supervised; set"):
        dropout_variance(side(), GateConfig(signals=("dropout_variance",)))


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
    extreme = dict(side(logit=(-500.0, 0.0, 500.0)), dropout_variance=tf.constant([0.0, 0.1, 0.25]))
    values = SIGNALS[name](extreme, GateConfig()).numpy()

    assert values.dtype == np.float32
    assert values.min() >= 0.0
    assert values.max() <= 1.0


@pytest.mark.parametrize("name", SIGNALS)
def test_no_gradient_reaches_the_logit_through_a_signal(name):
    logit = tf.Variable([0.0, 1.0, -4.0])
    with tf.GradientTape() as tape:
        seen = dict(side(), logit=logit * 1.0, dropout_variance=tf.constant([0.0, 0.1, 0.25]))
        total = tf.reduce_sum(SIGNALS[name](seen, GateConfig()))

    assert tape.gradient(total, logit) is None


def test_the_configuration_names_exactly_the_registered_ones():
    assert set(get_args(SignalName)) == SIGNALS.keys()

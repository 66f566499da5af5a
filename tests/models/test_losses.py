import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sllmr.models.losses import (
    GatedPairwiseLoss,
    distillation,
    gated_pairwise_hinge,
    pointwise_mse,
    recommendation_loss,
)


def test_recommendation_loss_is_the_mean_cross_entropy_of_a_plain_loop():
    labels, logits = [1, 0, 1, 0], [2.0, -1.0, -0.5, 3.0]
    expected = 0.0
    for label, logit in zip(labels, logits, strict=True):
        p = 1 / (1 + math.exp(-logit))
        expected -= (math.log(p) if label else math.log(1 - p)) / len(labels)

    loss = recommendation_loss(tf.constant(labels), tf.constant(logits))

    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_a_weighted_recommendation_loss_is_the_weighted_mean_of_a_plain_loop_at_any_scale():
    labels, logits, weights = [1, 0, 1, 0], [2.0, -1.0, -0.5, 3.0], [0.2, 1.0, 0.0, 0.5]
    expected = 0.0
    for label, logit, weight in zip(labels, logits, weights, strict=True):
        p = 1 / (1 + math.exp(-logit))
        expected -= weight * (math.log(p) if label else math.log(1 - p)) / sum(weights)

    for scale in (1.0, 0.01):
        loss = recommendation_loss(tf.constant(labels), tf.constant(logits), scale * tf.constant(weights))
        assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(recommendation_loss(tf.constant(labels), tf.constant(logits), tf.zeros(4))) == 0.0


def test_gated_hinge_is_the_mean_of_a_plain_loop():
    source = np.random.default_rng(0)
    preferred, other = source.normal(size=(2, 50)).astype(np.float32)
    alpha = source.uniform(size=50).astype(np.float32)
    expected = 0.0
    for i in range(50):
        expected += alpha[i] * max(0.0, 0.7 - (preferred[i] - other[i])) / 50

    loss = gated_pairwise_hinge(preferred, other, alpha, 0.7)

    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_pointwise_losses_are_the_means_of_a_plain_loop():
    logits, scores = [2.0, -1.0, 0.3], [0.9, 0.4, 0.0]
    squares = entropies = 0.0
    for logit, score in zip(logits, scores, strict=True):
        p = 1 / (1 + math.exp(-logit))
        squares += (p - score) ** 2 / 3
        entropies -= (score * math.log(p) + (1 - score) * math.log(1 - p)) / 3

    assert float(pointwise_mse(tf.constant(logits), tf.constant(scores))) == pytest.approx(squares, rel=1e-5)
    assert float(distillation(tf.constant(logits), tf.constant(scores))) == pytest.approx(entropies, rel=1e-5)


def test_a_pair_ordered_by_more_than_the_margin_gives_no_loss_and_no_gradient():
    preferred = tf.Variable([3.0, 0.0])
    with tf.GradientTape() as tape:
        loss = gated_pairwise_hinge(preferred, tf.constant([0.0, 0.0]), tf.constant([1.0, 1.0]), 1.0)

    assert float(loss) == 0.5
    np.testing.assert_allclose(tape.gradient(loss, preferred), [0.0, -0.5])


def test_twice_the_same_pairs_give_the_same_loss():
    preferred, other, alpha = tf.constant([0.1, -0.4]), tf.constant([0.2, 0.3]), tf.constant([0.5, 1.0])
    twice = [tf.tile(values, [2]) for values in (preferred, other, alpha)]

    once = gated_pairwise_hinge(preferred, other, alpha, margin=1.0)

    again = gated_pairwise_hinge(twice[0], twice[1], twice[2], margin=1.0)

    assert float(again) == pytest.approx(float(once))


def test_the_layer_keeps_its_margin_through_its_configuration():
    layer = GatedPairwiseLoss(0.25)
    again = GatedPairwiseLoss.from_config(layer.get_config())

    assert float(again(tf.zeros(3), tf.zeros(3), tf.ones(3))) == 0.25
    assert isinstance(again, keras.layers.Layer)


def test_a_margin_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"margin must be above 0, got 0.0; set LossConfig.margin"):
        GatedPairwiseLoss(0.0)

import numpy as np
import pytest
import tensorflow as tf

from models.config import GateConfig
from models.features import NOT_A_PROBE
from models.gate import GATES, FrozenGate, PaperGate, SupervisedGate
from models.losses import gated_pairwise_hinge
from models.signals import SIGNALS, PairSide

W = [0.4, -0.6, 0.9]
B = 0.2


def sides(number: int = 6) -> tuple[PairSide, PairSide]:
    source = np.random.default_rng(3)

    def side() -> PairSide:
        return PairSide(
            history_length=tf.constant(source.integers(0, 8, number), tf.int32),
            is_tail=tf.constant(source.integers(0, 2, number), tf.int32),
            item_train_count=tf.constant(source.integers(0, 50, number), tf.int32),
            logit=tf.constant(source.normal(size=number), tf.float32),
        )

    preferred, other = side(), side()
    return preferred, other._replace(history_length=preferred.history_length)


def gate_with_weights(mode: str) -> PaperGate:
    gate = GATES[mode](GateConfig.model_validate({"mode": mode}))
    gate.w.assign(W)
    gate.b.assign(B)
    return gate


def hinge(gate: FrozenGate, preferred: PairSide, other: PairSide) -> tf.Tensor:
    weight = gate.hinge_weight(gate.alpha(preferred, other))
    return gated_pairwise_hinge(preferred.logit, other.logit, weight, 1.0)


def difference(value, variable: tf.Variable, index: tuple[int, ...], step: float = 1e-2) -> float:
    """Central difference of value() in one element of a variable."""
    start = variable.numpy()
    ends = []
    for sign in (1, -1):
        moved = start.copy()
        moved[index] += sign * step
        variable.assign(moved)
        ends.append(float(value()))
    variable.assign(start)
    return (ends[0] - ends[1]) / (2 * step)


def test_alpha_is_the_mean_of_two_sigmoids_of_a_plain_loop():
    gate = gate_with_weights("paper")
    preferred, other = sides()
    expected = []
    for n in range(6):
        alphas = []
        for side in (preferred, other):
            z = [float(SIGNALS[name](side, gate.config)[n]) for name in gate.config.signals]
            alphas.append(1 / (1 + np.exp(-(sum(w * x for w, x in zip(W, z, strict=True)) + B))))
        expected.append(sum(alphas) / 2)

    np.testing.assert_allclose(gate.alpha(preferred, other), expected, rtol=1e-5)


def test_a_frozen_gate_is_its_constant_and_has_nothing_to_train():
    gate = FrozenGate(GateConfig(mode="frozen", frozen_alpha=0.3))
    preferred, other = sides()

    np.testing.assert_allclose(gate.alpha(preferred, other), [0.3] * 6)
    assert gate.trainable_variables == []
    assert float(gate.loss(gate.alpha(preferred, other), tf.ones(6, tf.int32))) == 0.0


def test_alpha_starts_at_the_sigmoid_of_the_initial_bias():
    gate = PaperGate(GateConfig(mode="paper", initial_bias=-1.0))

    np.testing.assert_allclose(gate.alpha(*sides()), [1 / (1 + np.exp(1.0))] * 6, rtol=1e-6)


def test_in_paper_mode_the_hinge_reaches_the_gate_by_finite_differences():
    gate = gate_with_weights("paper")
    preferred, other = sides()
    with tf.GradientTape() as tape:
        loss = hinge(gate, preferred, other)
    gradient = tape.gradient(loss, gate.w)

    for n in range(3):
        numeric = difference(lambda: hinge(gate, preferred, other), gate.w, (n,))
        assert numeric == pytest.approx(float(gradient[n]), abs=2e-4)
    assert np.abs(gradient).max() > 1e-3


def test_in_paper_mode_every_step_on_the_hinge_closes_the_gate():
    gate = gate_with_weights("paper")
    preferred, other = sides()
    means = []
    for _ in range(25):
        with tf.GradientTape() as tape:
            loss = hinge(gate, preferred, other)
        means.append(float(tf.reduce_mean(gate.alpha(preferred, other))))
        for variable, gradient in zip((gate.w, gate.b), tape.gradient(loss, (gate.w, gate.b)), strict=True):
            variable.assign_sub(0.5 * gradient)

    assert np.all(np.diff(means) < 0)
    assert means[-1] < 0.5 * means[0]


def test_in_supervised_mode_the_hinge_does_not_reach_the_gate():
    gate = gate_with_weights("supervised")
    with tf.GradientTape() as tape:
        loss = hinge(gate, *sides())

    assert tape.gradient(loss, gate.trainable_variables) == [None, None]


def test_in_supervised_mode_its_own_loss_reaches_the_gate_by_finite_differences():
    gate = gate_with_weights("supervised")
    preferred, other = sides()
    label = tf.constant([1, 0, NOT_A_PROBE, 1, 1, 0])

    def own_loss() -> tf.Tensor:
        return gate.loss(gate.alpha(preferred, other), label)

    with tf.GradientTape() as tape:
        loss = own_loss()
    gradient = tape.gradient(loss, gate.w)

    for n in range(3):
        assert difference(own_loss, gate.w, (n,)) == pytest.approx(float(gradient[n]), abs=2e-4)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("mode", ["paper", "supervised"])
def test_the_hinge_reaches_the_logits_weighted_by_alpha_and_not_through_the_signals(mode):
    gate = gate_with_weights(mode)
    preferred, other = sides()
    logit = tf.Variable(preferred.logit)
    with tf.GradientTape() as tape:
        loss = hinge(gate, preferred._replace(logit=logit * 1.0), other)

    alpha = gate.alpha(preferred, other).numpy()
    inside = (1.0 - (preferred.logit - other.logit)).numpy() > 0
    np.testing.assert_allclose(tape.gradient(loss, logit), -alpha * inside / 6, atol=1e-7)


def test_the_gate_loss_does_not_reach_the_logits():
    gate = gate_with_weights("supervised")
    preferred, other = sides()
    logit = tf.Variable(preferred.logit)
    with tf.GradientTape() as tape:
        loss = gate.loss(gate.alpha(preferred._replace(logit=logit * 1.0), other), tf.ones(6, tf.int32))

    assert tape.gradient(loss, logit) is None


def test_supervised_loss_is_the_cross_entropy_of_the_probes_alone():
    gate = SupervisedGate(GateConfig())
    alpha, label = [0.9, 0.2, 0.6, 0.5], [1, 0, NOT_A_PROBE, 0]
    expected = -(np.log(0.9) + np.log(0.8) + np.log(0.5)) / 3

    assert float(gate.loss(tf.constant(alpha), tf.constant(label))) == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_probes_leaves_the_gate_alone():
    gate = gate_with_weights("supervised")
    with tf.GradientTape() as tape:
        loss = gate.loss(gate.alpha(*sides()), tf.fill([6], NOT_A_PROBE))

    assert float(loss) == 0.0
    for gradient in tape.gradient(loss, gate.trainable_variables):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def planted(region_accuracy: dict[tuple[int, int], float], number: int = 4000):
    """Probes with the LLM's accuracy by (cold, tail)."""
    source = np.random.default_rng(5)
    cold, tail = source.integers(0, 2, number), source.integers(0, 2, number)
    accuracy = np.array([region_accuracy[key] for key in zip(cold, tail, strict=True)])
    label = (source.uniform(size=number) < accuracy).astype(np.int32)
    side = PairSide(
        history_length=tf.constant(np.where(cold, 2, 20), tf.int32),
        is_tail=tf.constant(tail, tf.int32),
        item_train_count=tf.zeros(number, tf.int32),
        logit=tf.zeros(number),
    )
    return side, tf.constant(label), cold, tail


@pytest.mark.parametrize(
    "accuracy",
    [
        {(1, 1): 0.9, (1, 0): 0.75, (0, 1): 0.7, (0, 0): 0.5},
        {(1, 1): 0.5, (1, 0): 0.7, (0, 1): 0.75, (0, 0): 0.9},
        {(1, 1): 0.5, (1, 0): 0.5, (0, 1): 0.5, (0, 0): 0.5},
        {(1, 1): 0.95, (1, 0): 0.95, (0, 1): 0.95, (0, 0): 0.95},
    ],
    ids=["right in cold and tail", "right elsewhere", "useless", "right everywhere"],
)
def test_the_supervised_gate_finds_the_planted_reliability(accuracy):
    side, label, cold, tail = planted(accuracy)
    gate = SupervisedGate(GateConfig(signals=("short_history", "long_tail")))
    for _ in range(40):
        with tf.GradientTape() as tape:
            loss = gate.loss(gate.alpha(side, side), label)
        for variable, gradient in zip((gate.w, gate.b), tape.gradient(loss, (gate.w, gate.b)), strict=True):
            variable.assign_sub(4.0 * gradient)

    alpha = gate.alpha(side, side).numpy()
    for (is_cold, is_tail), planted_accuracy in accuracy.items():
        measured = alpha[(cold == is_cold) & (tail == is_tail)].mean()
        assert measured == pytest.approx(planted_accuracy, abs=0.06)

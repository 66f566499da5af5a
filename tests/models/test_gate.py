import numpy as np
import pytest
import tensorflow as tf

from sllmr.models.config import FITTED_BEFOREHAND, GateConfig
from sllmr.models.features import NOT_CALIBRATION
from sllmr.models.gate import (
    FITTED_GATES,
    GATES,
    AdvantageGate,
    FittedGate,
    FrozenGate,
    PaperGate,
    StackedGate,
    SupervisedGate,
)
from sllmr.models.losses import gated_pairwise_hinge
from sllmr.models.signals import SIGNALS, PairSide
from sllmr.models.stacking import fit_calibrated_blend

W = [0.4, -0.6, 0.9]
B = 0.2


def sides(number: int = 6) -> tuple[PairSide, PairSide]:
    source = np.random.default_rng(3)

    def side() -> PairSide:
        return {
            "history_length": tf.constant(source.integers(0, 8, number), tf.int32),
            "is_tail": tf.constant(source.integers(0, 2, number), tf.int32),
            "item_train_count": tf.constant(source.integers(0, 50, number), tf.int32),
            "text_words": tf.constant(source.integers(0, 80, number), tf.int32),
            "llm_score": tf.constant(source.uniform(size=number), tf.float32),
            "llm_gap": tf.constant(source.uniform(size=number), tf.float32),
            "llm_disagreement": tf.constant(source.uniform(size=number), tf.float32),
            "logit": tf.constant(source.normal(size=number), tf.float32),
        }

    preferred, other = side(), side()
    return preferred, dict(other, history_length=preferred["history_length"], llm_gap=preferred["llm_gap"])


def gate_with_weights(mode: str) -> PaperGate:
    gate = GATES[mode](GateConfig.model_validate({"mode": mode}))
    gate.w.assign(W)
    gate.b.assign(B)
    return gate


def hinge(gate: FrozenGate, preferred: PairSide, other: PairSide) -> tf.Tensor:
    weight = gate.hinge_weight(gate.alpha(preferred, other), preferred, other)
    return gated_pairwise_hinge(preferred["logit"], other["logit"], weight, 1.0)


def test_the_configuration_knows_which_gates_are_fitted_beforehand():
    assert set(FITTED_BEFOREHAND) == set(FITTED_GATES)


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
    label = tf.constant([1, 0, NOT_CALIBRATION, 1, 1, 0])

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
    logit = tf.Variable(preferred["logit"])
    with tf.GradientTape() as tape:
        loss = hinge(gate, dict(preferred, logit=logit * 1.0), other)

    alpha = gate.alpha(preferred, other).numpy()
    inside = (1.0 - (preferred["logit"] - other["logit"])).numpy() > 0
    np.testing.assert_allclose(tape.gradient(loss, logit), -alpha * inside / 6, atol=1e-7)


def test_the_gate_loss_does_not_reach_the_logits():
    gate = gate_with_weights("supervised")
    preferred, other = sides()
    logit = tf.Variable(preferred["logit"])
    with tf.GradientTape() as tape:
        loss = gate.loss(gate.alpha(dict(preferred, logit=logit * 1.0), other), tf.ones(6, tf.int32))

    assert tape.gradient(loss, logit) is None


def test_supervised_loss_is_the_cross_entropy_of_the_calibration_pairs_alone():
    gate = SupervisedGate(GateConfig())
    alpha, label = [0.9, 0.2, 0.6, 0.5], [1, 0, NOT_CALIBRATION, 0]
    expected = -(np.log(0.9) + np.log(0.8) + np.log(0.5)) / 3

    assert float(gate.loss(tf.constant(alpha), tf.constant(label))) == pytest.approx(expected, rel=1e-5)


def test_an_alpha_of_0_or_1_costs_as_one_in_a_million_does_if_it_is_wrong_and_nothing_if_it_is_right():
    gate = SupervisedGate(GateConfig())

    for alpha, label, expected in ((1.0, 0, np.log(1e6)), (0.0, 1, np.log(1e6)), (1.0, 1, 0.0), (0.0, 0, 0.0)):
        assert float(gate.loss(tf.constant([alpha]), tf.constant([label]))) == pytest.approx(expected, abs=0.1)


def test_a_batch_without_calibration_pairs_leaves_the_gate_alone():
    gate = gate_with_weights("supervised")
    with tf.GradientTape() as tape:
        loss = gate.loss(gate.alpha(*sides()), tf.fill([6], NOT_CALIBRATION))

    assert float(loss) == 0.0
    for gradient in tape.gradient(loss, gate.trainable_variables):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def planted(region_accuracy: dict[tuple[int, int], float], number: int = 4000):
    """Calibration pairs with the LLM's accuracy by (cold, tail)."""
    source = np.random.default_rng(5)
    cold, tail = source.integers(0, 2, number), source.integers(0, 2, number)
    accuracy = np.array([region_accuracy[key] for key in zip(cold, tail, strict=True)])
    label = (source.uniform(size=number) < accuracy).astype(np.int32)
    side = {
        "history_length": tf.constant(np.where(cold, 2, 20), tf.int32),
        "is_tail": tf.constant(tail, tf.int32),
        "item_train_count": tf.zeros(number, tf.int32),
        "text_words": tf.zeros(number, tf.int32),
        "llm_score": tf.zeros(number),
        "llm_gap": tf.zeros(number),
        "llm_disagreement": tf.zeros(number),
        "logit": tf.zeros(number),
    }
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
@pytest.mark.slow
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


SMOOTH = GateConfig(mode="stacked", signals=("history_brevity", "rarity"))


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def weighted(weights: np.ndarray, side: PairSide, config: GateConfig, n: int) -> float:
    """weights . (1, each signal, their product) of one item, of two signals."""
    first, second = (float(SIGNALS[name](side, config)[n]) for name in config.signals)
    z = [1.0, first, second, first * second]
    return float(sum(w * x for w, x in zip(weights, z, strict=True)))


def fitted_gate(mode: str) -> FittedGate:
    """With weights that leave every alpha of `sides` strictly between 0 and 1."""
    gate = GATES[mode](SMOOTH.model_copy(update={"mode": mode}))
    gate.model_weights.assign([0.3, -0.1, 0.2, 0.1] if mode == "stacked" else [-0.3, 0.1, 0.0, 0.2])
    gate.llm_weights.assign([0.2, 0.5, 0.4, -0.3] if mode == "stacked" else [0.05, 0.3, 0.2, -0.1])
    return gate


def with_soft_labels(preferred: PairSide, other: PairSide) -> tuple[PairSide, PairSide]:
    soft = (tf.constant([0.9, 0.5, 0.7, 0.4, 0.6, 0.99]), tf.constant([0.2, 0.4, 0.7, 0.1, 0.3, 0.01]))
    return dict(preferred, soft_label=soft[0]), dict(other, soft_label=soft[1])


def test_advantage_alpha_is_four_times_what_the_llm_is_more_often_right_in_a_plain_loop():
    gate = fitted_gate("advantage")
    gate.llm_weights.assign([-1.5, 1.2, 2.0, 1.1])
    preferred, other = sides(40)
    expected = []
    for n in range(40):
        means = {
            part: (weighted(w, preferred, gate.config, n) + weighted(w, other, gate.config, n)) / 2
            for part, w in (("llm", gate.llm_weights.numpy()), ("model", gate.model_weights.numpy()))
        }
        expected.append(min(1.0, 4 * max(0.0, sigmoid(means["llm"]) - sigmoid(means["model"]))))

    np.testing.assert_allclose(gate.alpha(preferred, other), expected, rtol=1e-4, atol=1e-5)
    assert min(expected) == 0.0
    assert max(expected) > 0.1


def test_the_advantage_gate_finds_where_the_llm_is_more_often_right_than_the_model():
    number = 8000
    source = np.random.default_rng(4)
    cold = source.integers(0, 2, number)
    label = (source.uniform(size=number) < 0.8).astype(np.int32)  # the LLM, everywhere
    model_is_right = source.uniform(size=number) < np.where(cold, 0.6, 0.9)
    prefers = np.where(model_is_right, label, 1 - label)
    zeros = tf.zeros(number)
    side = {
        "history_length": tf.constant(np.where(cold, 1, 30), tf.int32),
        "is_tail": tf.zeros(number, tf.int32),
        "item_train_count": tf.zeros(number, tf.int32),
        "text_words": tf.zeros(number, tf.int32),
        "llm_score": zeros,
        "llm_gap": zeros,
        "llm_disagreement": zeros,
        "logit": tf.constant(prefers, tf.float32),
    }
    other = dict(side, logit=tf.constant(1 - prefers, tf.float32))
    gate = AdvantageGate(GateConfig(mode="advantage", signals=("short_history",)))
    gate.fit(side, other, tf.constant(label), np.arange(number))

    alpha = gate.alpha(side, other).numpy()
    # 4 * (.8 - .6), and 0 where the LLM is right less often than the model, though in 80%.
    assert alpha[cold == 1].mean() == pytest.approx(0.8, abs=0.12)
    assert alpha[cold == 0].max() == 0.0


def test_an_advantage_gate_of_an_llm_that_was_never_wrong_is_open_everywhere():
    preferred, other = sides(40)
    gate = AdvantageGate(GateConfig(mode="advantage", signals=("history_brevity",)))
    gate.fit(preferred, other, tf.ones(40, tf.int32), np.arange(40))

    assert gate.alpha(preferred, other).numpy().min() > 0.9


@pytest.mark.parametrize(("label", "expected"), [(1, 0.9975), (0, 0.0025)])
def test_an_llm_that_was_always_or_never_right_is_so_with_the_same_probability_whatever_the_signals(label, expected):
    preferred, other = sides(40)
    gate = AdvantageGate(SMOOTH.model_copy(update={"mode": "advantage"}))
    gate.fit(preferred, other, tf.fill([40], label), np.arange(40))

    probability = [sigmoid(weighted(gate.llm_weights.numpy(), preferred, gate.config, n)) for n in range(40)]
    np.testing.assert_allclose(probability, expected, atol=1e-4)


def stacked_alpha(gate: StackedGate, side: PairSide, n: int) -> float:
    model = max(0.0, weighted(gate.model_weights.numpy(), side, gate.config, n))
    llm = max(0.0, weighted(gate.llm_weights.numpy(), side, gate.config, n))
    return llm / (1 + model + llm)


def test_stacked_alpha_is_the_llms_share_of_the_judgement_in_a_plain_loop():
    gate = fitted_gate("stacked")
    gate.llm_weights.assign([-0.7, 0.9, 0.8, 0.2])
    preferred, other = sides(40)
    expected = [(stacked_alpha(gate, preferred, n) + stacked_alpha(gate, other, n)) / 2 for n in range(40)]

    np.testing.assert_allclose(gate.alpha(preferred, other), expected, rtol=1e-4, atol=1e-6)
    assert min(expected) == 0.0
    assert max(expected) > 0.1


def test_the_stacked_target_adds_logit_and_score_in_a_plain_loop():
    gate = fitted_gate("stacked")
    gate.base_weights.assign([-0.8, 0.3, 0.1, 0.2])
    gate.centres.assign([0.2, 0.4])
    gate.spreads.assign([1.5, 0.3])
    side, _ = sides(20)
    expected = [
        max(0.0, weighted(gate.model_weights.numpy(), side, gate.config, n)) * (float(side["logit"][n]) - 0.2) / 1.5
        + max(0.0, weighted(gate.llm_weights.numpy(), side, gate.config, n)) * (float(side["llm_score"][n]) - 0.4) / 0.3
        + weighted([-0.8, 0.3, 0.1, 0.2], side, gate.config, n)
        for n in range(20)
    ]

    np.testing.assert_allclose(gate.stacked_logit(side), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("negative", "contribution"),
    [("model_weights", lambda side: side["llm_score"]), ("llm_weights", lambda side: side["logit"])],
)
def test_a_negative_weight_of_model_or_llm_counts_as_zero(negative, contribution):
    gate = StackedGate(SMOOTH)
    weights = {"model_weights": [1.0, 0.0, 0.0, 0.0], "llm_weights": [1.0, 0.0, 0.0, 0.0]} | {
        negative: [-2.0, 0.0, 0.0, 0.0]
    }
    gate.model_weights.assign(weights["model_weights"])
    gate.llm_weights.assign(weights["llm_weights"])
    preferred, other = sides()

    np.testing.assert_allclose(gate.stacked_logit(preferred), contribution(preferred), rtol=1e-6)
    llm_fraction = 0.0 if negative == "llm_weights" else 1.0 / (1.0 + 0.0 + 1.0)
    np.testing.assert_allclose(gate.alpha(preferred, other), llm_fraction, atol=1e-6)


@pytest.mark.slow
def test_the_stacked_gate_is_the_blend_of_its_signals_logits_and_scores():
    preferred, other = sides(300)
    source = np.random.default_rng(8)
    label, users = source.integers(0, 2, 300), source.integers(0, 80, 300)
    label = np.where(
        preferred["llm_score"] + 0.3 * preferred["logit"] > other["llm_score"] + 0.3 * other["logit"], 1, label
    )
    gate = StackedGate(SMOOTH)
    gate.fit(preferred, other, tf.constant(label), users)

    rows, chosen = [], []
    for side, is_chosen in ((preferred, label), (other, 1 - label)):
        for n in range(300):
            signals = [float(SIGNALS[name](side, SMOOTH)[n]) for name in SMOOTH.signals]
            rows.append([float(side["logit"][n]), float(side["llm_score"][n]), *signals])
            chosen.append(int(is_chosen[n]))
    values = np.array(rows)
    centres, spreads = values[:, :2].mean(axis=0), values[:, :2].std(axis=0)
    s, y = ((values[:, :2] - centres) / spreads).T
    best = fit_calibrated_blend(values[:, 2:], s, y, np.array(chosen), np.concatenate([users, users]))
    np.testing.assert_allclose(gate.model_weights, best.model, atol=0.01)
    np.testing.assert_allclose(gate.llm_weights, best.llm, atol=0.01)
    np.testing.assert_allclose(gate.base_weights, best.base, atol=0.01)
    np.testing.assert_allclose(gate.centres, centres, atol=1e-5)
    np.testing.assert_allclose(gate.spreads, spreads, rtol=1e-4)
    assert gate.held_out_error == pytest.approx(best.calibration_error, abs=0.01)


def test_weights_of_a_fitted_gate_are_named_by_part_and_signal():
    gate = fitted_gate("advantage")
    gate.model_weights.assign([0.3, -0.1, 0.2, 0.1])
    gate.llm_weights.assign([0.2, 0.5, 0.4, -0.3])

    assert gate.named_weights() == pytest.approx(
        {
            "model:bias": 0.3,
            "model:history_brevity": -0.1,
            "model:rarity": 0.2,
            "model:history_brevity*rarity": 0.1,
            "llm:bias": 0.2,
            "llm:history_brevity": 0.5,
            "llm:rarity": 0.4,
            "llm:history_brevity*rarity": -0.3,
        }
    )


def test_a_stacked_gates_weights_hold_the_scales_of_model_and_llm_by_name():
    """`training.json` keeps these names, and gate.weights_from reads them."""
    gate = fitted_gate("stacked")
    gate.base_weights.assign([-0.8, 0.3, 0.1, 0.25])
    gate.centres.assign([0.2, 0.4])
    gate.spreads.assign([1.5, 0.3])

    weights = gate.named_weights()
    terms = ["bias", "history_brevity", "rarity", "history_brevity*rarity"]
    assert list(weights) == [
        *(f"{part}:{term}" for part in ("model", "llm", "base") for term in terms),
        *("centre:model", "centre:llm", "spread:model", "spread:llm"),
    ]
    assert list(weights.values())[8:] == pytest.approx([-0.8, 0.3, 0.1, 0.25, 0.2, 0.4, 1.5, 0.3])


@pytest.mark.parametrize("mode", ["advantage", "stacked"])
def test_no_loss_reaches_a_gate_that_is_fitted_beforehand(mode):
    gate = fitted_gate(mode)
    preferred, other = with_soft_labels(*sides())
    with tf.GradientTape() as tape:
        tape.watch(gate.variables)
        own = gate.loss(gate.alpha(preferred, other), tf.ones(6, tf.int32))
        total = own + hinge(gate, preferred, other)

    assert gate.trainable_variables == []
    assert float(own) == 0.0
    if mode == "stacked":  # its hinge is weighted by the targets, and they are constants
        assert tape.gradient(total, gate.variables) == [None] * 5


def fixed_weight(mode: str, gate: FittedGate, preferred: PairSide, other: PairSide, n: int) -> float:
    """What the mode's formula says of one pair."""
    if mode == "advantage":
        return float(gate.alpha(preferred, other)[n])
    odds = [p / (1 - p) for p in (float(preferred["soft_label"][n]), float(other["soft_label"][n]))]
    return 2 * sigmoid(np.log(odds[0] / odds[1])) - 1


@pytest.mark.parametrize("mode", ["advantage", "stacked"])
def test_the_hinge_reaches_the_trained_logits_with_the_modes_weight_and_the_base_models_not_at_all(mode):
    gate = fitted_gate(mode)
    preferred, other = with_soft_labels(*sides())
    trained = tf.Variable([0.3, -0.2, 0.5, -1.0, 2.5, 0.0])
    base_model = tf.Variable(preferred["logit"])

    def loss() -> tf.Tensor:
        seen = dict(preferred, logit=base_model * 1.0), other
        weight = gate.hinge_weight(gate.alpha(*seen), *seen)
        return gated_pairwise_hinge(trained, tf.zeros(6), weight, 1.0)

    with tf.GradientTape() as tape:
        value = loss()
    to_trained, to_base_model = tape.gradient(value, [trained, base_model])

    weights = [fixed_weight(mode, gate, preferred, other, n) for n in range(6)]
    inside = np.array([1, 1, 1, 1, 0, 1])
    np.testing.assert_allclose(to_trained, -np.array(weights) * inside / 6, atol=1e-6)
    assert max(weights) > 0.1
    assert to_base_model is None
    for n in range(6):
        assert difference(loss, trained, (n,)) == pytest.approx(float(to_trained[n]), abs=2e-4)
        assert difference(loss, base_model, (n,)) == 0.0


REGIONS = ((1, 1), (1, 0), (0, 1), (0, 0))
FUSED_REGIONS = {
    "right in cold and tail": {(1, 1): True, (1, 0): True, (0, 1): True, (0, 0): False},
    "right elsewhere": {(1, 1): False, (1, 0): False, (0, 1): False, (0, 0): True},
    "useless": dict.fromkeys(REGIONS, False),
    "right everywhere": dict.fromkeys(REGIONS, True),
}


@pytest.mark.parametrize("knows", FUSED_REGIONS.values(), ids=FUSED_REGIONS)
def test_the_stacked_gate_listens_to_the_llm_where_it_knows_something(knows):
    number = 6000
    source = np.random.default_rng(6)
    cold = source.integers(0, 2, number)
    made, utilities = [], []
    for _ in range(2):
        tail = source.integers(0, 2, number)
        taste, popularity = source.normal(size=(2, number))
        popularity -= tail  # the rare are chosen less: no reason to listen to the LLM
        is_known = np.array([knows[key] for key in zip(cold, tail, strict=True)])
        score = 1 / (1 + np.exp(-np.where(is_known, taste, source.permutation(taste))))
        utilities.append(taste + popularity + source.gumbel(size=number))
        made.append(
            {
                "history_length": tf.constant(np.where(cold, 2, 20), tf.int32),
                "is_tail": tf.constant(tail, tf.int32),
                "item_train_count": tf.zeros(number, tf.int32),
                "text_words": tf.zeros(number, tf.int32),
                "llm_score": tf.constant(score, tf.float32),
                "llm_gap": tf.zeros(number),
                "llm_disagreement": tf.zeros(number),
                "logit": tf.constant(popularity, tf.float32),  # the model knows the other half
            }
        )
    gate = StackedGate(GateConfig(mode="stacked", signals=("short_history", "long_tail")))
    gate.fit(*made, tf.constant((utilities[0] > utilities[1]).astype(np.int32)), np.arange(number))

    alpha = {}
    for is_cold, is_tail in knows:
        here = dict(made[0], history_length=tf.fill([number], 2 if is_cold else 20), is_tail=tf.fill([number], is_tail))
        alpha[is_cold, is_tail] = float(gate.alpha(here, here)[0])
    open_there = [alpha[region] for region, known in knows.items() if known]
    closed_there = [alpha[region] for region, known in knows.items() if not known]
    assert min(open_there, default=1.0) > 0.2
    assert max(closed_there, default=0.0) < 0.1


@pytest.mark.parametrize("mode", ["advantage", "stacked"])
def test_another_gate_takes_the_weights_and_judges_the_same(mode):
    gate, other = fitted_gate(mode), GATES[mode](SMOOTH.model_copy(update={"mode": mode}))
    if mode == "stacked":
        gate.centres.assign([0.2, 0.4])
        gate.base_weights.assign([-0.8, 0.3, 0.1, 0.2])
    other.take_weights(gate.named_weights())
    seen = sides()

    np.testing.assert_array_equal(other.alpha(*seen), gate.alpha(*seen))
    if mode == "stacked":
        np.testing.assert_array_equal(other.stacked_logit(seen[0]), gate.stacked_logit(seen[0]))
        assert other.held_out_error is None


def test_weights_of_other_signals_are_not_taken():
    other = StackedGate(GateConfig(mode="stacked", signals=("long_tail",)))
    with pytest.raises(ValueError, match=r"of mode stacked with the signals long_tail has the weights .*rarity.*; "):
        other.take_weights(fitted_gate("stacked").named_weights())

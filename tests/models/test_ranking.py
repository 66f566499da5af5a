import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sllmr.models import features
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.gate import FITTED_GATES, FittedGate
from sllmr.models.losses import recommendation_loss
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import PAIRS, ROWS, RankingModel, pair_input, pair_side
from tests.models.test_embeddings import VOCABULARY, batch

MODEL = ModelConfig(embedding_dim=4, embedding_l2=0.3, mlp=(6,), dropout=0.0)
ITEM = (features.ITEM_INDEX, features.ITEM_CATEGORY_INDICES, features.ITEM_BRAND_INDEX)


def rows() -> dict[str, tf.Tensor]:
    return batch(16) | {features.LABEL: tf.constant([0, 1, 1, 0] * 4)}


def pairs() -> dict[str, tf.Tensor]:
    """Six pairs; the third is no calibration pair."""
    first = batch(6)
    made = {name: values for name, values in first.items() if name not in ITEM}
    for prefix, order in ((PREFERRED, [0, 1, 2, 3, 4, 5]), (OTHER, [3, 5, 1, 2, 0, 4])):
        made |= {prefix + name: tf.gather(first[name], order) for name in ITEM}
        made[prefix + features.IS_TAIL] = tf.constant([0, 1] * 3)
        made[prefix + features.ITEM_TRAIN_COUNT] = tf.constant([5] * 6)
        made[prefix + features.TEXT_WORDS] = tf.constant([7] * 6)
        made[prefix + features.LLM_DISAGREEMENT] = tf.constant([0.1] * 6)
    made[features.HISTORY_LENGTH] = tf.constant([1, 2, 3, 4, 5, 6])
    made[PREFERRED + features.LLM_SCORE] = tf.constant([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    made[OTHER + features.LLM_SCORE] = tf.constant([0.1, 0.2, 0.3, 0.4, 0.2, 0.0])
    made[PREFERRED + features.BASE_LOGIT] = tf.constant([0.5, -0.5, 1.0, 0.0, 2.0, -1.0])
    made[OTHER + features.BASE_LOGIT] = tf.constant([0.1, 0.3, -1.0, 0.2, 0.0, -2.0])
    made[PREFERRED + features.SOFT_LABEL] = tf.constant([0.7, 0.6, 0.9, 0.2, 0.3, 0.8])
    made[OTHER + features.SOFT_LABEL] = tf.constant([0.2, 0.1, 0.4, 0.1, 0.2, 0.6])
    made[features.CALIBRATION_LABEL] = tf.constant([1, 0, NOT_CALIBRATION, 1, 1, 0])
    return made


def model_of(mode: str = "supervised", llm_weight: float = 0.7) -> RankingModel:
    keras.utils.set_random_seed(4)
    gate = GateConfig.model_validate({"mode": mode, "frozen_alpha": 0.4})
    loss = LossConfig(llm_weight=llm_weight, margin=0.9)
    model = RankingModel(VOCABULARY, MODEL, gate, loss, fitted_gate=fitted_gate(gate))
    model(rows())  # draws the weights
    return model


def fitted_gate(config: GateConfig) -> FittedGate | None:
    """Of the modes that are fitted beforehand, with P(LLM right) = .6 and P(model right) = .5 in mode advantage."""
    if config.mode not in FITTED_GATES:
        return None
    gate = FITTED_GATES[config.mode](config)
    gate.llm_weights.assign([np.log(0.6 / 0.4)] + [0.0] * (gate.llm_weights.shape[0] - 1))
    return gate


def hinge_weights(mode: str) -> list[float]:
    """Of the six pairs, as the modes' formulas have it."""
    if mode == "stacked":
        soft = zip(*(pairs()[prefix + features.SOFT_LABEL].numpy() for prefix in (PREFERRED, OTHER)), strict=True)
        odds_ratios = [p / (1 - p) / (o / (1 - o)) for p, o in soft]
        return [2 * ratio / (1 + ratio) - 1 for ratio in odds_ratios]
    return [{"frozen": 0.4, "paper": 0.5, "supervised": 0.5, "advantage": 4 * (0.6 - 0.5)}[mode]] * 6


def test_rows_are_weighted_in_the_loss_and_a_row_of_weight_0_teaches_nothing():
    model = model_of(llm_weight=0.0)
    weights = np.array([0.2, 1.0, 0.0, 0.5] * 4, np.float32)
    expected = 0.0
    for label, logit, weight in zip(rows()[features.LABEL].numpy(), model(rows()).numpy(), weights, strict=True):
        expected += weight * np.log1p(np.exp(-logit if label else logit)) / weights.sum()
    weighted = rows() | {features.EXAMPLE_WEIGHT: tf.constant(weights)}
    assert float(model.compute_loss({ROWS: weighted})) == pytest.approx(expected, rel=1e-5)
    flipped = weighted | {features.LABEL: tf.where(weights == 0, 1 - rows()[features.LABEL], rows()[features.LABEL])}
    assert float(model.compute_loss({ROWS: flipped})) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["frozen", "paper", "supervised", "advantage", "stacked"])
@pytest.mark.slow
def test_the_loss_is_the_sum_of_its_parts_computed_apart(mode):
    model = model_of(mode)
    logits = model(rows()).numpy()
    preferred, other = (model(pair_side(pairs(), prefix)).numpy() for prefix in (PREFERRED, OTHER))
    expected = 0.0
    for label, logit in zip(rows()[features.LABEL].numpy(), logits, strict=True):
        expected += np.log1p(np.exp(-logit if label else logit)) / 16
    for weight, p, o in zip(hinge_weights(mode), preferred, other, strict=True):
        expected += 0.7 * weight * max(0.0, 0.9 - (p - o)) / 6
    if mode == "supervised":
        expected += np.log(2.0)

    assert float(model.compute_loss({ROWS: rows(), PAIRS: pairs()})) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["pointwise", "distillation"])
def test_pointwise_forms_hold_each_item_to_its_own_target_without_a_gate(form):
    target = features.LLM_SCORE if form == "pointwise" else features.SOFT_LABEL
    keras.utils.set_random_seed(4)
    model = RankingModel(VOCABULARY, MODEL, GateConfig(), LossConfig(llm_weight=0.7, form=form))
    expected = float(recommendation_loss(rows()[features.LABEL], model(rows())))
    for prefix in (PREFERRED, OTHER):
        side = pair_side(pairs(), prefix)
        for logit, score in zip(model(side).numpy(), side[target].numpy(), strict=True):
            p = 1 / (1 + np.exp(-logit))
            entropy = -(score * np.log(p) + (1 - score) * np.log(1 - p))
            expected += 0.7 * ((p - score) ** 2 if form == "pointwise" else entropy) / 12

    assert model.gate is None
    assert float(model.compute_loss({ROWS: rows(), PAIRS: pairs()})) == pytest.approx(expected, rel=1e-5)


def test_rows_and_pairs_share_one_forward_pass():
    model = model_of()
    sizes = []
    original = model.backbone.call

    def counting(embedded, training=False):
        sizes.append(embedded.fields.shape[0])
        return original(embedded, training)

    model.backbone.call = counting  # type: ignore[method-assign]
    model.compute_loss({ROWS: rows(), PAIRS: pairs()})

    assert sizes == [16 + 6 + 6]


@pytest.mark.parametrize("mode", ["frozen", "paper", "supervised", "advantage", "stacked"])
@pytest.mark.slow
def test_the_hinge_reaches_the_ranking_model_with_the_modes_weight(mode):
    model, without = model_of(mode), model_of("frozen", llm_weight=0.0)
    batch = {ROWS: rows(), PAIRS: pairs()}
    variable = model.embedding.trainable_variables[0]
    with tf.GradientTape(persistent=True) as tape:
        loss = model.compute_loss(batch)
        alone = without.compute_loss({ROWS: rows()})
        margin = [model(pair_side(pairs(), prefix)) for prefix in (PREFERRED, OTHER)]
        hinge = tf.reduce_mean(hinge_weights(mode) * tf.nn.relu(0.9 - (margin[0] - margin[1])))
    gradient, of_hinge = (tf.convert_to_tensor(tape.gradient(value, variable)).numpy() for value in (loss, hinge))
    of_rows = tf.convert_to_tensor(tape.gradient(alone, without.embedding.trainable_variables[0])).numpy()

    np.testing.assert_allclose(gradient, of_rows + 0.7 * of_hinge, atol=1e-6)
    assert np.abs(of_hinge).max() > 1e-3
    element = np.unravel_index(np.abs(of_hinge).argmax(), of_hinge.shape)
    start, ends = variable.numpy(), []
    for step in (1e-3, -1e-3):
        moved = start.copy()
        moved[element] += step
        variable.assign(moved)
        ends.append(float(model.compute_loss(batch)))
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(gradient[element], abs=4e-4)


def test_the_base_models_logits_and_not_the_models_own_are_what_a_fitted_gate_sees():
    model = model_of("stacked")
    model.gate.model_weights.assign([0.7] + [0.0] * (model.gate.model_weights.shape[0] - 1))
    seen = pairs()
    before = float(model.compute_loss({ROWS: rows(), PAIRS: seen}))
    other = {**seen, PREFERRED + features.BASE_LOGIT: tf.constant([9.0] * 6)}

    sides = pair_input(other, [tf.zeros(6), tf.zeros(6)])
    np.testing.assert_array_equal(sides[0][features.LOGIT], [9.0] * 6)
    assert float(model.compute_loss({ROWS: rows(), PAIRS: other})) == before  # its targets are there already


@pytest.mark.parametrize(
    ("mode", "reached"), [("frozen", 0), ("paper", 2), ("supervised", 2), ("advantage", 0), ("stacked", 0)]
)
@pytest.mark.slow
def test_a_training_step_moves_the_gate_only_where_the_mode_says(mode, reached):
    model = model_of(mode)
    model.compile(LazyAdam(0.01))
    before = [v.numpy() for v in model.gate.variables]

    model.train_step({ROWS: rows(), PAIRS: pairs()})

    moved = [not np.array_equal(b, v) for b, v in zip(before, model.gate.variables, strict=True)]
    assert sum(moved) == reached


def test_the_gate_optimizer_moves_the_gate_and_nothing_else():
    model, alone = model_of(), model_of()
    model.compile(LazyAdam(0.01), gate_optimizer=keras.optimizers.Adam(0.5))
    alone.compile(LazyAdam(0.01))
    for each in (model, alone):
        each.train_step({ROWS: rows(), PAIRS: pairs()})

    assert float(tf.abs(model.gate.b)) == pytest.approx(0.5, rel=1e-3)
    assert float(tf.abs(alone.gate.b)) == pytest.approx(0.01, rel=1e-3)
    for name in ("embedding", "backbone"):
        for one, other in zip(getattr(model, name).variables, getattr(alone, name).variables, strict=True):
            np.testing.assert_array_equal(one, other)


def test_without_the_llm_there_is_neither_gate_nor_its_metrics():
    model = model_of(llm_weight=0.0)
    model.compile(LazyAdam(0.01))

    logs = model.train_step({ROWS: rows()})

    assert model.gate is None
    assert set(logs) == {"loss", "rec_loss", "embedding_l2", "rows"}


def test_the_logged_parts_add_up_to_the_loss():
    model = model_of()
    model.compile(LazyAdam(0.01))

    logs = {name: float(value) for name, value in model.train_step({ROWS: rows(), PAIRS: pairs()}).items()}

    total = logs["rec_loss"] + 0.7 * logs["llm_loss"] + logs["gate_loss"] + logs["embedding_l2"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)
    assert logs["embedding_l2"] > 0
    assert logs["rows"] == 16


def test_features_that_are_not_served_do_not_change_the_logit():
    model = model_of()
    extended = rows() | {features.IS_TAIL: tf.ones(16, tf.int32), features.ITEM_TRAIN_COUNT: tf.ones(16)}

    np.testing.assert_array_equal(model(extended), model(batch(16)))

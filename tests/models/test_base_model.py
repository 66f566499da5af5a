import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sllmr.models import features
from sllmr.models.base_model import (
    context_fractions,
    held_out,
    stacked,
    with_base_model,
    without_own_choice,
    without_users,
)
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.errors import UserError
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.gate import StackedGate
from sllmr.models.ranking import RankingModel, pair_input, pair_side
from tests.models.test_embeddings import VOCABULARY
from tests.models.test_training import pairs


def calibration_pairs(users: np.ndarray, label: np.ndarray) -> dict[str, tf.Tensor]:
    return {features.USER_HASH: tf.constant(users), features.CALIBRATION_LABEL: tf.constant(label)}


def user_hashes(number: int) -> np.ndarray:
    return np.random.default_rng(1).choice(features.USER_HASHES, number, replace=False).astype(np.int32)


def test_held_out_are_all_labeled_pairs_of_a_fraction_of_the_users():
    label = np.tile([1, 0, NOT_CALIBRATION, NOT_CALIBRATION], 1000)
    made = calibration_pairs(np.repeat(user_hashes(1000), 4), label)
    selected = held_out(made, 0.3)

    by_user = selected.reshape(1000, 4)
    assert not by_user[:, 2:].any()
    assert (by_user[:, 0] == by_user[:, 1]).all()
    assert by_user[:, 0].mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(held_out(made, 1.0), label != NOT_CALIBRATION)


def test_which_users_are_held_out_depends_on_neither_order_nor_the_other_users():
    users = user_hashes(200)
    order = np.random.default_rng(0).permutation(200)[:150]
    ones = np.ones(200, int)

    np.testing.assert_array_equal(
        held_out(calibration_pairs(users, ones), 0.5)[order],
        held_out(calibration_pairs(users[order], ones[:150]), 0.5),
    )


def test_which_contexts_are_a_fraction_depends_on_neither_order_nor_type():
    history = np.random.default_rng(1).permutation(800).reshape(200, 4)
    order = np.random.default_rng(0).permutation(200)

    np.testing.assert_array_equal(context_fractions(history)[order], context_fractions(history[order].astype(np.int32)))


@pytest.mark.parametrize(("users", "held"), [(20, 20), (60, 30)])
def test_thirty_users_are_held_out_or_all_if_there_are_fewer(users, held):
    assert held_out(calibration_pairs(user_hashes(users), np.ones(users, int)), 0.01).sum() == held


def test_holding_out_without_calibration_pairs_is_refused():
    with pytest.raises(UserError, match=r"need calibration pairs, got none among 20 pairs; raise llm"):
        held_out(calibration_pairs(user_hashes(20), np.full(20, NOT_CALIBRATION)), 0.3)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_all_rows_of_held_out_users_are_gone_and_no_others(batch):
    users = np.random.default_rng(2).choice(user_hashes(60), 300)
    rows = {features.USER_HASH: users, features.LABEL: np.arange(300)}
    gone = users[[0, 5, 9, 9]]
    kept = [n for n in range(300) if users[n] not in gone.tolist()]
    batches = list(without_users(tf.data.Dataset.from_tensor_slices(rows).batch(batch), gone))

    np.testing.assert_array_equal(np.concatenate([b[features.LABEL] for b in batches]), kept)
    np.testing.assert_array_equal(np.concatenate([b[features.USER_HASH] for b in batches]), users[kept])
    assert min(len(b[features.LABEL]) for b in batches) > 0
    assert 0 < len(kept) < 298


def model(dropout: float = 0.0) -> RankingModel:
    keras.utils.set_random_seed(2)
    config = ModelConfig(embedding_dim=4, mlp=(8,), dropout=dropout)
    return RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0.0))


@pytest.mark.slow
def test_the_base_models_logits_are_the_models_own_without_dropout():
    made, first = pairs(30), model(dropout=0.5)
    scored = with_base_model(made, first, dropout_samples=None)

    for prefix in (PREFERRED, OTHER):
        np.testing.assert_allclose(
            scored[prefix + features.BASE_LOGIT], first(pair_side(made, prefix)), rtol=1e-5, atol=1e-6
        )
        assert prefix + features.DROPOUT_VARIANCE not in scored
    for name, values in made.items():
        np.testing.assert_array_equal(scored[name], values)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_variance_is_that_of_the_probability_and_nothing_without_dropout(dropout):
    made, first = pairs(40), model(dropout)
    first(pair_side(made, PREFERRED))
    for variable in first.backbone.trainable_variables:
        variable.assign(variable * 3)  # so that what is dropped matters
    scored = with_base_model(made, first, dropout_samples=100)
    measured = scored[PREFERRED + features.DROPOUT_VARIANCE].numpy()

    side = pair_side(made, PREFERRED)
    drop = tf.function(lambda: first(side, training=True))
    again = np.var([tf.sigmoid(drop()).numpy() for _ in range(100)], axis=0)
    assert measured.mean() == pytest.approx(again.mean(), rel=0.2, abs=1e-12)
    assert (measured.max() > 1e-6) == (dropout > 0)


def judged_pairs(number: int = 60) -> tuple[dict[str, tf.Tensor], StackedGate]:
    """Pairs with the logits of a base model, and a gate that follows the model more than the LLM."""
    source = np.random.default_rng(4)
    made = dict(pairs(number))
    made[features.CALIBRATION_LABEL] = tf.constant(source.integers(-1, 2, number).astype(np.int32))
    for prefix in (PREFERRED, OTHER):
        made[prefix + features.BASE_LOGIT] = tf.constant(source.normal(size=number), tf.float32)
    gate = StackedGate(GateConfig(mode="stacked", signals=("short_history", "long_tail")))
    gate.model_weights.assign([1.0, 0.0, 0.0, 0.0])
    gate.llm_weights.assign([0.6, 0.2, 0.0, 0.0])
    gate.base_weights.assign([-0.5, 0.1, 0.0, 0.0])
    return made, gate


def test_stacked_pairs_are_the_same_pairs_with_the_likelier_item_first():
    made, gate = judged_pairs()
    result = stacked(made, gate)
    probabilities = [tf.sigmoid(gate.stacked_logit(side)).numpy() for side in pair_input(made)]
    names = [name.removeprefix(PREFERRED) for name in made if name.startswith(PREFERRED)]
    flipped = 0
    for n in range(60):
        flip = probabilities[1][n] > probabilities[0][n]
        flipped += flip
        for name in names:
            before = (made[PREFERRED + name][n].numpy(), made[OTHER + name][n].numpy())
            after = (result[PREFERRED + name][n].numpy(), result[OTHER + name][n].numpy())
            np.testing.assert_array_equal(after, before[::-1] if flip else before)
        label, before = int(result[features.CALIBRATION_LABEL][n]), int(made[features.CALIBRATION_LABEL][n])
        assert label == (1 - before if flip and before != NOT_CALIBRATION else before)
        soft = [float(result[prefix + features.SOFT_LABEL][n]) for prefix in (PREFERRED, OTHER)]
        assert soft == pytest.approx(sorted((float(p[n]) for p in probabilities), reverse=True))
        np.testing.assert_array_equal(result[features.HISTORY_ITEM_INDICES][n], made[features.HISTORY_ITEM_INDICES][n])
    assert 10 < flipped < 50


def test_the_target_item_of_a_calibration_pair_is_the_same_one_after_the_pairs_are_turned():
    made, gate = judged_pairs()
    result = stacked(made, gate)

    def chosen(of: dict[str, tf.Tensor]) -> list[int]:
        items = zip(of[PREFERRED + features.ITEM_INDEX].numpy(), of[OTHER + features.ITEM_INDEX].numpy(), strict=True)
        labels = of[features.CALIBRATION_LABEL].numpy()
        return [pair[1 - label] for pair, label in zip(items, labels, strict=True) if label != NOT_CALIBRATION]

    assert chosen(result) == chosen(made)


def test_the_own_positive_of_a_calibration_pair_does_not_count_for_its_popularity():
    # Long-tail items have at most 3 train positives.
    count = {PREFERRED: [9, 4, 4, 3, 0, 4], OTHER: [4, 4, 9, 3, 3, 4]}
    label = [1, 1, 0, 0, 1, NOT_CALIBRATION]
    made = {features.CALIBRATION_LABEL: tf.constant(label)}
    for prefix, counts in count.items():
        made[prefix + features.ITEM_TRAIN_COUNT] = tf.constant(counts)
        made[prefix + features.IS_TAIL] = tf.constant([int(c <= 3) for c in counts])
    result = without_own_choice(made)

    for prefix, is_chosen in ((PREFERRED, 1), (OTHER, 0)):
        for n, before in enumerate(count[prefix]):
            after = max(before - 1, 0) if label[n] == is_chosen else before
            assert int(result[prefix + features.ITEM_TRAIN_COUNT][n]) == after
            # 4 - 1 = 3 is as rare as the most popular long-tail item, but not surely one of them.
            assert int(result[prefix + features.IS_TAIL][n]) == int(before <= 3 or after < 3)

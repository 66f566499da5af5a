import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from models import features
from models.config import GateConfig, LossConfig, ModelConfig
from models.features import NOT_A_PROBE, OTHER, PREFERRED
from models.first_stage import (
    context_fractions,
    fused,
    held_out,
    with_first_stage,
    without_contexts,
    without_own_choice,
)
from models.gate import FusedGate
from models.ranking import RankingModel, pair_input, pair_side
from tests.models.test_embeddings import VOCABULARY
from tests.models.test_training import pairs


def contexts(number: int, each: int) -> np.ndarray:
    """`each` rows of every one of `number` different histories."""
    return np.repeat(np.random.default_rng(1).permutation(4 * number)[:, np.newaxis].reshape(number, 4), each, axis=0)


def test_held_out_are_all_labelled_pairs_of_a_share_of_the_contexts():
    history = contexts(1000, 4)
    label = np.tile([1, 0, NOT_A_PROBE, NOT_A_PROBE], 1000)
    made = {features.HISTORY_ITEM_INDICES: tf.constant(history), features.PROBE_LABEL: tf.constant(label)}
    chosen = held_out(made, 0.3)

    by_context = chosen.reshape(1000, 4)
    assert not by_context[:, 2:].any()
    assert (by_context[:, 0] == by_context[:, 1]).all()
    assert by_context[:, 0].mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(held_out(made, 1.0), label != NOT_A_PROBE)


def test_which_contexts_are_held_out_depends_on_neither_order_nor_type():
    history = contexts(200, 1)
    order = np.random.default_rng(0).permutation(200)

    np.testing.assert_array_equal(context_fractions(history)[order], context_fractions(history[order].astype(np.int32)))


def test_a_share_of_the_asked_contexts_does_not_decide_which_are_held_out():
    history = contexts(2000, 1)
    asked = history[context_fractions(history) < 0.3]
    made = {features.HISTORY_ITEM_INDICES: asked, features.PROBE_LABEL: np.ones(len(asked), int)}

    assert held_out(made, 0.3).mean() == pytest.approx(0.3, abs=0.07)


def test_holding_out_without_probes_is_refused():
    made = {
        features.HISTORY_ITEM_INDICES: contexts(20, 1),
        features.PROBE_LABEL: np.full(20, NOT_A_PROBE),
    }
    with pytest.raises(ValueError, match=r"need labelled probes, got none among 30% of the contexts; raise llm"):
        held_out(made, 0.3)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_rows_of_held_out_histories_are_gone_and_no_others(batch):
    source = np.random.default_rng(2)
    history = source.integers(0, 3, (300, 4)).astype(np.int32)  # 81 histories, each of several users and rows
    rows = {features.HISTORY_ITEM_INDICES: history, features.LABEL: np.arange(300)}
    gone = history[[0, 5, 9]]
    kept = [n for n in range(300) if not any((history[n] == each).all() for each in gone)]
    batches = list(without_contexts(tf.data.Dataset.from_tensor_slices(rows).batch(batch), gone))

    np.testing.assert_array_equal(np.concatenate([b[features.LABEL] for b in batches]), kept)
    np.testing.assert_array_equal(np.concatenate([b[features.HISTORY_ITEM_INDICES] for b in batches]), history[kept])
    assert min(len(b[features.LABEL]) for b in batches) > 0
    assert 0 < len(kept) < 298


def test_the_same_items_in_another_order_are_another_context():
    history = np.array([[1, 2, 3, 0], [2, 1, 3, 0], [1, 2, 3, 4]], np.int32)
    rows = tf.data.Dataset.from_tensors({features.HISTORY_ITEM_INDICES: history, features.LABEL: np.arange(3)})

    (batch,) = without_contexts(rows, history[:1])
    np.testing.assert_array_equal(batch[features.LABEL], [1, 2])


def model(dropout: float = 0.0) -> RankingModel:
    keras.utils.set_random_seed(2)
    config = ModelConfig(embedding_dim=4, mlp=(8,), dropout=dropout)
    return RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0.0))


def test_the_first_stages_logits_are_the_models_own_without_dropout():
    made, first = pairs(30), model(dropout=0.5)
    scored = with_first_stage(made, first, dropout_passes=None)

    for prefix in (PREFERRED, OTHER):
        np.testing.assert_allclose(
            scored[prefix + features.FIRST_STAGE_LOGIT], first(pair_side(made, prefix)), rtol=1e-5, atol=1e-6
        )
        assert prefix + features.DROPOUT_VARIANCE not in scored
    for name, values in made.items():
        np.testing.assert_array_equal(scored[name], values)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_variance_is_that_of_the_probability_and_nothing_without_dropout(dropout):
    made, first = pairs(40), model(dropout)
    first(pair_side(made, PREFERRED))
    for variable in first.backbone.trainable_variables:
        variable.assign(variable * 3)  # so that what is dropped matters
    scored = with_first_stage(made, first, dropout_passes=100)
    measured = scored[PREFERRED + features.DROPOUT_VARIANCE].numpy()

    side = pair_side(made, PREFERRED)
    again = np.var([tf.sigmoid(first(side, training=True)).numpy() for _ in range(100)], axis=0)
    assert measured.mean() == pytest.approx(again.mean(), rel=0.2, abs=1e-12)
    assert (measured.max() > 1e-6) == (dropout > 0)


def judged_pairs(number: int = 60) -> tuple[dict[str, tf.Tensor], FusedGate]:
    """Pairs with the logits of a first stage, and a gate that follows the model more than the LLM."""
    source = np.random.default_rng(4)
    made = dict(pairs(number))
    made[features.PROBE_LABEL] = tf.constant(source.integers(-1, 2, number).astype(np.int32))
    for prefix in (PREFERRED, OTHER):
        made[prefix + features.FIRST_STAGE_LOGIT] = tf.constant(source.normal(size=number), tf.float32)
    gate = FusedGate(GateConfig(mode="fused", signals=("short_history", "long_tail")))
    gate.model_weights.assign([1.0, 0.0, 0.0, 0.0])
    gate.llm_weights.assign([0.6, 0.2, 0.0, 0.0])
    gate.base_weights.assign([-0.5, 0.1, 0.0, 0.0])
    return made, gate


def test_fused_pairs_are_the_same_pairs_with_the_likelier_item_first():
    made, gate = judged_pairs()
    result = fused(made, gate)
    probabilities = [tf.sigmoid(gate.fused_logit(side)).numpy() for side in pair_input(made)]
    names = [name.removeprefix(PREFERRED) for name in made if name.startswith(PREFERRED)]
    flipped = 0
    for n in range(60):
        flip = probabilities[1][n] > probabilities[0][n]
        flipped += flip
        for name in names:
            before = (made[PREFERRED + name][n].numpy(), made[OTHER + name][n].numpy())
            after = (result[PREFERRED + name][n].numpy(), result[OTHER + name][n].numpy())
            np.testing.assert_array_equal(after, before[::-1] if flip else before)
        label, before = int(result[features.PROBE_LABEL][n]), int(made[features.PROBE_LABEL][n])
        assert label == (1 - before if flip and before != NOT_A_PROBE else before)
        soft = [float(result[prefix + features.SOFT_LABEL][n]) for prefix in (PREFERRED, OTHER)]
        assert soft == pytest.approx(sorted((float(p[n]) for p in probabilities), reverse=True))
        np.testing.assert_array_equal(result[features.HISTORY_ITEM_INDICES][n], made[features.HISTORY_ITEM_INDICES][n])
    assert 10 < flipped < 50


def test_the_chosen_item_of_a_probe_is_the_same_one_after_the_pairs_are_turned():
    made, gate = judged_pairs()
    result = fused(made, gate)

    def chosen(of: dict[str, tf.Tensor]) -> list[int]:
        items = zip(of[PREFERRED + features.ITEM_INDEX].numpy(), of[OTHER + features.ITEM_INDEX].numpy(), strict=True)
        labels = of[features.PROBE_LABEL].numpy()
        return [pair[1 - label] for pair, label in zip(items, labels, strict=True) if label != NOT_A_PROBE]

    assert chosen(result) == chosen(made)


def test_the_own_choice_of_a_probe_does_not_count_for_its_popularity():
    # Long-tail items have at most 3 train positives.
    count = {PREFERRED: [9, 4, 4, 3, 0, 4], OTHER: [4, 4, 9, 3, 3, 4]}
    label = [1, 1, 0, 0, 1, NOT_A_PROBE]
    made = {features.PROBE_LABEL: tf.constant(label)}
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

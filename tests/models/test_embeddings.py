import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features
from sllmr.models.config import ModelConfig
from sllmr.models.embeddings import HISTORY_VECTOR_ROWS, ITEM_VECTOR_ROW, EmbeddingTable, FeatureEmbedding

VOCABULARY = features.VocabularySizes(items=9, categories=5, brands=4, users=3)
CONFIG = ModelConfig(embedding_dim=3, embedding_l2=0.5)


def batch(size: int = 6) -> dict[str, tf.Tensor]:
    """Transformed rows with L = 4, C = 2; the first row has no history, no category and no brand."""
    source = np.random.default_rng(1)
    shapes = {
        features.ITEM_INDEX: ((size,), 11),
        features.ITEM_CATEGORY_INDICES: ((size, 2), 7),
        features.ITEM_BRAND_INDEX: ((size,), 6),
        features.HISTORY_ITEM_INDICES: ((size, 4), 11),
        features.HISTORY_CATEGORY_INDICES: ((size, 4, 2), 7),
        features.HISTORY_BRAND_INDICES: ((size, 4), 6),
        features.USER_INDEX: ((size,), 5),
    }
    made = {name: source.integers(0, top, shape, np.int32) for name, (shape, top) in shapes.items()}
    for name, values in made.items():
        if name not in (features.ITEM_INDEX, features.USER_INDEX):
            values[0] = 0
    return {name: tf.constant(values) for name, values in made.items()}


def randomize(layer: tf.Module) -> None:
    source = np.random.default_rng(2)
    for variable in layer.variables:
        variable.assign(source.normal(size=variable.shape))


def loop_mean(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The mean of the rows of `indices` that are not padding, one by one."""
    total, number = np.zeros(table.shape[1]), 0
    for index in indices.ravel():
        if index != 0:
            total += table[index]
            number += 1
    return total / max(number, 1)


def tables(embedding: FeatureEmbedding) -> dict[str, np.ndarray]:
    return {v.name.removesuffix(":0"): v.numpy() for v in embedding.variables}


@pytest.mark.parametrize("use_user_id", [False, True])
def test_fields_are_the_means_of_a_plain_loop_over_shared_tables(use_user_id):
    embedding = FeatureEmbedding(VOCABULARY, CONFIG.model_copy(update={"use_user_id": use_user_id}))
    randomize(embedding)
    inputs = batch()
    embedded = embedding(inputs)
    fields = embedded.fields.numpy()
    table = tables(embedding)

    order = [
        (features.ITEMS, features.ITEM_INDEX),
        (features.CATEGORIES, features.ITEM_CATEGORY_INDICES),
        (features.BRANDS, features.ITEM_BRAND_INDEX),
        (features.ITEMS, features.HISTORY_ITEM_INDICES),
        (features.CATEGORIES, features.HISTORY_CATEGORY_INDICES),
        (features.BRANDS, features.HISTORY_BRAND_INDICES),
    ] + ([(features.USERS, features.USER_INDEX)] if use_user_id else [])
    assert fields.shape == (6, len(order), 3)
    for row in range(6):
        for number, (name, feature) in enumerate(order):
            expected = loop_mean(table[name], inputs[feature].numpy()[row])
            np.testing.assert_allclose(fields[row, number], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embedded.candidate, fields[:, :3])
    np.testing.assert_array_equal(embedded.user, fields[:, 6:])


def test_the_history_by_position_and_its_mask_are_those_of_a_plain_loop():
    embedding = FeatureEmbedding(VOCABULARY, CONFIG, uses_history=True)
    randomize(embedding)
    inputs = batch()
    embedded = embedding(inputs)
    table = tables(embedding)

    groups = [
        (features.ITEMS, features.HISTORY_ITEM_INDICES),
        (features.CATEGORIES, features.HISTORY_CATEGORY_INDICES),
        (features.BRANDS, features.HISTORY_BRAND_INDICES),
    ]
    for row in range(6):
        for position in range(4):
            for number, (name, feature) in enumerate(groups):
                expected = loop_mean(table[name], inputs[feature].numpy()[row, position])
                actual = embedded.history.numpy()[row, position, number]
                np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embedded.history_mask, inputs[features.HISTORY_ITEM_INDICES].numpy() != 0)


def test_the_first_order_term_sums_one_weight_for_each_field():
    embedding = FeatureEmbedding(VOCABULARY, CONFIG, uses_first_order=True)
    randomize(embedding)
    inputs = batch()
    weight = {name.removesuffix("_weight"): v for name, v in tables(embedding).items() if "_weight" in name}
    expected = np.zeros(6)
    for row in range(6):
        for name in (features.ITEMS, features.CATEGORIES, features.BRANDS):
            for feature in features.INDEXED[name].values():
                expected[row] += loop_mean(weight[name], inputs[feature].numpy()[row])[0]

    np.testing.assert_allclose(embedding(inputs).first_order, expected, rtol=1e-5, atol=1e-6)


def test_what_the_backbone_does_not_ask_for_is_absent():
    embedded = FeatureEmbedding(VOCABULARY, CONFIG)(batch())

    assert embedded.history is None
    assert embedded.history_mask is None
    assert embedded.first_order is None


def test_the_gradient_holds_the_distinct_rows_of_the_batch_once_and_never_padding():
    table = EmbeddingTable(1000, 2, 0.0, "t")
    with tf.GradientTape() as tape:
        first, second = table([tf.constant([[7, 7], [3, 0]]), tf.constant([[3], [0]])])
        loss = tf.reduce_sum(first) + 10.0 * tf.reduce_sum(second)
    gradient = tape.gradient(loss, table.table)

    assert isinstance(gradient, tf.IndexedSlices)
    rows = dict(zip(gradient.indices.numpy().tolist(), gradient.values.numpy().tolist(), strict=True))
    assert rows == {7: [1.0, 1.0], 3: [11.0, 11.0]}


def test_a_group_without_any_value_gives_zeros_and_no_gradient():
    table = EmbeddingTable(1000, 4, 0.0, "t")
    for _ in range(300):  # what TensorFlow leaves unwritten is zero as a rule
        tf.fill([2, 4], 7e9)
        with tf.GradientTape() as tape:
            first, second, third = table([tf.constant([[0]]), tf.constant([[3, 5]]), tf.constant([[[0, 0]] * 3])])
            loss = 5.0 * tf.reduce_sum(first) + tf.reduce_sum(second) + 7.0 * tf.reduce_sum(third)
        gradient = tape.gradient(loss, table.table)

        assert gradient.indices.numpy().tolist() == [3, 5]
        assert gradient.values.numpy().tolist() == [[0.5] * 4] * 2
        assert first.numpy().tolist() == [[0.0] * 4]
        assert third.numpy().tolist() == [[[0.0] * 4] * 3]


def test_a_batch_without_any_value_gives_zeros():
    table = EmbeddingTable(10, 2, 0.5, "t")
    first, second = table([tf.zeros([2, 1], tf.int32), tf.zeros([2, 3, 2], tf.int32)], training=True)

    assert first.numpy().tolist() == [[0.0] * 2] * 2
    assert second.numpy().tolist() == [[[0.0] * 2] * 3] * 2
    assert float(tf.add_n(table.losses)) == 0.0


def test_the_penalty_is_the_squared_norm_of_the_distinct_rows_per_example_and_only_in_training():
    table = EmbeddingTable(10, 2, 0.5, "t")
    randomize(table)
    groups = [tf.constant([[4, 4], [2, 0], [4, 2]]), tf.constant([[9], [0], [4]])]
    expected = 0.0
    for row in {4, 2, 9}:
        expected += 0.5 * float(np.sum(table.table.numpy()[row] ** 2)) / 3

    table(groups, training=True)
    assert float(tf.add_n(table.losses)) == pytest.approx(expected, rel=1e-5)
    table(groups, training=False)
    assert table.losses == []


def test_a_user_id_without_a_vocabulary_is_refused():
    vocabulary = VOCABULARY.model_copy(update={"users": None})
    with pytest.raises(ValueError, match=r"use_user_id needs a vocabulary of users"):
        FeatureEmbedding(vocabulary, ModelConfig(use_user_id=True))


@pytest.mark.parametrize("uses_history", [False, True])
def test_item_vectors_add_their_projection_as_a_fourth_field_of_candidate_and_history(uses_history):
    vectors = np.random.default_rng(5).normal(size=(11, 7)).astype(np.float32)
    vectors[0] = 0.0
    config = CONFIG.model_copy(update={"item_vectors": True})
    embedding = FeatureEmbedding(VOCABULARY, config, uses_history=uses_history, item_vectors=vectors)
    embedded = embedding(batch())
    projection = next(v for v in embedding.trainable_variables if v.shape == (7, 3)).numpy()
    history = batch()[features.HISTORY_ITEM_INDICES].numpy()

    for row in range(6):
        candidate = vectors[batch()[features.ITEM_INDEX].numpy()[row]] @ projection
        np.testing.assert_allclose(embedded.candidate[row, 3], candidate, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(embedded.fields[row, 3], candidate, rtol=1e-4, atol=1e-6)
        mean = loop_mean(vectors, history[row]) @ projection
        np.testing.assert_allclose(embedded.fields[row, 7], mean, rtol=1e-4, atol=1e-6)
        if uses_history:
            assert embedded.history is not None
            expected = [loop_mean(vectors, index) @ projection for index in history[row][:, np.newaxis]]
            np.testing.assert_allclose(embedded.history[row, :, 3], expected, rtol=1e-4, atol=1e-6)
    assert embedded.fields.shape == (6, 8, 3)
    assert all(v is not embedding.item_vector_table for v in embedding.trainable_variables)


def test_item_vectors_must_go_with_their_file():
    with pytest.raises(ValueError, match=r"item vectors must be given exactly with model.item_vectors, got False"):
        FeatureEmbedding(VOCABULARY, CONFIG, item_vectors=np.zeros((11, 2), np.float32))


def test_an_item_without_a_train_positive_has_the_unknown_items_id_and_its_own_vector():
    new_items = np.arange(11) == 3
    vectors = np.random.default_rng(4).normal(size=(11, 2)).astype(np.float32)
    config = CONFIG.model_copy(update={"item_vectors": True})
    embedding = FeatureEmbedding(VOCABULARY, config, uses_history=True, item_vectors=vectors, new_items=new_items)
    inputs = batch() | {features.ITEM_INDEX: tf.constant([3, 10, 1, 2, 3, 3])}

    item, vector = embedding(inputs).candidate.numpy()[:, 0], embedding(inputs).candidate.numpy()[:, 3]

    np.testing.assert_array_equal(item[[0, 4, 5]], item[[1, 1, 1]])
    assert not np.allclose(vector[0], vector[1])
    replaced = {
        name: tf.where(inputs[name] == 3, 10, inputs[name])
        for name in (features.ITEM_INDEX, features.HISTORY_ITEM_INDICES)
    }
    np.testing.assert_array_equal(embedding(inputs).history[:, :, 0], embedding(inputs | replaced).history[:, :, 0])


def test_rows_of_vectors_that_are_given_stand_for_the_indices_in_vectors_and_text_match_alone():
    vectors = np.random.default_rng(4).normal(size=(11, 7)).astype(np.float32)
    config = CONFIG.model_copy(update={"item_vectors": True, "text_match": True})
    embedding = FeatureEmbedding(VOCABULARY, config, uses_history=True, item_vectors=vectors)
    inputs = batch()
    others = {
        index: tf.where(inputs[index] == 0, 0, 11 - inputs[index])
        for index in features.INDEXED[features.ITEMS].values()
    }
    rows = dict(zip((ITEM_VECTOR_ROW, HISTORY_VECTOR_ROWS), others.values(), strict=True))

    given, of_others, plain = embedding(inputs | rows), embedding(inputs | others), embedding(inputs)

    of_vectors = [3, 7, 8]  # the candidate's, the history's, and their match
    rest = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(given.fields.numpy()[:, of_vectors], of_others.fields.numpy()[:, of_vectors])
    np.testing.assert_array_equal(given.fields.numpy()[:, rest], plain.fields.numpy()[:, rest])
    assert (
        not np.isclose(given.fields.numpy()[:, of_vectors], plain.fields.numpy()[:, of_vectors]).all(axis=(0, 2)).any()
    )
    np.testing.assert_array_equal(given.history[:, :, 3], of_others.history[:, :, 3])
    np.testing.assert_array_equal(given.history[:, :, :3], plain.history[:, :, :3])


def test_training_alone_replaces_a_fraction_of_the_ids():
    embedding = FeatureEmbedding(VOCABULARY, CONFIG, uses_history=True, item_dropout=0.25)
    inputs = batch(2000)
    served, trained = embedding(inputs), embedding(inputs, training=True)
    unknown = tables(embedding)[features.ITEMS][10]
    ids = np.concatenate([inputs[features.ITEM_INDEX].numpy(), inputs[features.HISTORY_ITEM_INDICES].numpy().ravel()])
    known = (ids != 0) & (ids != 10)

    def replaced(embedded) -> np.ndarray:
        parts = [embedded.candidate[:, 0].numpy(), embedded.history[:, :, 0].numpy().reshape(-1, 3)]
        return np.all(np.isclose(np.concatenate(parts), unknown), axis=1)[known]

    assert not replaced(served).any()
    assert 0.23 < replaced(trained).mean() < 0.27
    assert not np.any(trained.history[:, :, 0].numpy()[inputs[features.HISTORY_ITEM_INDICES].numpy() == 0])

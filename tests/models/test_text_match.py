"""The text match against a plain loop, and as an input of every backbone."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from sllmr.models import features
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.embeddings import FeatureEmbedding
from sllmr.models.ranking import RankingModel
from sllmr.models.text_match import TextMatch
from tests.models.test_embeddings import VOCABULARY, batch

CONFIG = ModelConfig(embedding_dim=3, text_match=True, item_vectors=True)


def unit_vectors(rows: int, width: int = 7) -> np.ndarray:
    """As models.item_vectors gives them by index: zeros for padding, for one item without a vector and for unknown."""
    vectors = np.random.default_rng(5).normal(size=(rows, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[[0, 3, -1]] = 0.0
    return vectors


def three_numbers(vectors: np.ndarray, item: int, history: list[int]) -> list[float]:
    """Best cosine, its square and the mean over the newest ten items that have a vector, one by one."""
    cosines = []
    for other in history[:10]:
        if vectors[other].any():
            cosines.append(sum(float(a) * float(b) for a, b in zip(vectors[item], vectors[other], strict=True)))
    if not cosines:
        return [0.0, 0.0, 0.0]
    return [max(cosines), max(cosines) ** 2, sum(cosines) / len(cosines)]


def test_the_field_is_a_dense_layer_over_the_three_numbers_of_a_plain_loop():
    source = np.random.default_rng(1)
    vectors = unit_vectors(30)
    items, history = source.integers(0, 30, (8, 4)), source.integers(0, 30, (8, 14))
    history[0] = 0
    history[1] = [5] + [0] * 13
    layer = TextMatch(5)
    fields = layer(tf.gather(vectors, items), tf.gather(vectors, history)).numpy()

    kernel, bias = (v.numpy() for v in layer.trainable_variables)
    expected = [[three_numbers(vectors, i, h.tolist()) for i in of] for of, h in zip(items, history, strict=True)]
    np.testing.assert_allclose(fields, np.array(expected) @ kernel + bias, atol=1e-5)
    assert np.array(expected)[:, :, 0].min() < 0  # a best match may be worse than none
    assert not np.array(expected)[0].any()


def test_an_eleventh_item_of_the_history_changes_nothing_and_a_tenth_does():
    vectors = unit_vectors(30)
    history = np.arange(4, 16)[np.newaxis]
    layer = TextMatch(2)

    def field(changed: int) -> np.ndarray:
        other = history.copy()
        other[0, changed] = 20
        return layer(tf.gather(vectors, [[20]]), tf.gather(vectors, other)).numpy()

    assert not np.allclose(field(9), field(10))
    np.testing.assert_array_equal(field(10), field(11))


def test_the_match_is_the_last_field_of_a_row_by_the_models_own_table():
    vectors, rows = unit_vectors(11), batch()
    embedding = FeatureEmbedding(VOCABULARY, CONFIG.model_copy(update={"use_user_id": True}), item_vectors=vectors)
    embedded = embedding(rows)

    kernel, bias = next((k.numpy(), b.numpy()) for k, b in itertools.pairwise(embedding.variables) if k.shape == (3, 3))
    items, history = rows[features.ITEM_INDEX].numpy(), rows[features.HISTORY_ITEM_INDICES].numpy()
    for n in range(6):
        numbers = three_numbers(vectors, items[n], history[n].tolist())
        np.testing.assert_allclose(embedded.fields[n, -1], np.array(numbers) @ kernel + bias, atol=1e-5)
    assert embedded.user.shape == (6, 2, 3)
    assert sum(v.shape.as_list()[-1] == 7 for v in embedding.variables) == 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.slow
def test_every_backbone_reads_the_match(backbone):
    config = CONFIG.model_copy(update={"backbone": backbone, "dropout": 0.0})
    model = RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0), unit_vectors(11))
    rows = batch()
    with tf.GradientTape() as tape:
        logits = model(rows)
        total = tf.reduce_sum(logits)
    kernel = next(v for v in model.embedding.trainable_variables if "text_match" in v.name)

    assert np.abs(tape.gradient(total, kernel)).max() > 0


def test_a_match_without_vectors_is_refused_with_the_fix():
    with pytest.raises(ValidationError, match=r"model.text_match needs item vectors, got none; set model.item_vec"):
        ModelConfig(text_match=True)

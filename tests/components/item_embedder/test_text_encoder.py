"""The oracle is what the model's authors publish: cosines of its sentences to two decimals and more.

Sources: the model's page (similarity of "That is a happy person" to three others) and Sentence-BERT's quickstart.
"""

import math

import numpy as np
import pytest

from sllmr.components.item_embedder.text_encoder import TextEncoder
from sllmr.components.item_embedder.weights import fetch_embedding_model
from tests.downloads import DOWNLOADS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder(fetch_embedding_model(str(DOWNLOADS / "models")))


def test_cosines_are_those_that_the_models_page_tells(encoder):
    source, *others = encoder.encode(
        ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    )
    assert [float(source @ other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=5e-4)


def test_cosines_are_those_of_sentence_berts_quickstart(encoder):
    vectors = encoder.encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    expected = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)


def test_a_texts_vector_does_not_depend_on_the_texts_beside_it(encoder):
    texts = ["red lipstick", "a drum", "", "lipstick, red and matte, for the evening", *["one of many"] * 900]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts[:5]])
    np.testing.assert_allclose(together[:5], alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert len(together) == len(texts)


def test_words_beyond_128_tokens_do_not_count(encoder):
    long = "drum " * 126  # and a token at either end
    first, second, other = encoder.encode([long, long + "lipstick", "lipstick " + long])
    assert math.isclose(float(first @ second), 1.0, abs_tol=1e-5)
    assert float(first @ other) < 0.9999

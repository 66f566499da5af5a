"""What holds for every backbone."""

import numpy as np
import pytest
import tensorflow as tf

from models import features, signatures
from models.backbones import BACKBONES
from models.config import GateConfig, LossConfig, ModelConfig
from models.optimizers import LazyAdam
from models.ranking import ROWS, RankingModel
from tests.models import market
from tests.models.test_embeddings import VOCABULARY, batch
from tests.models.test_signatures import COLUMNS, export_model, served_columns
from tests.models.test_signatures import ROWS as RAW_ROWS


def model_of(name: str) -> RankingModel:
    config = ModelConfig(backbone=name, embedding_dim=8, embedding_l2=0.0, mlp=(16, 8), dropout=0.0)
    return RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0))


@pytest.mark.parametrize("name", BACKBONES)
def test_it_gives_one_logit_a_row(name):
    logits = model_of(name)(batch(7))

    assert logits.shape == (7,)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits.numpy()).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_it_overfits_16_rows(name):
    tf.keras.utils.set_random_seed(1)
    rows = batch(16) | {features.LABEL: tf.constant([0, 1, 1, 0] * 4)}
    model = model_of(name)
    model.compile(LazyAdam(0.05))
    model.fit(tf.data.Dataset.from_tensors({ROWS: rows}).repeat(80), epochs=1, verbose=0)

    logits = model(rows).numpy()

    assert np.array_equal(logits > 0, rows[features.LABEL].numpy() == 1)
    assert float(model.compute_loss({ROWS: rows})) < 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_reloaded_weights_score_the_same(name, tmp_path):
    rows = batch(16)
    model, again = model_of(name), model_of(name)
    expected = model(rows)
    assert not np.allclose(again(rows), expected)

    model.save_weights(str(tmp_path / "weights"))
    again.load_weights(str(tmp_path / "weights")).expect_partial()

    np.testing.assert_array_equal(again(rows), expected)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_gets_a_gradient(name):
    rows = batch(16) | {features.LABEL: tf.constant([0, 1, 1, 0] * 4)}
    model = model_of(name)
    model(rows)
    # As large as trained ones: at their start the embeddings are so small that products of three vanish.
    for number, variable in enumerate(model.trainable_variables):
        variable.assign(tf.random.stateless_normal(variable.shape, seed=(3, number), stddev=0.3))
    with tf.GradientTape() as tape:
        loss = model.compute_loss({ROWS: rows}, training=True)

    gradients = tape.gradient(loss, model.trainable_variables)

    without = [
        variable.name
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
        if gradient is None or not np.any(tf.convert_to_tensor(gradient))
    ]
    assert without == []
    assert len(model.backbone.trainable_variables) >= 4


@pytest.mark.parametrize("name", BACKBONES)
def test_both_signatures_of_its_export_score_as_the_model_does(name, transform_output, tmp_path):
    logits = export_model(name, transform_output, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    examples = tf.constant(market.serialize(RAW_ROWS, COLUMNS))

    outputs = [
        loaded.signatures[signatures.SERVING_DEFAULT](examples=examples),
        loaded.signatures[signatures.RAW](**served_columns()),
    ]

    for output in outputs:
        np.testing.assert_allclose(output[signatures.LOGITS], logits, atol=1e-6)
        np.testing.assert_allclose(output[signatures.SCORES], 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.ptp(logits) > 0.1

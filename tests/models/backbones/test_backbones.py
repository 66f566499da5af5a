"""What holds for every backbone."""

from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features, signatures
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import BackboneName, GateConfig, LossConfig, ModelConfig
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import ROWS, RankingModel
from tests.models import market
from tests.models.exporting import (
    CANDIDATES,
    COLUMNS,
    HISTORIES,
    export_model,
    rank_request,
    raw_request,
    served_columns,
)
from tests.models.exporting import ROWS as RAW_ROWS
from tests.models.test_embeddings import VOCABULARY, batch

pytestmark = pytest.mark.slow


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
def test_all_signatures_of_its_export_score_as_the_model_does(name, transform_output, tmp_path):
    has_match = name in ("deepfm", "dcnv2", "din")
    logits = export_model(name, transform_output, str(tmp_path / "model"), text_match=has_match)
    loaded = tf.saved_model.load(str(tmp_path / "model")).signatures
    examples = tf.constant(market.serialize(RAW_ROWS, COLUMNS))

    for output in (loaded[signatures.SERVING_DEFAULT](examples=examples), loaded[signatures.RAW](**served_columns())):
        np.testing.assert_allclose(output[signatures.LOGITS], logits, atol=1e-6)
        np.testing.assert_allclose(output[signatures.SCORES], 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.ptp(logits) > 0.1

    raw = loaded[signatures.RAW](**raw_request(HISTORIES, CANDIDATES))[signatures.SCORES].numpy().reshape(3, 3)
    ranked = loaded[signatures.RANK](**rank_request(HISTORIES, CANDIDATES))
    scores, order = ranked[signatures.SCORES].numpy(), ranked[signatures.ORDER].numpy()
    is_item = np.array(CANDIDATES) != ""
    np.testing.assert_allclose(scores[is_item], raw[is_item], atol=1e-6)
    assert np.ptp(np.log(raw / (1 - raw))) > 0.1
    assert scores.dtype == np.float32
    assert order.dtype == np.int32
    assert scores[2, 2] == 0
    for of_user, positions in zip(scores, order, strict=True):
        assert positions.tolist() == sorted(range(3), key=lambda n: -of_user[n])


@pytest.mark.parametrize(
    ("name", "cross_layers"), [*((name, 3) for name in BACKBONES), ("dcnv2", 1), ("dcnv2", 2), ("dcn", 1)]
)
def test_halves_of_items_and_of_users_give_the_logits_of_their_rows(name, cross_layers):
    config = ModelConfig(backbone=name, embedding_dim=8, mlp=(16, 8), cross_layers=cross_layers, use_user_id=True)
    model = RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0))
    rows = batch(6)
    model(rows)
    for number, variable in enumerate(model.trainable_variables):
        variable.assign(tf.random.stateless_normal(variable.shape, seed=(4, number), stddev=0.3))
    of_item = {n for n in rows if n.startswith("item_")}
    nothing = {name: tf.zeros_like(values) for name, values in rows.items()}
    items = {name: rows[name] if name in of_item else nothing[name] for name in rows}
    # Two users with three candidates each.
    users = {name: (nothing if name in of_item else rows)[name][1::3] for name in rows}
    joint = {name: rows[name] if name in of_item else tf.repeat(rows[name][1::3], 3, axis=0) for name in rows}

    halves = [tf.reshape(half, [2, 3, -1]) for half in model.backbone.item_half(model.embedding(items))]

    ranked = model.backbone.rank(halves, model.embedding(users))
    np.testing.assert_allclose(tf.sigmoid(ranked), tf.sigmoid(tf.reshape(model(joint), [2, 3])), atol=1e-5)
    assert np.ptp(ranked) > 0.1


def test_the_configuration_names_exactly_the_registered_ones():
    assert set(get_args(BackboneName)) == BACKBONES.keys()

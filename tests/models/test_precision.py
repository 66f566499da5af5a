import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sllmr.models import ranking
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.precision import layers_in
from sllmr.models.ranking import RankingModel
from sllmr.models.training.loop import predict
from tests.models import test_training as market
from tests.models.test_embeddings import VOCABULARY
from tests.models.test_ranking import rows


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_hidden_layers_compute_in_16_bits_and_the_logits_are_float32(backbone):
    config = ModelConfig(backbone=backbone, embedding_dim=8, mlp=(16,))

    def logits(precision, weights=None):
        keras.utils.set_random_seed(2)
        model = RankingModel(VOCABULARY, config, GateConfig(), LossConfig(llm_weight=0), precision=precision)
        model(rows())
        model.set_weights([5 * w for w in model.get_weights()] if weights is None else weights)
        return model(rows()), model

    expected, model = logits(None)
    actual, mixed = logits("bfloat16", model.get_weights())

    assert actual.dtype == tf.float32
    assert {v.dtype for v in mixed.trainable_variables} == {tf.float32}
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=0.05 * scale)
    assert np.abs(actual - expected).max() > 1e-5 * scale  # 2^-9 is the rounding of one product
    assert keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.slow
def test_mixed_precision_trains_as_good_a_model_which_computes_in_float32():
    _, whole = market.train()
    train_config = market.TRAIN.model_copy(update={"mixed_precision": "bfloat16"})
    model, report = market.train(train_config=train_config)

    labels, logits = predict(ranking.scorer(model), market.dataset(320, 2))
    assert report.best_valid_auc == pytest.approx(whole.best_valid_auc, abs=0.02)
    assert market.auc_by_counting(labels, logits) == pytest.approx(report.best_valid_auc, abs=0.005)
    assert {layer.compute_dtype for layer in model.submodules if isinstance(layer, keras.layers.Layer)} == {"float32"}


def test_float16_is_refused():
    with pytest.raises(ValueError, match=r"train.mixed_precision must be bfloat16, got float16, .*; write bfloat16"):
        TrainConfig.model_validate({"mixed_precision": "float16"})


def test_the_policy_is_restored_where_making_a_layer_fails():
    with pytest.raises(RuntimeError), layers_in("bfloat16"):
        raise RuntimeError
    assert keras.layers.Dense(1).compute_dtype == "float32"

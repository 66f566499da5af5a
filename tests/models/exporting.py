"""Exported models of the tiny market, and requests to them."""

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from sllmr.models import features, preprocessing, signatures
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.ranking import RankingModel
from sllmr.models.tf_examples import Example
from tests.models import market
from tests.models.test_text_match import unit_vectors

COLUMNS = features.row_features(market.SIZES)
ROWS = market.rows(9, seed=6)


def catalog() -> dict[str, list]:
    """The market's items as the export takes them."""
    items = [market.item_values(item) for item in market.ITEMS]
    encode = np.vectorize(str.encode, otypes=[object])
    names = (features.ITEM_ID, features.ITEM_CATEGORIES, features.ITEM_BRAND)
    return {name: encode([item[name] for item in items]).tolist() for name in names}


def export(model: RankingModel, transform_output: tft.TFTransformOutput, directory: str) -> None:
    vocabularies = preprocessing.vocabularies(transform_output, use_user_id=False)
    signatures.export(model, vocabularies, market.SIZES, directory, use_user_id=False, catalog=catalog())


def export_model(
    backbone: str, transform_output: tft.TFTransformOutput, directory: str, *, text_match: bool = False
) -> np.ndarray:
    """Exports a model with a gate and large weights; returns its own logits for ROWS."""
    sizes = preprocessing.vocabulary_sizes(transform_output, use_user_id=False)
    config, vectors = ModelConfig(backbone=backbone, embedding_dim=8), None
    if text_match:
        config = ModelConfig(backbone=backbone, embedding_dim=8, text_match=True, item_vectors=True)
        vectors = unit_vectors(sizes.items + 2)
    model = RankingModel(sizes, config, GateConfig(), LossConfig(), vectors)
    transformed = transform_output.transform_features_layer()(market.parse(ROWS, COLUMNS))
    model(transformed)
    for variable in (*model.embedding.trainable_variables, *model.backbone.variables):
        variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(1, 2), stddev=0.2))
    export(model, transform_output, directory)
    return model(transformed).numpy()


HISTORIES = [["item2", "item4", "item6"], [], ["nowhere", "item1", "item0", "item3", "item5", "item7"]]
CANDIDATES = [["item8", "item1", "nowhere"], ["item0", "item2", "item11"], ["item9", "item4", ""]]


def raw_request(histories: list[list[str]], candidates: list[list[str]]) -> dict[str, tf.Tensor]:
    """The rows of RAW for each user and candidate; an item that the market does not hold has no attributes."""

    def values(item: str) -> dict:
        known = {features.ITEM_ID: item, features.ITEM_CATEGORIES: [""] * market.SIZES.categories}
        return market.item_values(item) if item in market.ITEMS else known | {features.ITEM_BRAND: ""}

    rows = []
    for history, items in zip(histories, candidates, strict=True):
        latest = [values(item) for item in (history + [""] * market.SIZES.history)[: market.SIZES.history]]
        context = {
            features.HISTORY_ITEM_IDS: [item[features.ITEM_ID] for item in latest],
            features.HISTORY_CATEGORIES: [item[features.ITEM_CATEGORIES] for item in latest],
            features.HISTORY_BRANDS: [item[features.ITEM_BRAND] for item in latest],
        }
        rows += [context | values(item) for item in items]
    names = [f.name for f in features.served_features(COLUMNS, use_user_id=False)]
    return {name: tf.constant([row[name] for row in rows]) for name in names}


def rank_request(histories: list[list[str]], candidates: list[list[str]]) -> dict[str, tf.Tensor]:
    longest = max(map(len, histories), default=0)
    padded = [history + [""] * (longest - len(history)) for history in histories]
    return {
        features.HISTORY_ITEM_IDS: tf.reshape(tf.constant(padded, tf.string), [len(histories), longest]),
        signatures.CANDIDATE_ITEM_IDS: tf.constant(candidates),
    }


def short_request(history: list[str], candidate: str) -> dict[str, list[str]]:
    """The lists of SERVING_DEFAULT without padding behind them."""
    items = [market.item_values(item) for item in history]
    of_candidate = market.item_values(candidate)
    return {
        features.HISTORY_ITEM_IDS: history,
        features.HISTORY_CATEGORIES: [name for item in items for name in item[features.ITEM_CATEGORIES]],
        features.HISTORY_BRANDS: [item[features.ITEM_BRAND] for item in items],
        features.ITEM_ID: [candidate],
        features.ITEM_CATEGORIES: [name for name in of_candidate[features.ITEM_CATEGORIES] if name],
        features.ITEM_BRAND: [of_candidate[features.ITEM_BRAND]],
    }


def serialized(request: dict[str, list[str]]) -> bytes:
    example = Example()
    for name, values in request.items():
        example.features.feature[name].bytes_list.value.extend(value.encode() for value in values)
    return example.SerializeToString()


def served_columns() -> dict[str, tf.Tensor]:
    raw = market.parse(ROWS, COLUMNS)
    return {f.name: raw[f.name] for f in features.served_features(COLUMNS, use_user_id=False)}

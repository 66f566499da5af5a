"""The tiny market with item vectors: a text's vector says its parity, and so does what users take."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sllmr.models import features, signatures
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.features import VocabularySizes
from sllmr.models.optimizers import LazyAdam
from sllmr.models.ranking import ROWS as ROW_BATCH
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.serving.item_lookup import ItemColumns
from tests.models import market
from tests.models.exporting import COLUMNS, catalog

VOCABULARIES = {
    features.ITEMS: [item.encode() for item in market.ITEMS],
    features.CATEGORIES: [b"parity0", b"parity1", b"all"],
    features.BRANDS: [b"brand1", b"brand2"],
}
VECTORS = {
    item.encode(): np.eye(8, dtype=np.float32)[n % 2] * 0.8 + np.eye(8, dtype=np.float32)[2 + n % 6] * 0.6
    for n, item in enumerate(market.ITEMS)
}
"""By id: float32 [8] of length 1; two items of one parity are nearer than two of both."""


def train(directory: pathlib.Path, vectors: Mapping[bytes, np.ndarray] = VECTORS) -> RankingModel:
    """A model that has learned the market, half of its items by attributes and vectors alone."""
    table = np.stack([np.zeros(8), *(vectors[i] for i in VOCABULARIES[features.ITEMS]), np.zeros(8)]).astype(np.float32)
    model = RankingModel(
        VocabularySizes(**{name: len(values) for name, values in VOCABULARIES.items()}),
        ModelConfig(embedding_dim=8, item_vectors=True, text_match=True, dropout=0.0),
        GateConfig(),
        LossConfig(llm_weight=0),
        table,
        item_dropout=0.5,
    )
    raw = market.parse(market.rows(256, seed=2), COLUMNS)
    rows = {**IndexLookup(VOCABULARIES, str(directory))(raw), features.LABEL: raw[features.LABEL]}
    model.compile(optimizer=LazyAdam(0.02))
    model.fit(tf.data.Dataset.from_tensors({ROW_BATCH: rows}).repeat(60), verbose=0)
    return model


def with_items(new: Sequence[str], dropped: int = 0) -> ItemColumns:
    """The market's catalog without its first items, and with new ones that have no attributes."""
    items = catalog()
    return {
        features.ITEM_ID: items[features.ITEM_ID][dropped:] + [item.encode() for item in new],
        features.ITEM_CATEGORIES: items[features.ITEM_CATEGORIES][dropped:] + [[b"", b""] for _ in new],
        features.ITEM_BRAND: items[features.ITEM_BRAND][dropped:] + [b"" for _ in new],
    }


def export(model: RankingModel, directory: pathlib.Path, columns: ItemColumns | None = None, **keywords) -> str:
    columns = catalog() if columns is None else columns
    signatures.export(model, VOCABULARIES, market.SIZES, str(directory), use_user_id=False, catalog=columns, **keywords)
    return str(directory)

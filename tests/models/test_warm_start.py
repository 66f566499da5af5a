"""The weights of an earlier export in a new model, matched by value and not by index."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from sllmr.models import features, signatures
from sllmr.models.config import GateConfig, LossConfig, ModelConfig
from sllmr.models.declared_features import DeclaredFeature, DeclaredSize
from sllmr.models.features import FeatureSizes, VocabularySizes
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.index_lookup import IndexLookup
from sllmr.models.warm_start import Mismatch, read_earlier_model, start_from
from tests.models import market
from tests.models.exporting import catalog

pytestmark = pytest.mark.slow

THEN = {
    features.ITEMS: [b"item0", b"item1", b"item2", b"item3"],
    features.CATEGORIES: [b"parity0", b"parity1"],
    features.BRANDS: [b"brand1"],
    "device": [b"phone", b"desk"],
}
NOW = {
    features.ITEMS: [
        b"item3",
        b"item9",
        b"item1",
        b"item0",
        b"item8",
    ],  # item2 is gone, two are new, none keeps its index
    features.CATEGORIES: [b"parity1", b"all", b"parity0"],
    features.BRANDS: [b"brand2", b"brand1"],
    "device": [b"watch", b"desk", b"phone"],
}
DECLARED = (
    DeclaredFeature(name="device", table="interaction", kind="categorical"),
    DeclaredFeature(name="place", table="interaction", kind="categorical", hashing_buckets=3),
)
SIZES = FeatureSizes(history=4, categories=2, declared=DECLARED)
CONFIG = ModelConfig(backbone="deepfm", embedding_dim=3, mlp=(4,))


def model_of(vocabularies, config=CONFIG, declared=DECLARED, vectors=None, seed=1) -> RankingModel:
    keras.utils.set_random_seed(seed)
    sizes = VocabularySizes(
        **{name: len(vocabularies[name]) for name in (features.ITEMS, features.CATEGORIES, features.BRANDS)},
        declared=tuple(DeclaredSize(feature=f, values=f.fixed_size or len(vocabularies[f.name])) for f in declared),
    )
    model = RankingModel(
        sizes,
        config,
        GateConfig(),
        LossConfig(llm_weight=0),
        vectors,
        item_dropout=0.1,
        new_items=np.arange(sizes.items + 2) == 2,
    )
    model(rows(vocabularies, declared))
    return model


def rows(vocabularies, declared=DECLARED) -> dict[str, tf.Tensor]:
    made = [
        row | {"device": ["phone", "desk", ""][n % 3], "place": f"p{n}", features.TIMESTAMP: n}
        for n, row in enumerate(market.rows(12))
    ]
    sizes = FeatureSizes(history=4, categories=2, declared=declared)
    raw = market.parse(made, features.row_features(sizes))
    wanted = {name: vocabularies[name] for name in vocabularies if name != "device" or declared}
    return IndexLookup(wanted, str(TMP), sizes)(raw)


TMP = pathlib.Path()


@pytest.fixture(autouse=True)
def scratch(tmp_path):
    global TMP
    TMP = tmp_path


def exported(model, vocabularies, directory, declared=DECLARED) -> str:
    sizes = FeatureSizes(history=4, categories=2, declared=declared)
    wanted = {name: vocabularies[name] for name in vocabularies if name != "device" or declared}
    signatures.export(model, wanted, sizes, str(directory), use_user_id=False, catalog=catalog())
    return str(directory)


def by_value(model, vocabularies) -> dict[str, list[np.ndarray]]:
    """The rows of each table, by what they stand for; of the declared features by hand: device, then place."""
    found = {}
    for name, tables in model.embedding.tables.items():
        for value, index in [
            *((v, i) for i, v in enumerate(vocabularies[name], 1)),
            ("?", len(vocabularies[name]) + 1),
        ]:
            found[name, value] = [table.numpy()[index] for table in tables]
    devices = len(vocabularies["device"])
    of_device = [*vocabularies["device"], "?", "missing"]
    of_place = [0, 1, 2, "?", "missing"]
    for table in model.embedding.declared_tables:
        for offset, kind, values in ((1, "device", of_device), (1 + devices + 2, "place", of_place)):
            for n, value in enumerate(values):
                found.setdefault((kind, value), []).append(table.numpy()[offset + n])
    return found


def test_rows_follow_their_values_new_ones_keep_their_draw_and_all_other_weights_are_copied(tmp_path):
    then = model_of(THEN, seed=1)
    for variable in then.trainable_variables:
        variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(1, 2)))
    earlier = read_earlier_model(exported(then, THEN, tmp_path / "then"))
    now, untouched = model_of(NOW, seed=5), by_value(model_of(NOW, seed=5), NOW)

    start = start_from(now, NOW, DECLARED, earlier)

    old, found = by_value(then, THEN), by_value(now, NOW)
    known = {key for key in found if key in old}
    assert {key for key in found if key not in old} == {
        (features.ITEMS, b"item9"),
        (features.ITEMS, b"item8"),
        (features.CATEGORIES, b"all"),
        (features.BRANDS, b"brand2"),
        ("device", b"watch"),
    }
    for key, vectors in found.items():
        expected = old[key] if key in known else untouched[key]
        assert len(vectors) == len(expected) == 2  # the vector and the weight of the first order
        for vector, other in zip(vectors, expected, strict=True):
            np.testing.assert_array_equal(vector, other)
    for one, other in zip(now.backbone.variables, then.backbone.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    (mask,) = (v for v in now.embedding.variables if v.dtype == tf.bool)
    assert np.flatnonzero(mask).tolist() == [2]  # today's
    assert start.copied == {"items": 3, "categories": 2, "brands": 1, "device": 2}
    assert start.new == {"items": 2, "categories": 1, "brands": 1, "device": 1}
    assert "vectors of 3 of 5 items, 2 of 3 categories" in start.sentence()


def test_with_the_same_vocabularies_it_scores_as_the_earlier_model_does(tmp_path):
    then = model_of(THEN, seed=1)
    earlier = read_earlier_model(exported(then, THEN, tmp_path / "then"))
    now = model_of(THEN, seed=9)
    assert not np.allclose(now(rows(THEN)), then(rows(THEN)), atol=1e-4)

    start_from(now, THEN, DECLARED, earlier)

    np.testing.assert_allclose(now(rows(THEN)), then(rows(THEN)), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "declared", "why"),
    [
        (CONFIG.model_copy(update={"embedding_dim": 4}), DECLARED, "weights of other shapes"),
        (CONFIG.model_copy(update={"mlp": (4, 4)}), DECLARED, "weights of other shapes"),
        (CONFIG, (), "other declared features"),
    ],
)
def test_a_model_of_another_kind_is_refused_and_the_new_one_stays_as_it_was(tmp_path, config, declared, why):
    earlier = read_earlier_model(exported(model_of(THEN), THEN, tmp_path / "then"))
    now = model_of(NOW, config, declared)
    before = now.get_weights()

    with pytest.raises(Mismatch, match=why):
        start_from(now, {n: v for n, v in NOW.items() if n != "device" or declared}, declared, earlier)

    for one, other in zip(now.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_item_vectors_of_another_embedding_model_are_refused(tmp_path):
    config = CONFIG.model_copy(update={"item_vectors": True})
    source = np.random.default_rng(1)
    vectors = source.normal(size=(6, 5)).astype(np.float32)
    then = model_of(THEN, config, (), vectors)
    earlier = read_earlier_model(exported(then, THEN, tmp_path / "then", ()))
    vocabularies = {n: v for n, v in THEN.items() if n != "device"}

    one_text_edited = vectors.copy()
    one_text_edited[1] += 1.0
    assert start_from(model_of(THEN, config, (), one_text_edited), vocabularies, (), earlier).copied["items"] == 4
    with pytest.raises(Mismatch, match="other item vectors for the same items"):
        start_from(model_of(THEN, config, (), source.normal(size=(6, 5)).astype(np.float32)), vocabularies, (), earlier)
    with pytest.raises(Mismatch, match="weights of other shapes"):
        start_from(model_of(THEN, config, (), source.normal(size=(6, 4)).astype(np.float32)), vocabularies, (), earlier)

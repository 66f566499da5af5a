"""A declared feature of each kind: Transform, training, every signature, and another catalog."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from sllmr.models import features, inputs, preprocessing, signatures
from sllmr.models.backbones import BACKBONES
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.declared_features import DeclaredFeature
from sllmr.models.features import FeatureSizes
from sllmr.models.ranking import RankingModel
from sllmr.models.serving.catalog_swap import swap_catalog
from sllmr.models.tf_examples import to_example
from sllmr.models.training.recipe import train
from tests.models import declared_market, market

pytestmark = pytest.mark.slow

ROWS = declared_market.rows(64)
HISTORIES = [["item2", "item4", "item6"], [], ["nowhere", "item1", "item0", "item3", "item5", "item7"]]
CANDIDATES = [["item8", "item1", "nowhere"], ["item0", "item2", "item11"], ["item9", "item4", ""]]
REQUESTS = [
    {"age_band": "old", "days": 3.0, "device": "phone", "hour": 7.0, "places": ["home", ""]},
    {"age_band": "", "days": math.nan, "device": "", "hour": math.nan, "places": ["", ""]},
    {"age_band": "never seen", "days": 60.0, "device": "watch", "hour": -4.0, "places": ["moon", "work"]},
]


@pytest.fixture(scope="module")
def transform_output(tmp_path_factory):
    return declared_market.write_transform(tmp_path_factory.mktemp("declared"), ROWS)


@pytest.fixture(scope="module")
def transformed(transform_output):
    raw = market.parse(ROWS, declared_market.COLUMNS)
    return {name: values.numpy() for name, values in transform_output.transform_features_layer()(raw).items()}


def values_of(name):
    return [row[name] for row in ROWS]


def test_a_categorical_feature_has_an_index_for_each_value_for_unknown_and_for_missing(transform_output, transformed):
    counts = collections.Counter(value for value in values_of("age_band") if value)
    known = [value for value, _ in counts.most_common()]
    assert transform_output.vocabulary_by_name("age_band") == [value.encode() for value in known]
    expected = [1 + known.index(value) if value else len(known) + 2 for value in values_of("age_band")]
    assert transformed["age_band_index"].tolist() == expected
    unseen = market.parse([ROWS[0] | {"age_band": "middle"}], declared_market.COLUMNS)
    index = transform_output.transform_features_layer()(unseen)["age_band_index"]
    assert index.numpy().tolist() == [len(known) + 1]


def test_a_number_falls_into_buckets_of_about_equal_size_and_missing_into_its_own(transform_output, transformed):
    given = np.array([value for value in values_of("hour") if not math.isnan(value)])
    buckets = collections.Counter(transformed["hour_index"].tolist())
    assert buckets.pop(5) == sum(map(math.isnan, values_of("hour")))
    assert set(buckets) == {1, 2, 3}
    assert all(abs(count - len(given) / 3) <= 4 for count in buckets.values())
    (low, high) = preprocessing.train_numbers(transform_output, declared_market.SIZES)["hour"].boundaries
    for value, index in zip(values_of("hour"), transformed["hour_index"].tolist(), strict=True):
        assert math.isnan(value) or index == 1 + (value >= low) + (value >= high)


def test_a_standardized_number_has_mean_0_and_deviation_1_and_missing_its_own_index(transform_output, transformed):
    given = np.array([value for value in values_of("days") if not math.isnan(value)], np.float32)
    expected = [0.0 if math.isnan(v) else (v - given.mean()) / given.std() for v in values_of("days")]
    np.testing.assert_allclose(transformed["days_value"], expected, atol=1e-5)
    assert transformed["days_index"].tolist() == [3 if math.isnan(value) else 1 for value in values_of("days")]
    numbers = preprocessing.train_numbers(transform_output, declared_market.SIZES)["days"]
    np.testing.assert_allclose([numbers.mean, numbers.deviation], [given.mean(), given.std()], rtol=1e-5)


def test_hashed_values_need_no_vocabulary(transformed):
    for value, index in zip(values_of("color"), transformed["color_index"].tolist(), strict=True):
        assert index == (1 + int(tf.strings.to_hash_bucket_fast(value, 5)) if value else 7)


def test_a_list_pads_with_0_and_an_empty_one_is_missing(transform_output, transformed):
    known = [tag.decode() for tag in transform_output.vocabulary_by_name("tags")]
    for value, indices in zip(values_of("tags"), transformed["tags_index"].tolist(), strict=True):
        expected = [1 + known.index(tag) if tag else 0 for tag in value]
        assert indices == (expected if any(value) else [len(known) + 2, 0, 0])


def test_the_history_carries_what_it_is_told_to_and_its_padding_is_0(transform_output, transformed):
    rows = [ROWS[0] | declared_market.item_values(item) for item in market.ITEMS]
    candidates = market.parse(rows, declared_market.COLUMNS)
    indices = transform_output.transform_features_layer()(candidates)["price_index"].numpy().tolist()
    by_item = dict(zip(market.ITEMS, indices, strict=True))
    for row, indices in zip(ROWS, transformed["history_price_index"].tolist(), strict=True):
        for item, index in zip(row[features.HISTORY_ITEM_IDS], indices, strict=True):
            assert index == (by_item[item] if item else 0)
    assert "history_color_index" not in transformed


def model_of(backbone, transform_output, llm_weight=0.0):
    sizes = preprocessing.vocabulary_sizes(transform_output, use_user_id=False, sizes=declared_market.SIZES)
    config = ModelConfig(backbone=backbone, embedding_dim=8, cin_widths=(4, 4), mlp=(8,))
    return RankingModel(sizes, config, GateConfig(), LossConfig(llm_weight=llm_weight))


@pytest.fixture(scope="module", params=BACKBONES)
def exported(request, transform_output, tmp_path_factory):
    """The logits of ROWS by a model with large weights, and its export, loaded."""
    directory = str(tmp_path_factory.mktemp("model") / request.param)
    model = model_of(request.param, transform_output)
    columns = transform_output.transform_features_layer()(market.parse(ROWS, declared_market.COLUMNS))
    model(columns)
    for variable in (*model.embedding.trainable_variables, *model.backbone.variables):
        variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(1, 2), stddev=0.2))
    export(model, transform_output, directory)
    return model(columns).numpy(), tf.saved_model.load(directory)


def export(model, transform_output, directory, catalog=None):
    signatures.export(
        model,
        preprocessing.vocabularies(transform_output, use_user_id=False, sizes=declared_market.SIZES),
        declared_market.SIZES,
        directory,
        use_user_id=False,
        catalog=catalog or declared_market.catalog(),
        numbers=preprocessing.train_numbers(transform_output, declared_market.SIZES),
    )


def served():
    return features.served_features(declared_market.COLUMNS, use_user_id=False)


def test_every_declared_feature_changes_the_logit(exported):
    raw = exported[1].signatures[signatures.RAW]
    columns = {f.name: market.parse(ROWS[:9], declared_market.COLUMNS)[f.name] for f in served()}
    base = raw(**columns)[signatures.LOGITS].numpy()
    for f in served():
        if f.declared is not None:
            other = {**columns, f.name: tf.roll(columns[f.name], 1, axis=0)}
            assert np.abs(raw(**other)[signatures.LOGITS].numpy() - base).max() > 1e-4, f.name


def test_the_signatures_of_rows_score_as_the_model_does(exported):
    logits, loaded = exported
    columns = market.parse(ROWS, declared_market.COLUMNS)
    raw = loaded.signatures[signatures.RAW](**{f.name: columns[f.name] for f in served()})
    examples = tf.constant(market.serialize(ROWS, declared_market.COLUMNS))
    by_example = loaded.signatures[signatures.SERVING_DEFAULT](examples)
    np.testing.assert_allclose(raw[signatures.LOGITS], logits, atol=1e-4)
    np.testing.assert_allclose(by_example[signatures.LOGITS], logits, atol=1e-4)


def test_an_example_without_a_declared_feature_scores_as_one_that_misses_it(exported):
    score = exported[1].signatures[signatures.SERVING_DEFAULT]
    missing = {f.name: f.missing for f in declared_market.SIZES.of_tables("user", "interaction", "item")}
    rows = [row | missing for row in ROWS[:5]]
    short = [f for f in declared_market.COLUMNS if f.name not in missing]
    whole = score(tf.constant(market.serialize(rows, declared_market.COLUMNS)))
    np.testing.assert_allclose(
        score(tf.constant([to_example(row, short).SerializeToString() for row in rows]))[signatures.LOGITS],
        whole[signatures.LOGITS],
        atol=1e-5,
    )


def rank_request():
    longest = max(map(len, HISTORIES))
    padded = [history + [""] * (longest - len(history)) for history in HISTORIES]
    of_users = {name: tf.constant([request[name] for request in REQUESTS]) for name in REQUESTS[0]}
    return {
        features.HISTORY_ITEM_IDS: tf.constant(padded),
        signatures.CANDIDATE_ITEM_IDS: tf.constant(CANDIDATES),
        **of_users,
    }


def raw_request():
    """A row of RAW for each candidate; an item that the market does not hold has no values."""

    def values(item):
        if item in market.ITEMS:
            return market.item_values(item) | declared_market.item_values(item)
        nothing = {f.name: f.missing for f in declared_market.SIZES.of_tables("item")}
        return nothing | {features.ITEM_ID: item, features.ITEM_CATEGORIES: ["", ""], features.ITEM_BRAND: ""}

    rows = []
    for history, candidates, request in zip(HISTORIES, CANDIDATES, REQUESTS, strict=True):
        latest = [values(item) for item in (history + [""] * 4)[:4]]
        context = {
            features.HISTORY_ITEM_IDS: [item[features.ITEM_ID] for item in latest],
            features.HISTORY_CATEGORIES: [item[features.ITEM_CATEGORIES] for item in latest],
            features.HISTORY_BRANDS: [item[features.ITEM_BRAND] for item in latest],
            "history_price": [item["price"] for item in latest],
            "history_tags": [item["tags"] for item in latest],
        }
        rows += [context | request | values(item) for item in candidates]
    return {f.name: tf.constant([row[f.name] for row in rows]) for f in served()}


def test_rank_takes_user_and_interaction_features_and_looks_up_those_of_items(exported):
    _, loaded = exported
    _, spec = loaded.signatures[signatures.RANK].structured_input_signature
    assert {name: (s.dtype, s.shape.rank) for name, s in spec.items()} == {
        features.HISTORY_ITEM_IDS: (tf.string, 2),
        signatures.CANDIDATE_ITEM_IDS: (tf.string, 2),
        "age_band": (tf.string, 1),
        "days": (tf.float32, 1),
        "device": (tf.string, 1),
        "hour": (tf.float32, 1),
        "places": (tf.string, 2),
    }
    ranked = loaded.signatures[signatures.RANK](**rank_request())[signatures.SCORES].numpy()
    rows = loaded.signatures[signatures.RAW](**raw_request())[signatures.SCORES].numpy().reshape(ranked.shape)
    is_item = np.array(CANDIDATES) != ""
    np.testing.assert_allclose(ranked[is_item], rows[is_item], atol=1e-5)
    assert ranked[~is_item].tolist() == [0.0]


def test_another_catalog_brings_other_values_of_item_features(transform_output, tmp_path):
    model = model_of("dcnv2", transform_output)
    model(transform_output.transform_features_layer()(market.parse(ROWS, declared_market.COLUMNS)))
    for variable in (*model.embedding.trainable_variables, *model.backbone.variables):
        variable.assign_add(tf.random.stateless_normal(variable.shape, seed=(1, 2), stddev=0.2))
    other = declared_market.catalog() | {"price": [100.0] * 12, "color": [b"new"] * 12}
    export(model, transform_output, str(tmp_path / "old"))
    export(model, transform_output, str(tmp_path / "new"), catalog=other)
    swap_catalog(str(tmp_path / "old"), str(tmp_path / "swapped"), other)
    scores = {
        name: tf.saved_model.load(str(tmp_path / name)).signatures[signatures.RANK](**rank_request())["scores"].numpy()
        for name in ("old", "new", "swapped")
    }
    np.testing.assert_allclose(scores["swapped"], scores["new"], atol=1e-6)
    assert np.abs(scores["swapped"] - scores["old"]).max() > 1e-3


def test_it_trains_on_rows_and_pairs_with_declared_features(transform_output, tmp_path):
    pair_columns = features.pair_features(declared_market.SIZES)
    market.write_records(tmp_path / "pairs.gz", market.serialize(declared_market.pairs(40), pair_columns))
    layer = transform_output.transform_features_layer()
    pairs = inputs.load_pairs([str(tmp_path / "pairs.gz")], declared_market.SIZES, layer)
    assert {"device_index", "preferred_price_index", "other_weight_value", "history_tags_index"} <= set(pairs)
    assert "price_index" not in pairs
    rows = inputs.narrow(layer(market.parse(ROWS, declared_market.COLUMNS)))
    _, report = train(
        vocabulary=preprocessing.vocabulary_sizes(transform_output, use_user_id=False, sizes=declared_market.SIZES),
        model_config=ModelConfig(embedding_dim=4, mlp=(8,)),
        gate_config=GateConfig(),
        loss_config=LossConfig(),
        train_config=TrainConfig(batch_size=16, pairs_per_batch=8, epochs=2),
        rows=lambda: inputs.row_batches(rows, batch_size=16, seed=1),
        valid=inputs.row_batches(rows, batch_size=64),
        pairs=pairs,
    )
    assert report.best_valid_auc > 0.5


@pytest.mark.parametrize("name", ["item", "history_item_ids", "label", "tail", "preferred_x", "users"])
def test_a_name_of_another_column_is_refused_with_another_one(name):
    feature = DeclaredFeature(name=name, table="user", kind="categorical")
    with pytest.raises(ValidationError, match=rf"features.user.{name} must have a name.*write user_{name}: "):
        FeatureSizes(declared=(feature,))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"kind": "numeric", "hashing_buckets": 3}, "hashing_buckets must not be set with kind numeric, got 3"),
        ({"kind": "categorical", "buckets": 3}, "buckets must not be set with kind categorical"),
        ({"kind": "numeric", "scaling": "standard", "history": True}, "history needs scaling buckets"),
        ({"kind": "numeric", "min": 3, "max": 1}, "min must be below max, got 3 and 1"),
        ({"kind": "text"}, "kind"),
    ],
)
def test_keys_that_a_kind_does_not_read_are_refused(keys, problem):
    with pytest.raises(ValidationError, match=problem):
        DeclaredFeature(name="f", table="item", **keys)


def test_without_declared_features_sizes_are_written_as_ever():
    assert FeatureSizes().model_dump_json() == '{"history":20,"categories":4}'

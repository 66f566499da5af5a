import collections

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features
from sllmr.models.parsing import parsing_spec
from sllmr.models.preprocessing import vocabularies, vocabulary_sizes
from sllmr.models.serving.index_lookup import IndexLookup
from tests.models import market

COLUMNS = features.row_features(market.SIZES)


def transform(layer, values: list[dict]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in layer(market.parse(values, COLUMNS)).items()}


@pytest.fixture(scope="module")
def layer(transform_output):
    return transform_output.transform_features_layer()


def test_the_outputs_are_those_of_the_feature_table(transform_output):
    expected = parsing_spec(features.transformed_features(market.SIZES, use_user_id=False))

    actual = transform_output.transformed_feature_spec()

    assert {n: (tuple(f.shape), f.dtype) for n, f in actual.items()} == {
        n: (tuple(f.shape), f.dtype) for n, f in expected.items()
    }


def test_candidate_and_history_share_one_numbering_without_gaps(layer, transform_output):
    sizes = vocabulary_sizes(transform_output, use_user_id=False)
    values = [
        market.row_values("u", [other], item, 1) for item, other in zip(market.ITEMS, market.ITEMS[::-1], strict=True)
    ]
    indices = transform(layer, values)

    as_candidate = dict(zip(market.ITEMS, indices[features.ITEM_INDEX].tolist(), strict=True))
    as_history = dict(zip(market.ITEMS[::-1], indices[features.HISTORY_ITEM_INDICES][:, 0].tolist(), strict=True))
    assert as_candidate == as_history
    assert sorted(as_candidate.values()) == list(range(1, len(market.ITEMS) + 1))
    assert sizes == features.VocabularySizes(items=12, categories=3, brands=2)


def test_padding_is_0_and_an_unknown_value_is_one_more_than_the_vocabulary(layer):
    unknown = {
        features.ITEM_ID: "never seen",
        features.ITEM_BRAND: "new",
        features.ITEM_CATEGORIES: ["new", ""],
    }
    indices = transform(layer, [market.row_values("u", ["item1"], "item0", 1) | unknown])

    assert indices[features.ITEM_INDEX].tolist() == [13]
    assert indices[features.ITEM_BRAND_INDEX].tolist() == [3]
    assert indices[features.ITEM_CATEGORY_INDICES].tolist() == [[4, 0]]
    assert indices[features.HISTORY_ITEM_INDICES][0, 1:].tolist() == [0, 0, 0]
    assert indices[features.HISTORY_CATEGORY_INDICES][0, 1:].tolist() == [[0, 0]] * 3


def test_what_training_and_slices_need_passes_through(layer):
    values = market.rows(6, seed=9)
    indices = transform(layer, values)

    for name in (features.HISTORY_LENGTH, features.ITEM_TRAIN_COUNT, features.IS_TAIL, features.LABEL):
        assert indices[name].tolist() == [v[name] for v in values]


def test_a_request_without_label_or_flags_gets_the_model_inputs_and_the_same_indices(layer):
    raw = market.parse(market.rows(6, seed=9), COLUMNS)
    served = [f.name for f in features.served_features(COLUMNS, use_user_id=False)]

    actual = layer({name: raw[name] for name in served})

    transformed = features.transformed_features(market.SIZES, use_user_id=False)
    assert set(actual) == {f.name for f in features.served_features(transformed, use_user_id=False)}
    for name, tensor in actual.items():
        np.testing.assert_array_equal(tensor, layer(raw)[name])


def test_values_outside_the_analysed_rows_are_unknown(layer):
    source = market.row_values("u", ["item1"], "item0", 1)
    history = {features.HISTORY_ITEM_IDS: ["only in test", "", "", ""]}

    assert transform(layer, [source | history])[features.HISTORY_ITEM_INDICES].tolist() == [[13, 0, 0, 0]]


@pytest.mark.slow
def test_users_have_a_vocabulary_and_brands_may_all_be_empty_where_configured(tmp_path):
    rows = [
        values | {features.ITEM_BRAND: "", features.HISTORY_BRANDS: [""] * market.SIZES.history}
        for values in market.rows(20)
    ]
    output = market.write_transform(tmp_path, rows, use_user_id=True)
    indices = transform(output.transform_features_layer(), rows)

    assert vocabulary_sizes(output, use_user_id=True).users == 5
    assert set(indices[features.USER_INDEX].tolist()) == {1, 2, 3, 4, 5}
    assert not np.any(indices[features.ITEM_BRAND_INDEX])
    assert indices[features.USER_INDEX].dtype == tf.int64.as_numpy_dtype


@pytest.mark.slow
def test_the_served_model_looks_up_the_indices_that_transform_writes(tmp_path):
    output = market.write_transform(tmp_path, market.rows(20), use_user_id=True)
    strange = {features.ITEM_ID: "never seen", features.ITEM_BRAND: "\u00e9", features.USER_ID: "new"}
    rows = [*market.rows(40, seed=3), market.row_values("u", [], "item0", 1) | strange]
    raw = market.parse(rows, COLUMNS)
    transformed = output.transform_features_layer()(raw)

    looked_up = IndexLookup(vocabularies(output, use_user_id=True), str(tmp_path))(raw)

    served = features.served_features(features.transformed_features(market.SIZES, use_user_id=True), use_user_id=True)
    assert set(looked_up) == {f.name for f in served}
    for name, indices in looked_up.items():
        np.testing.assert_array_equal(indices, transformed[name])


@pytest.mark.slow
def test_values_are_numbered_by_falling_frequency_over_the_batches_of_a_transform(tmp_path):
    rows = market.rows(60)
    output = market.write_transform(tmp_path, rows, use_user_id=True)

    for vocabulary, known in vocabularies(output, use_user_id=True).items():
        cells = [np.ravel(row[name]).tolist() for row in rows for name in features.INDEXED[vocabulary]]
        counts = collections.Counter(str(value).encode() for part in cells for value in part if value)
        assert known == sorted(counts, key=lambda value: (counts[value], value), reverse=True)

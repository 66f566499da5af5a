"""What the training benchmark rests on: rows that mean something, and ratios of the right things."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from benchmarks import training, training_market
from sllmr.models import features
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.parsing import parsing_spec


@pytest.fixture(scope="module")
def market() -> training_market.Market:
    return training_market.make_market()


def test_written_rows_parse_to_the_rows_made_in_memory(market):
    made = training_market.make_rows(market, 1000, seed=5)
    columns = features.transformed_features(training_market.SIZES, use_user_id=False)
    serialized = list(training_market.serialized_rows(market, 1000, seed=5))
    parsed = tf.io.parse_example(tf.constant(serialized), parsing_spec(columns))
    assert set(parsed) == set(made)
    for name, values in made.items():
        np.testing.assert_array_equal(parsed[name], values)


def test_a_history_carries_the_categories_and_brand_of_its_items(market):
    rows = training_market.make_rows(market, 500, seed=5)
    items = market.item_columns
    for row in range(500):
        for position, item in enumerate(rows[features.HISTORY_ITEM_INDICES][row]):
            categories = rows[features.HISTORY_CATEGORY_INDICES][row, position]
            np.testing.assert_array_equal(categories, items[features.ITEM_CATEGORY_INDICES][item])
            assert rows[features.HISTORY_BRAND_INDICES][row, position] == items[features.ITEM_BRAND_INDEX][item]
            assert (item == features.PADDING) == (position >= rows[features.HISTORY_LENGTH][row])


def test_tastes_and_popularity_both_tell_the_chosen_item_from_the_others(market):
    contexts = training_market.make_contexts(market, 3000, seed=5)
    labels = np.tile(np.arange(training_market.ROWS_A_CONTEXT) == 0, 3000)
    by_taste = roc_auc_score(labels, contexts.affinity.reshape(-1))
    by_popularity = roc_auc_score(labels, market.popularity[contexts.candidates].reshape(-1))
    assert 0.75 < by_taste < 0.95
    assert 0.7 < by_popularity < 0.9


def test_pairs_have_every_column_that_the_loaded_ones_have_and_calibration_pairs_that_mostly_agree(market):
    pairs = training_market.make_pairs(market, 2000, seed=5)
    raw = {f.name: f for f in features.pair_features(training_market.SIZES)}
    index_of = {name: index for group in features.INDEXED.values() for name, index in group.items()}
    expected = {prefix + index_of[name] for prefix in (PREFERRED, OTHER) for name in index_of if prefix + name in raw}
    expected |= {index_of[name] for name in raw if name in index_of and name != features.USER_ID}
    expected |= {name for name, f in raw.items() if not f.served}
    expected.add(features.USER_HASH)  # of the user id, which pairs carry raw
    assert set(pairs) == expected
    assert (pairs[PREFERRED + features.LLM_SCORE].numpy() > pairs[OTHER + features.LLM_SCORE].numpy()).all()
    probes = pairs[features.CALIBRATION_LABEL].numpy()
    assert (probes != NOT_CALIBRATION).sum() == 500
    assert 0.7 < probes[probes != NOT_CALIBRATION].mean() < 0.95


def test_the_speed_of_an_arm_is_set_against_ours_of_the_same_round():
    # A machine that slows down threefold in the second of three rounds, and an arm that takes twice our time.
    ours = [1.0, 3.0, 1.0]
    seconds = {
        "sllmr": ours,
        "sllmr_gated": [1.6, 4.8, 1.6],
        "sllmr_extra_rows": [1.0, 3.0, 1.0],
        "keras": [2.0, 6.0, 2.0],
    }
    compared = training.compare(seconds, {name: [0.7] for name in seconds}, rows=76_800)
    assert compared["arms"]["keras"]["relative_speed"] == 0.5
    assert compared["arms"]["sllmr"]["rows_per_s"] == 76_800
    # 150 steps of 1.6 s / 150 against 100 steps of 1 s / 100.
    assert training.over_extra_rows(seconds, 76_800) == pytest.approx(1.6 / 150 / (1.0 / 100), abs=1e-3)

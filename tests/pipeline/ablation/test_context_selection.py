import hashlib

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.pipeline.ablation.context_selection import covering, fraction_of_contexts


def test_a_smaller_fraction_of_contexts_is_part_of_a_larger_and_keeps_contexts_whole():
    history = np.repeat(np.arange(1, 501, dtype=np.int32)[:, np.newaxis], 3, axis=0) * np.ones((1, 4), np.int32)
    pairs = {features.HISTORY_ITEM_INDICES: tf.constant(history), features.CALIBRATION_LABEL: tf.range(1500)}

    tenth, half, whole = (fraction_of_contexts(pairs, fraction) for fraction in (0.1, 0.5, 1.0))
    kept = [set(np.asarray(part[features.CALIBRATION_LABEL]).tolist()) for part in (tenth, half, whole)]
    assert kept[0] < kept[1] < kept[2]
    assert len(kept[1]) == pytest.approx(750, abs=120)
    for number in kept[0]:
        assert {3 * (number // 3) + n for n in range(3)} <= kept[0]
    row = history[0].tobytes()
    fraction = int.from_bytes(hashlib.sha256(row).digest()[:7]) / 2**56
    assert (0 in kept[1]) == (fraction < 0.5)


def test_covering_picks_the_context_of_the_highest_value_each_time():
    source = np.random.default_rng(2)
    candidates = [source.choice(40, size=source.integers(1, 6), replace=False) for _ in range(60)]

    expected: list[int] = []
    times = dict.fromkeys(range(40), 0)
    for _ in range(25):
        values = {
            n: sum(1 / (1 + times[item]) for item in items.tolist())
            for n, items in enumerate(candidates)
            if n not in expected
        }
        best = max(values, key=lambda n: (round(values[n], 9), -n))
        expected.append(best)
        for item in candidates[best].tolist():
            times[item] += 1

    assert covering(candidates, 25) == expected
    assert sorted(covering(candidates, 99)) == list(range(60))


def test_coverage_keeps_as_many_contexts_and_the_same_calibration_contexts_but_reaches_more_items():
    source = np.random.default_rng(3)
    contexts, in_each = 2000, 3
    history = np.repeat(np.arange(1, contexts + 1, dtype=np.int32)[:, np.newaxis], in_each, axis=0) * np.ones((1, 4))
    rows = contexts * in_each
    calibrates = np.repeat(source.random(contexts) < 0.35, in_each)
    popular_first = (1000 * source.random((rows, 2)) ** 4).astype(np.int32)
    pairs = {
        features.HISTORY_ITEM_INDICES: tf.constant(history.astype(np.int32)),
        features.CALIBRATION_LABEL: tf.constant(np.where(calibrates, 1, NOT_CALIBRATION)),
        features.HISTORY_LENGTH: tf.range(rows) // in_each,
        PREFERRED + features.ITEM_INDEX: tf.constant(popular_first[:, 0]),
        OTHER + features.ITEM_INDEX: tf.constant(popular_first[:, 1]),
    }

    def kept(by: str) -> tuple[set[int], set[int], set[int]]:
        """Contexts, those of them with calibration pairs, and items of the other ones."""
        part = {name: np.asarray(values) for name, values in fraction_of_contexts(pairs, 0.1, by).items()}
        context, other = part[features.HISTORY_LENGTH], part[features.CALIBRATION_LABEL] == NOT_CALIBRATION
        items = np.concatenate([part[prefix + features.ITEM_INDEX][other] for prefix in (PREFERRED, OTHER)])
        assert np.all(np.unique(context, return_counts=True)[1] == in_each)
        return set(context.tolist()), set(context[~other].tolist()), set(items.tolist())

    by_hash, by_coverage = kept("hash"), kept("coverage")
    assert len(by_coverage[0]) == len(by_hash[0])
    assert by_coverage[1] == by_hash[1]
    assert len(by_coverage[2]) > 1.3 * len(by_hash[2])

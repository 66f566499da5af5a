"""The popularity baseline against a loop over all pairs."""

import itertools

import pytest
import tensorflow as tf

from models import features
from pipeline.baseline import popularity_auc

ROWS = [  # label, item_train_count, is_cold, is_tail
    (1, 9, 0, 0),
    (1, 2, 1, 0),
    (1, 2, 0, 1),
    (0, 2, 1, 0),
    (0, 5, 0, 0),
    (0, 0, 0, 1),
]


def write_rows(directory, rows) -> None:
    names = (features.LABEL, features.ITEM_TRAIN_COUNT, features.IS_COLD, features.IS_TAIL)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(directory / "rows.tfrecord.gz"), options) as writer:
        for row in rows:
            example = tf.train.Example()
            for name, value in zip(names, row, strict=True):
                example.features.feature[name].int64_list.value.append(value)
            writer.write(example.SerializeToString())


def pairwise_auc(rows) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half."""
    wins = [
        (p[1] > n[1]) + 0.5 * (p[1] == n[1])
        for p, n in itertools.product([r for r in rows if r[0]], [r for r in rows if not r[0]])
    ]
    return sum(wins) / len(wins)


def test_auc_by_slice_is_the_share_of_pairs_in_order(tmp_path):
    write_rows(tmp_path, ROWS)
    result = popularity_auc(str(tmp_path))
    assert result["overall"]["auc"] == pytest.approx(pairwise_auc(ROWS))
    assert result["cold"]["auc"] == pytest.approx(pairwise_auc([r for r in ROWS if r[2]]))
    assert result["head"]["auc"] == pytest.approx(pairwise_auc([r for r in ROWS if not r[3]]))
    assert result["tail"] == {"auc": 1.0, "examples": 2, "positives": 1}


def test_a_slice_without_rows_is_absent_and_one_of_a_single_class_has_no_auc(tmp_path):
    write_rows(tmp_path, [(1, 3, 0, 0), (1, 4, 0, 0)])
    result = popularity_auc(str(tmp_path))
    assert "cold" not in result
    assert result["overall"] == {"auc": None, "examples": 2, "positives": 2}

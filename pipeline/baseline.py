"""The popularity baseline: how well "bought more often in train" alone orders the test rows."""

import collections
import glob
import os
from typing import Any

import tensorflow as tf
from sklearn.metrics import roc_auc_score

from models import features
from pipeline.slices import SLICES, slice_rule

_COLUMNS = (features.LABEL, features.ITEM_TRAIN_COUNT, features.IS_COLD, features.IS_TAIL)


def popularity_auc(split_directory: str) -> dict[str, dict[str, Any]]:
    """AUC of `item_train_count` as the score, by slice, on exactly the Evaluator's rows.

    Args:
        split_directory: the test split of an Examples artifact.

    Returns:
        slice -> auc (None where the slice holds one class only), examples, positives. Slices without rows are absent.
    """
    files = sorted(glob.glob(os.path.join(split_directory, "*")))
    spec = {name: tf.io.FixedLenFeature((), tf.int64) for name in _COLUMNS}
    dataset = tf.data.TFRecordDataset(files, compression_type="GZIP").batch(4096)
    columns: dict[str, list[int]] = collections.defaultdict(list)
    for batch in dataset.map(lambda serialized: tf.io.parse_example(serialized, spec)):
        for name in _COLUMNS:
            columns[name].extend(batch[name].numpy().tolist())
    result: dict[str, dict[str, Any]] = {}
    for name in SLICES:
        rule = slice_rule(name)
        rows = [i for i in range(len(columns[features.LABEL])) if rule is None or columns[rule[0]][i] == rule[1]]
        if not rows:
            continue
        labels = [columns[features.LABEL][i] for i in rows]
        scores = [columns[features.ITEM_TRAIN_COUNT][i] for i in rows]
        result[name] = {
            "auc": float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else None,
            "examples": len(rows),
            "positives": sum(labels),
        }
    return result

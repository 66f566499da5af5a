"""How well a score orders the test rows by slice, and the popularity baseline: "bought more often in train" alone."""

import glob
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from models import features
from pipeline.slices import SLICES, slice_rule

_COLUMNS = (features.LABEL, features.ITEM_TRAIN_COUNT, features.IS_COLD, features.IS_TAIL)

Columns = Mapping[str, npt.ArrayLike | tf.Tensor]


def popularity_auc(split_directory: str) -> dict[str, dict[str, Any]]:
    """AUC of `item_train_count` as the score, by slice, on exactly the Evaluator's rows.

    Args:
        split_directory: the test split of an Examples artifact.

    Returns:
        As `auc_by_slice`; slices without rows are absent.
    """
    files = sorted(glob.glob(os.path.join(split_directory, "*")))
    spec = {name: tf.io.FixedLenFeature((), tf.int64) for name in _COLUMNS}
    dataset = tf.data.TFRecordDataset(files, compression_type="GZIP").batch(4096)
    batches = list(dataset.map(lambda serialized: tf.io.parse_example(serialized, spec)).as_numpy_iterator())
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in _COLUMNS}
    aucs = auc_by_slice(columns, columns[features.ITEM_TRAIN_COUNT], SLICES)
    return {name: values for name, values in aucs.items() if values["examples"]}


def auc_by_slice(rows: Columns, scores: npt.ArrayLike, slices: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How well scores order rows, by slice.

    Args:
        rows: [rows] each: the label and the features that pipeline.slices goes by.
        scores: [rows]; a row whose score is NaN takes no part.
        slices: of pipeline.slices.

    Returns:
        slice -> auc (None where the slice does not hold both labels), examples, positives.
    """
    labels, scores = np.asarray(rows[features.LABEL]), np.asarray(scores)
    result = {}
    for name in slices:
        inside = in_slice(rows, name) & ~np.isnan(scores)
        both = len(set(labels[inside].tolist())) == 2
        result[name] = {
            "auc": float(roc_auc_score(labels[inside], scores[inside])) if both else None,
            "examples": int(inside.sum()),
            "positives": int(labels[inside].sum()),
        }
    return result


def in_slice(rows: Columns, name: str) -> np.ndarray:
    """bool [rows]: which rows a slice holds."""
    rule = slice_rule(name)
    if rule is None:
        return np.ones(len(np.asarray(rows[features.LABEL])), bool)
    return np.asarray(rows[rule[0]]) == rule[1]

"""How well a score orders rows, by slice."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from sllmr.components.evaluator.slices import slice_rule
from sllmr.models import features
from sllmr.models.clustered_auc import estimate_auc

Columns = Mapping[str, npt.ArrayLike | tf.Tensor]


def auc_by_slice(rows: Columns, scores: npt.ArrayLike, slices: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How well scores order rows, by slice.

    Args:
        rows: [rows] each: the label and the features that components.evaluator.slices goes by.
        scores: [rows]; a row whose score is NaN takes no part.
        slices: of components.evaluator.slices.

    Returns:
        slice -> auc (None where the slice does not hold both labels), examples, positives.
    """
    labels, scores = np.asarray(rows[features.LABEL]), np.asarray(scores)
    result = {}
    for name in slices:
        inside = in_slice(rows, name) & ~np.isnan(scores)
        found = estimate_auc(np.arange(inside.sum()), labels[inside], scores[inside])
        result[name] = {"auc": found.auc, "examples": found.examples, "positives": found.positives}
    return result


def in_slice(rows: Columns, name: str) -> np.ndarray:
    """bool [rows]: which rows a slice holds."""
    rule = slice_rule(name)
    if rule is None:
        return np.ones(len(np.asarray(rows[features.LABEL])), bool)
    return np.asarray(rows[rule[0]]) == rule[1]

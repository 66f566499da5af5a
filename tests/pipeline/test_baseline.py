"""AUC by slice against a loop over all pairs."""

import itertools
import math

import pytest

from sllmr.components.evaluator.slices import SLICES
from sllmr.models import features
from sllmr.pipeline.baseline import auc_by_slice

ROWS = [  # label, score, is_cold, is_tail, item_train_count
    (1, 9, 0, 0, 7),
    (1, 2, 1, 0, 0),
    (1, 2, 0, 1, 1),
    (0, 2, 1, 0, 7),
    (0, 5, 0, 0, 0),
    (0, 0, 0, 1, 0),
]


def columns(rows) -> tuple[dict[str, list[int]], list[float]]:
    labels, scores, is_cold, is_tail, item_train_count = (list(column) for column in zip(*rows, strict=True))
    return {
        features.LABEL: labels,
        features.IS_COLD: is_cold,
        features.IS_TAIL: is_tail,
        features.ITEM_TRAIN_COUNT: item_train_count,
    }, scores


def pairwise_auc(rows) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half."""
    wins = [
        (p[1] > n[1]) + 0.5 * (p[1] == n[1])
        for p, n in itertools.product([r for r in rows if r[0]], [r for r in rows if not r[0]])
    ]
    return sum(wins) / len(wins)


def test_auc_by_slice_is_the_fraction_of_pairs_in_order():
    result = auc_by_slice(*columns(ROWS), SLICES)
    assert result["overall"]["auc"] == pytest.approx(pairwise_auc(ROWS))
    assert result["cold"]["auc"] == pytest.approx(pairwise_auc([r for r in ROWS if r[2]]))
    assert result["head"]["auc"] == pytest.approx(pairwise_auc([r for r in ROWS if not r[3]]))
    assert result["tail"] == {"auc": 1.0, "examples": 2, "positives": 1}
    assert result["unseen"]["auc"] == pytest.approx(pairwise_auc([r for r in ROWS if r[4] == 0]))


def test_a_slice_without_rows_or_of_a_single_class_has_no_auc():
    result = auc_by_slice(*columns([(1, 3, 0, 0, 7), (1, 4, 0, 0, 7)]), SLICES)
    assert result["cold"] == {"auc": None, "examples": 0, "positives": 0}
    assert result["overall"] == {"auc": None, "examples": 2, "positives": 2}


def test_a_row_without_a_score_takes_no_part():
    rows, scores = columns(ROWS)
    result = auc_by_slice(rows, [math.nan, *scores[1:]], ["overall"])
    assert result["overall"] == {"auc": pytest.approx(pairwise_auc(ROWS[1:])), "examples": 5, "positives": 2}

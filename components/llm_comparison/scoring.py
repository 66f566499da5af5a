"""Scores the rows of the comparison by both models."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sllmr.components.llm_comparison.verdict import OVERALL, ScoredRows
from sllmr.components.own_slices import own_slices, raw_features, slice_features
from sllmr.components.saved_model_scores import score_files
from sllmr.models import features
from sllmr.models.serving.declared_asset import read_declared


def score_rows(
    with_llm: str,
    without_llm: str,
    files: Sequence[str],
    slices: Mapping[str, tuple[str, int] | None],
    by_features: Sequence[str] = (),
    min_users: int = 1,
) -> ScoredRows:
    """Logits of both models on the same rows.

    Args:
        with_llm, without_llm: directories of SavedModels.
        files: gzip TFRecords of raw rows as serialized tf.Examples.
        slices: name -> integer feature and the value that a row of the slice has; None for all rows.
        by_features, min_users: slices by declared features, see components.own_slices.

    Raises:
        ValueError: there are no rows.
    """
    rules = {name: rule for name, rule in slices.items() if rule is not None}
    columns = {features.USER_ID: tf.string, features.LABEL: tf.int64}
    columns |= {feature: tf.int64 for feature, _ in rules.values()}
    asset = read_declared(with_llm)
    further = raw_features(slice_features(by_features, asset.declared))
    rows, logits = score_files({"with_llm": with_llm, "without_llm": without_llm}, files, columns, further)
    labels = rows[features.LABEL]
    inside = {name: rows[feature] == value for name, (feature, value) in rules.items()}
    own = own_slices(by_features, rows, asset.declared, asset.numbers, min_users)
    return ScoredRows(
        users=rows[features.USER_ID],
        labels=labels,
        with_llm=logits["with_llm"],
        without_llm=logits["without_llm"],
        slices={name: inside.get(name, np.ones(len(labels), bool)) for name in (OVERALL, *slices)}
        | {name: found.inside for name, found in own.items()},
    )

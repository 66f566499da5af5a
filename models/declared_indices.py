"""Raw values of declared features -> indices and numbers: the same in Transform and inside a served model."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import MISSING_AFTER, NUMERIC, DeclaredFeature
from sllmr.models.features import FeatureSizes

KnownNumber = Callable[[tf.Tensor], tf.Tensor]
"""Values of any shape -> their numbers, int64 of that shape, from 0 to n - 1, or n for an unknown one."""

Standardize = Callable[[tf.Tensor], tf.Tensor]
"""(value - mean) / standard deviation, float32 of any shape."""


def declared_indices(
    raw: Mapping[str, tf.Tensor],
    sizes: FeatureSizes,
    known_number: Mapping[str, KnownNumber],
    values: Mapping[str, tf.Tensor | int],
    standardize: Mapping[str, Standardize],
) -> dict[str, tf.Tensor]:
    """The transformed features of those declared features whose raw columns are given.

    Args:
        raw: columns by name, [batch] + shape. Columns of the history need HISTORY_ITEM_IDS beside them.
        sizes: L, C and the declared features.
        known_number: by name of the feature; not needed for standardized ones.
        values: n by name of the feature.
        standardize: by name, of the standardized features.

    Returns:
        By name of the transformed feature, in the raw column's shape: int64 indices, and float32 standardized values.
    """
    result = {}
    for f in sizes.declared:
        if f.name in raw:
            result[f.index] = _indices(raw[f.name], f, known_number, values[f.name])
            if f.is_standardized:
                missing = tf.math.is_nan(raw[f.name])
                given = tf.where(missing, 0.0, raw[f.name])
                result[f.value] = tf.where(missing, 0.0, standardize[f.name](given))
    for f in sizes.in_history:
        if f.history_name in raw:
            indices = _indices(raw[f.history_name], f, known_number, values[f.name])
            is_item = tf.not_equal(raw[features.HISTORY_ITEM_IDS], "")
            if f.shape:
                is_item = is_item[..., tf.newaxis]
            result[f.history_index] = tf.where(is_item, indices, tf.zeros_like(indices))
    return result


def _indices(
    raw: tf.Tensor, f: DeclaredFeature, known_number: Mapping[str, KnownNumber], values: tf.Tensor | int
) -> tf.Tensor:
    n = tf.cast(values, tf.int64)
    missing = tf.math.is_nan(raw) if f.kind == NUMERIC else tf.equal(raw, "")
    if f.is_standardized:
        indices = tf.ones_like(raw, tf.int64)
    else:
        indices = known_number[f.name](tf.where(missing, tf.zeros_like(raw), raw)) + 1
    if not f.shape:
        return tf.where(missing, n + MISSING_AFTER, indices)
    # In a list, a missing value is padding. A list of missing values alone is itself missing.
    all_missing = tf.reduce_all(missing, axis=-1, keepdims=True)
    is_first = tf.equal(tf.range(f.max_values), 0)
    return tf.where(all_missing & is_first, n + MISSING_AFTER, tf.where(missing, tf.zeros_like(indices), indices))


def bucket_of(boundaries: tf.Tensor) -> KnownNumber:
    """The bucket of a number: how many of the boundaries are not above it.

    Args:
        boundaries: float32 [n - 1], rising.
    """

    def number(values: tf.Tensor) -> tf.Tensor:
        flat = tf.searchsorted(boundaries, tf.reshape(values, [-1]), side="right", out_type=tf.int64)
        return tf.reshape(flat, tf.shape(values))

    return number


def hash_of(buckets: int) -> KnownNumber:
    """The hashing bucket of a text, as tft.hash_strings computes it."""
    return lambda values: tf.strings.to_hash_bucket_fast(values, buckets)


def standardized_by(mean: tf.Tensor, deviation: tf.Tensor) -> Standardize:
    """(value - mean) / deviation; 0 if all train rows have one value."""
    return lambda values: tf.math.divide_no_nan(values - mean, deviation)

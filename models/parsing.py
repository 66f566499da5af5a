"""Spec by which TensorFlow parses tf.Examples of the feature table."""

from collections.abc import Iterable

import tensorflow as tf

from sllmr.models.features import Feature


def parsing_spec(features: Iterable[Feature]) -> dict[str, tf.io.FixedLenFeature]:
    """Spec for `tf.io.parse_example`; every feature is dense and required."""
    return {f.name: tf.io.FixedLenFeature(f.shape, tf.dtypes.as_dtype(f.dtype)) for f in features}

"""Raw columns -> indices, as a TFX Transform preprocessing_fn."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from models import features

USE_USER_ID = "use_user_id"
"""Key of the bool in custom_config: whether the users get a vocabulary."""


def preprocessing_fn(inputs: Mapping[str, tf.Tensor], custom_config: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Writes models.features.transformed_features.

    Each vocabulary is the set of values of its group of features in the analysed splits, which must be the
    train split alone (Transform's splits_config). Index 0 is the empty string, 1..V the known values by
    falling frequency, V + 1 every other value.

    Args:
        inputs: the features of models.features.row_features, dense, [batch] + shape.
        custom_config: USE_USER_ID.
    """
    outputs = {}
    for vocabulary, group in features.INDEXED.items():
        if vocabulary == features.USERS and not custom_config[USE_USER_ID]:
            continue
        values = tf.concat([tf.reshape(inputs[name], [-1]) for name in group], axis=0)
        file_name = tft.vocabulary(values, vocab_filename=vocabulary)
        for name, index in group.items():
            outputs[index] = _index(inputs[name], file_name)
    for name in (
        features.HISTORY_LENGTH,
        features.ITEM_TRAIN_COUNT,
        features.IS_TAIL,
        features.IS_COLD,
        features.LABEL,
    ):
        outputs[name] = tf.identity(inputs[name])
    return outputs


def _index(values: tf.Tensor, vocabulary_file: tf.Tensor) -> tf.Tensor:
    # One out-of-vocabulary bucket is V: unlike a default value it does not need V while the graph is built.
    known = tft.apply_vocabulary(values, vocabulary_file, num_oov_buckets=1)
    return tf.where(tf.equal(values, ""), tf.zeros_like(known), known + 1)


def vocabulary_sizes(transform_output: tft.TFTransformOutput, *, use_user_id: bool) -> features.VocabularySizes:
    """V of each vocabulary in a transform graph."""
    names = [name for name in features.INDEXED if use_user_id or name != features.USERS]
    return features.VocabularySizes(**{n: transform_output.vocabulary_size_by_name(n) for n in names})

"""Raw columns -> indices, as a TFX Transform preprocessing_fn."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from sllmr.models import features
from sllmr.models.declared_features import NUMERIC, DeclaredFeature, DeclaredSize, TrainNumbers
from sllmr.models.declared_indices import bucket_of, declared_indices, hash_of, standardized_by
from sllmr.models.features import FeatureSizes

USE_USER_ID = "use_user_id"
"""Key of the bool in custom_config: whether the users get a vocabulary."""

SIZES = "sizes"
"""Key of the JSON of a FeatureSizes in custom_config; absent without declared features."""


def preprocessing_fn(inputs: Mapping[str, tf.Tensor], custom_config: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Computes models.features.transformed_features.

    Each vocabulary is the set of values of its group of features in the analyzed splits, which must be the
    train split alone (Transform's splits_config). Index 0 is the empty string, 1..V the known values by
    falling frequency, V + 1 every other value. For declared features see models.declared_features.

    Args:
        inputs: the features of models.features.row_features, dense, [batch] + shape.
        custom_config: USE_USER_ID, and SIZES if features are declared.
    """
    outputs = {}
    for vocabulary, group in features.INDEXED.items():
        if vocabulary == features.USERS and not custom_config[USE_USER_ID]:
            continue
        values = tf.concat([tf.reshape(inputs[name], [-1]) for name in group], axis=0)
        file_name = _vocabulary(values, vocabulary)
        for name, index in group.items():
            outputs[index] = _index(inputs[name], file_name)
    if SIZES in custom_config:
        outputs |= _declared(inputs, FeatureSizes.model_validate_json(custom_config[SIZES]))
    # A hash, since a vocabulary would put the users' ids into the exported model.
    outputs[features.USER_HASH] = tf.strings.to_hash_bucket_fast(inputs[features.USER_ID], features.USER_HASHES)
    for name in (
        features.HISTORY_LENGTH,
        features.ITEM_TRAIN_COUNT,
        features.IS_TAIL,
        features.IS_COLD,
        features.LABEL,
    ):
        outputs[name] = tf.identity(inputs[name])
    if features.EXAMPLE_WEIGHT in inputs:  # by the schema: data.events or data.columns.weight
        outputs[features.EXAMPLE_WEIGHT] = tf.identity(inputs[features.EXAMPLE_WEIGHT])
    return outputs


def _vocabulary(values: tf.Tensor, name: str) -> tf.Tensor:
    # TensorFlow Transform counts the values of a batch in TensorFlow only if they have weights; without weights, every
    # value of every row goes through Beam. The weights are integers, so that the sums are the exact frequencies.
    return tft.vocabulary(values, weights=tf.ones_like(values, dtype=tf.int64), vocab_filename=name)


def _index(values: tf.Tensor, vocabulary_file: tf.Tensor) -> tf.Tensor:
    # The one out-of-vocabulary bucket is V. A default value of V would need V while the graph is built.
    known = tft.apply_vocabulary(values, vocabulary_file, num_oov_buckets=1)
    return tf.where(tf.equal(values, ""), tf.zeros_like(known), known + 1)


def transformed_columns(
    transform_output: tft.TFTransformOutput, sizes: features.FeatureSizes, *, use_user_id: bool
) -> tuple[features.Feature, ...]:
    """The columns of the rows that a transform graph writes, see models.features.transformed_features."""
    has_weights = features.EXAMPLE_WEIGHT in transform_output.transformed_feature_spec()
    return features.transformed_features(sizes, use_user_id=use_user_id, has_weights=has_weights)


def _declared(inputs: Mapping[str, tf.Tensor], sizes: FeatureSizes) -> dict[str, tf.Tensor]:
    known_number, values, standardize = {}, {}, {}
    for f in sizes.declared:
        if f.kind == NUMERIC:
            given = tf.boolean_mask(inputs[f.name], tf.logical_not(tf.math.is_nan(inputs[f.name])))
            if f.is_standardized:
                mean, deviation = tft.mean(given), tf.sqrt(tft.var(given))
                standardize[f.name] = standardized_by(mean, deviation)
                _keep_numbers(f, tf.stack([mean, deviation]))
            else:
                boundaries = tft.quantiles(given, f.buckets, epsilon=_QUANTILE_ERROR)[0]
                known_number[f.name] = bucket_of(boundaries)
                _keep_numbers(f, boundaries)
            values[f.name] = f.fixed_size
        elif f.has_vocabulary:
            columns = [inputs[f.name]] + ([inputs[f.history_name]] if f.history else [])
            texts = tf.concat([tf.reshape(column, [-1]) for column in columns], axis=0)
            file_name = _vocabulary(texts, f.name)
            known_number[f.name] = _number_in(file_name)
            values[f.name] = known_number[f.name](tf.constant([_IN_NO_VOCABULARY]))[0]
        else:
            known_number[f.name] = hash_of(f.fixed_size or 1)
            values[f.name] = f.fixed_size
    return declared_indices(inputs, sizes, known_number, values, standardize)


_QUANTILE_ERROR = 0.001
_IN_NO_VOCABULARY = "\n"
"""In no vocabulary, since a line of its file holds no line break: its number is the size of the vocabulary."""


def _number_in(vocabulary_file: tf.Tensor) -> Any:
    return lambda texts: tft.apply_vocabulary(texts, vocabulary_file, num_oov_buckets=1)


def _keep_numbers(f: DeclaredFeature, numbers: tf.Tensor) -> None:
    """Writes numbers that analyzers found as lines of `position number` in a file beside the vocabularies, since no
    other numbers can be read from a transform graph."""
    positions = tf.strings.as_string(tf.range(tf.size(numbers)))
    texts = tf.strings.as_string(numbers, precision=9, scientific=True)
    tft.vocabulary(tf.strings.join([positions, texts], separator=" "), vocab_filename=f.numbers)


def train_numbers(transform_output: tft.TFTransformOutput, sizes: FeatureSizes) -> dict[str, TrainNumbers]:
    """By name of each numeric declared feature: its statistics in a transform graph."""
    found = {}
    for f in sizes.declared:
        if f.kind == NUMERIC:
            lines = [line.split(b" ") for line in transform_output.vocabulary_by_name(f.numbers)]
            numbers = [float(number) for _, number in sorted(lines, key=lambda line: int(line[0]))]
            if f.is_standardized:
                found[f.name] = TrainNumbers(mean=numbers[0], deviation=numbers[1])
            else:
                found[f.name] = TrainNumbers(boundaries=tuple(numbers))
    return found


def vocabularies(
    transform_output: tft.TFTransformOutput, *, use_user_id: bool, sizes: FeatureSizes | None = None
) -> dict[str, list[bytes]]:
    """The known values of each vocabulary of a transform graph, number n for index n + 1."""
    names = [*_names(use_user_id), *(f.name for f in (sizes.declared if sizes else ()) if f.has_vocabulary)]
    return {n: transform_output.vocabulary_by_name(n) for n in names}


def vocabulary_sizes(
    transform_output: tft.TFTransformOutput, *, use_user_id: bool, sizes: FeatureSizes | None = None
) -> features.VocabularySizes:
    """V of each vocabulary in a transform graph, and the sizes of the declared features."""

    def size(f: DeclaredFeature) -> int:
        return transform_output.vocabulary_size_by_name(f.name) if f.fixed_size is None else f.fixed_size

    return features.VocabularySizes(
        **{n: transform_output.vocabulary_size_by_name(n) for n in _names(use_user_id)},
        declared=tuple(DeclaredSize(feature=f, values=size(f)) for f in (sizes.declared if sizes else ())),
    )


def _names(use_user_id: bool) -> list[str]:
    return [name for name in features.INDEXED if use_user_id or name != features.USERS]

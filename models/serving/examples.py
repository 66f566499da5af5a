"""tf.Examples of requests -> columns of the table of features, padded here and not by the client."""

import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from sllmr.models.features import Feature, Role
from sllmr.models.parsing import parsing_spec


def parse_requests(examples: tf.Tensor, served: Sequence[Feature]) -> dict[str, tf.Tensor]:
    """Parses serialized tf.Examples whose lists may be shorter than the feature's shape.

    A scalar is required, unless it is a declared feature. A list of the candidate, user or request holds at most as
    many values as its shape. A list of the history holds, for any number of items, as many values for each item as its
    shape says; the model reads the first L items. A missing list counts as empty. Missing texts are padded with "",
    missing numbers with NaN.

    Args:
        examples: string [batch].
        served: models.features.served_features.

    Returns:
        By name, [batch] + shape.

    Raises:
        InvalidArgumentError: by TensorFlow when the graph runs; names the column, the rule and the number of values.
    """
    lists = [f for f in served if f.shape]
    spec = parsing_spec(f for f in served if not f.shape)
    spec |= {
        f.name: tf.io.FixedLenFeature((), tf.dtypes.as_dtype(f.dtype), default_value=f.declared.missing)
        for f in served
        if f.declared is not None and not f.shape
    }
    ragged = {f.name: tf.io.RaggedFeature(tf.dtypes.as_dtype(f.dtype), row_splits_dtype=tf.int64) for f in lists}
    parsed = tf.io.parse_example(examples, {**spec, **ragged})
    counts = {f.name: parsed[f.name].row_lengths() for f in lists}
    with tf.control_dependencies([*_length_rules(lists, counts), *_history_rules(lists, counts)]):
        return {f.name: _padded(parsed[f.name], f) if f.shape else parsed[f.name] for f in served}


def _padded(values: tf.RaggedTensor, feature: Feature) -> tf.Tensor:
    padding = "" if feature.dtype == "string" else float("nan")
    dense = values.to_tensor(default_value=padding, shape=[None, math.prod(feature.shape)])
    return tf.reshape(dense, [-1, *feature.shape])


def _length_rules(lists: Sequence[Feature], counts: Mapping[str, tf.Tensor]) -> list[tf.Operation]:
    return [
        tf.debugging.assert_less_equal(
            counts[f.name],
            tf.constant(math.prod(f.shape), tf.int64),
            message=f"{f.name} must hold at most {math.prod(f.shape)} values of the "
            f"{'candidate' if f.role is Role.ITEM else 'request'}; send fewer",
        )
        for f in lists
        if not f.of_history
    ]


def _history_rules(lists: Sequence[Feature], counts: Mapping[str, tf.Tensor]) -> list[tf.Operation]:
    history = [f for f in lists if f.of_history]
    if not history:
        return []
    first, *others = history
    items = counts[first.name] // math.prod(first.shape[1:])
    return [
        tf.debugging.assert_equal(
            counts[f.name],
            items * math.prod(f.shape[1:]),
            message=f"{f.name} must hold {math.prod(f.shape[1:])} value(s) for each item of {first.name}; pad an item "
            'that has fewer with ""',
        )
        for f in others
    ]

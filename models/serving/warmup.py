"""Requests that TF Serving replays before it serves a version, so that no client waits for the first one."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from sllmr.models import artifact_files, features
from sllmr.models.declared_features import ITEM
from sllmr.models.features import FeatureSizes
from sllmr.models.serving.item_lookup import ItemColumns

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
"""Where TF Serving looks for the requests, below the SavedModel."""

_CANDIDATES = 100


def write_warmup(directory: str, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes the warm-up file of a SavedModel.

    Args:
        directory: of the SavedModel.
        requests: in the order of the replay, a signature's name and its inputs by name, arrays of bytes or floats.
    """
    path = os.path.join(directory, WARMUP_FILE)
    artifact_files.make_folder(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as file:
        for signature, inputs in requests:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                array = np.asarray(values)
                dtype = tf.float32 if array.dtype.kind == "f" else tf.string
                request.inputs[name].CopyFrom(
                    tf.make_tensor_proto(array if dtype == tf.float32 else np.asarray(values, object), dtype=dtype)
                )
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            file.write(log.SerializeToString(deterministic=True))


def rows_and_candidates(catalog: ItemColumns, sizes: FeatureSizes) -> tuple[dict[str, Any], list[bytes], list[bytes]]:
    """A made-up request: a user whose history is the first items of the catalog.

    Returns:
        The row of the first item, as values by served feature; the ids of the history; the ids of the candidates.
    """
    row: dict[str, Any] = {features.USER_ID: b""}
    for table, (of_candidate, of_history) in features.OF_ITEMS.items():
        values = list(catalog[of_candidate][: sizes.history])
        padding = [b""] * sizes.categories if table == features.CATEGORIES else b""
        row[of_candidate] = values[0]
        row[of_history] = values + [padding] * (sizes.history - len(values))
    for f in sizes.declared:
        values = list(catalog[f.name][: sizes.history]) if f.table == ITEM else [f.missing]
        row[f.name] = values[0]
        row[f.history_name] = values + [f.missing] * (sizes.history - len(values))
    ids = list(catalog[features.ITEM_ID])
    return row, ids[: sizes.history], ids[:_CANDIDATES]

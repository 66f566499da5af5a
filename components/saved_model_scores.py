"""Scores rows by exported models, through the signature that TF Serving uses."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from sllmr.models import signatures
from sllmr.models.features import Feature
from sllmr.models.parsing import parsing_spec

_ROWS_AT_ONCE = 4096


def score_files(
    directories: Mapping[str, str],
    files: Sequence[str],
    columns: Mapping[str, tf.DType],
    further: Sequence[Feature] = (),
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads columns of rows, and scores the rows with models.

    Args:
        directories: of SavedModels, by any name.
        files: gzip TFRecords of raw rows as serialized tf.Examples.
        columns: single-valued features to read.
        further: features of any shape to read, too.

    Returns:
        [rows] + shape by column, and float32 [rows] by model.

    Raises:
        ValueError: there are no rows.
    """
    models = {name: tf.saved_model.load(directory) for name, directory in directories.items()}
    scorers = {name: model.signatures[signatures.SERVING_DEFAULT] for name, model in models.items()}
    spec = {name: tf.io.FixedLenFeature((), dtype) for name, dtype in columns.items()} | parsing_spec(further)
    read: list[dict[str, np.ndarray]] = []
    scored: list[dict[str, np.ndarray]] = []
    for serialized in tf.data.TFRecordDataset(sorted(files), compression_type="GZIP").batch(_ROWS_AT_ONCE):
        read.append({name: value.numpy() for name, value in tf.io.parse_example(serialized, spec).items()})
        scored.append({name: scorer(serialized)[signatures.LOGITS].numpy() for name, scorer in scorers.items()})
    if not read:
        raise ValueError(f"scoring needs rows, got none in {list(files)}; check the split of the data")
    return _joined(read), _joined(scored)


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

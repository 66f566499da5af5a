"""The TensorFlow Metadata schema of the feature table."""

from collections.abc import Iterable

from tensorflow_metadata.proto.v0 import schema_pb2

from sllmr.models.declared_features import NUMERIC, DeclaredFeature
from sllmr.models.features import CALIBRATION_LABEL, IS_COLD, IS_TAIL, LABEL, Feature

_TYPES = {"string": schema_pb2.BYTES, "int64": schema_pb2.INT, "float32": schema_pb2.FLOAT}


def schema(features: Iterable[Feature]) -> schema_pb2.Schema:
    """Type, shape and presence of every feature; ExampleValidator checks rows by it."""
    result = schema_pb2.Schema()
    for f in features:
        column = result.feature.add(name=f.name, type=_TYPES[f.dtype])
        column.presence.min_fraction = 1.0
        column.presence.min_count = 1
        column.shape.SetInParent()
        for size in f.shape:
            column.shape.dim.add(size=size)
        if f.name in (LABEL, IS_COLD, IS_TAIL):
            column.int_domain.min, column.int_domain.max = 0, 1
        elif f.dtype == "int64" and f.name != CALIBRATION_LABEL:
            column.int_domain.min = 0
        if f.declared is not None:
            _set_domain(column, f.declared)
    return result


def _set_domain(column: schema_pb2.Feature, declared: DeclaredFeature) -> None:
    """Limits a column to the values that a declared feature allows; missing values stay allowed."""
    if declared.kind == NUMERIC:
        column.float_domain.disallow_inf = True
        if declared.min is not None:
            column.float_domain.min = declared.min
        if declared.max is not None:
            column.float_domain.max = declared.max
    elif declared.values:
        column.string_domain.value.extend(["", *declared.values])

"""tf.Example messages and gzipped TFRecord files without TensorFlow.

The message classes are built from a copy of tensorflow/core/example/{feature,example}.proto in a descriptor pool of
their own: they serialize to the bytes that tf.train.Example serializes to, and TensorFlow may be loaded beside them.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from sllmr.models import artifact_files
from sllmr.models.features import Feature

_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = (
    ("BytesList", "bytes_list", _FIELD.TYPE_BYTES),
    ("FloatList", "float_list", _FIELD.TYPE_FLOAT),
    ("Int64List", "int64_list", _FIELD.TYPE_INT64),
)
_MOST_BYTES = 2**31 - 1  # of a protocol buffer message
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="tf_example.proto", package="tensorflow", syntax="proto3")
    feature = descriptor_pb2.DescriptorProto(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (message, field, kind) in enumerate(_LISTS, start=1):
        values = file.message_type.add(name=message).field
        values.add(name="value", number=1, label=_FIELD.LABEL_REPEATED, type=kind)  # numbers are packed in proto3
        feature.field.add(
            name=field,
            number=number,
            label=_FIELD.LABEL_OPTIONAL,
            type=_FIELD.TYPE_MESSAGE,
            type_name=f".tensorflow.{message}",
            oneof_index=0,
        )
    file.message_type.append(feature)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    for fields, name, number, label, type_name in (
        (entry.field, "value", 2, _FIELD.LABEL_OPTIONAL, "Feature"),
        (features.field, "feature", 1, _FIELD.LABEL_REPEATED, "Features.FeatureEntry"),
        (file.message_type.add(name="Example").field, "features", 1, _FIELD.LABEL_OPTIONAL, "Features"),
    ):
        fields.add(
            name=name, number=number, label=label, type=_FIELD.TYPE_MESSAGE, type_name=f".tensorflow.{type_name}"
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example: Any = _message_class()
"""tf.train.Example's message class: `features.feature[name].{bytes,float,int64}_list.value`."""


def to_example(values: Mapping[str, Any], features: Sequence[Feature]) -> Any:
    """Encodes one row as an Example.

    Args:
        values: by feature name; a scalar, or a flat or nested sequence with as many elements as the shape.
        features: what to write.

    Raises:
        KeyError: a feature has no value.
        ValueError: the number of a value's elements differs from the feature's shape.
    """
    example = Example()
    for f in features:
        flat = _flatten(values[f.name])
        expected = 1
        for size in f.shape:
            expected *= size
        if len(flat) != expected:
            raise ValueError(f"{f.name} must have {expected} elements (shape {f.shape}), got {len(flat)}")
        target = example.features.feature[f.name]
        if f.dtype == "string":
            target.bytes_list.value.extend([v if type(v) is bytes else v.encode() for v in flat])
        elif f.dtype == "int64":
            target.int64_list.value.extend(flat)
        else:
            target.float_list.value.extend(flat)
    return example


def values_of(example: Any, features: Sequence[Feature]) -> dict[str, Any]:
    """The inverse of to_example: by name, a scalar, or a flat list; strings as bytes."""
    values = {}
    for f in features:
        source = example.features.feature[f.name]
        lists = {"string": source.bytes_list, "int64": source.int64_list, "float32": source.float_list}
        found = list(lists[f.dtype].value)
        values[f.name] = found if f.shape else found[0]
    return values


def _flatten(value: Any) -> list:
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], (list, tuple)):
            return [element for part in value for element in _flatten(part)]
        return list(value)
    return [value]


def read_tfrecords(path: str) -> Iterator[bytes]:
    """The records of one gzipped TFRecord file, in order.

    The reader leaves the records' own checksums unread: gzip's checksum covers every byte of the file.

    Raises:
        ValueError: the file is cut short, or holds something else.
    """
    try:
        with artifact_files.gzip(path, "rb") as file:
            while head := file.read(_LENGTH.size + _CHECKSUM.size):
                (length,) = _LENGTH.unpack(_whole(head, _LENGTH.size + _CHECKSUM.size)[: _LENGTH.size])
                if length > _MOST_BYTES:
                    raise EOFError(f"a record claims {length} bytes")
                body = file.read(length + _CHECKSUM.size)
                yield _whole(body, length + _CHECKSUM.size)[:length]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} must be a complete gzipped TFRecord file, but reading it fails: {error}; write the file again"
        ) from error


def _whole(part: bytes, size: int) -> bytes:
    if len(part) != size:
        raise EOFError(f"a record ends after {len(part)} of {size} bytes")
    return part

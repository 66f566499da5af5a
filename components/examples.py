"""Reading and writing the TFRecords of an Examples artifact, the same way for every component."""

import os
from collections.abc import Sequence

import apache_beam as beam
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact, artifact_utils

FILE_PREFIX = "examples"
SUFFIX = ".tfrecord.gz"


def prepare(examples: artifact.Artifact, split_names: Sequence[str]) -> None:
    """Marks an empty Examples artifact as tf.Example in gzipped TFRecords with these splits."""
    examples.split_names = artifact_utils.encode_split_names(list(split_names))
    examples_utils.set_payload_format(examples, example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")


def write_split(examples: artifact.Artifact, split: str) -> beam.PTransform:
    """Writes serialized tf.Examples (PCollection[bytes]) to one split."""
    prefix = os.path.join(artifact_utils.get_split_uri([examples], split), FILE_PREFIX)
    return beam.io.WriteToTFRecord(prefix, file_name_suffix=SUFFIX)


def read_split(examples: artifact.Artifact, split: str) -> beam.PTransform:
    """Reads one split as PCollection[bytes]."""
    pattern = os.path.join(artifact_utils.get_split_uri([examples], split), "*")
    return beam.io.ReadFromTFRecord(pattern)

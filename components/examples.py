"""Reading and writing the TFRecords of an Examples artifact, the same way for every component."""

import os
from collections.abc import Sequence

import apache_beam as beam
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact, artifact_utils

from sllmr.components.beam_signatures import remember_signatures

remember_signatures()  # here, as every component that runs Beam imports this module

FILE_PREFIX = "examples"
SUFFIX = ".tfrecord.gz"

TRAIN_UNTIL = "train_until"
"""Custom property of an Examples artifact: the last time of its train rows, Unix milliseconds; absent without any."""


def prepare(examples: artifact.Artifact, split_names: Sequence[str]) -> None:
    """Marks an empty Examples artifact as tf.Example in gzipped TFRecords with these splits."""
    examples.split_names = artifact_utils.encode_split_names(list(split_names))
    examples_utils.set_payload_format(examples, example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")


def write_split(examples: artifact.Artifact, split: str) -> beam.PTransform:
    """Writes serialized tf.Examples (PCollection[bytes]) to one split."""
    prefix = os.path.join(artifact_utils.get_split_uri([examples], split), FILE_PREFIX)
    return beam.io.WriteToTFRecord(prefix, file_name_suffix=SUFFIX)


class _ReadSplits(beam.PTransform):
    def __init__(self, readers: dict[str, beam.PTransform]):
        super().__init__()
        self._readers = readers

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        splits = [pbegin | split >> reader for split, reader in self._readers.items()]
        return splits | "Flatten" >> beam.Flatten(pipeline=pbegin.pipeline)


def read_other_splits(examples: artifact.Artifact, split: str) -> beam.PTransform:
    """Reads every split but one as PCollection[bytes]."""
    names = artifact_utils.decode_split_names(examples.split_names)
    return _ReadSplits({name: read_split(examples, name) for name in names if name != split})


def read_split(examples: artifact.Artifact, split: str) -> beam.PTransform:
    """Reads one split as PCollection[bytes]."""
    pattern = os.path.join(artifact_utils.get_split_uri([examples], split), "*")
    return beam.io.ReadFromTFRecord(pattern)

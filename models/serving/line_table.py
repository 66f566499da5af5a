"""Lookup tables of a served model: lines of a text file -> their numbers."""

import hashlib
import os
from collections.abc import Sequence

import tensorflow as tf

from sllmr.models import artifact_files


def line_table(lines: Sequence[bytes], directory: str, name: str, *, default_value: int) -> tf.lookup.StaticHashTable:
    """A table from a line to its number, int64 from 0, which is saved with the model as the asset `name`.

    The name of the resource depends on `name` and the lines, not on the directory: TensorFlow shares tables of the same
    name within a process, and by default that name is the path.

    Args:
        lines: distinct, without line breaks.
        directory: where the file is written; it must exist until the model is saved.
        name: of the file.
        default_value: the number for every other string.
    """
    path = os.path.join(directory, name)
    with open(path, "wb") as file:
        file.write(_content(lines))
    shared_name = table_name(name, lines)
    return tf.lookup.StaticHashTable(_Lines(path, shared_name), default_value=default_value)


def table_name(name: str, lines: Sequence[bytes]) -> str:
    """The name of the resource."""
    return f"{name}_{hashlib.sha256(_content(lines)).hexdigest()[:16]}"


def read_lines(path: str) -> list[bytes]:
    """The lines of a table's file."""
    with artifact_files.open(path, "rb") as file:
        return file.read().split(b"\n")[:-1]


def _content(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


class _Lines(tf.lookup.TextFileInitializer):
    def __init__(self, path: str, shared_name: str):
        self._name_of_table = shared_name
        super().__init__(
            path, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )

    @property
    def _shared_name(self) -> str:
        return self._name_of_table

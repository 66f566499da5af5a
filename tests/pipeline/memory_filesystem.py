"""Addresses ram://, TensorFlow's filesystem in the memory of this process, for Beam: what a bucket is to a cluster."""

import io
import types
from collections.abc import Iterator
from typing import Any

import pytest
import tensorflow as tf
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

MODIFIED = 1_700_000_000.0
"""Unix seconds, of every file: ram:// keeps no times."""


class _Stream(io.RawIOBase):
    def __init__(self, path: str, mode: str):
        self._file = tf.io.gfile.GFile(path, mode)
        self.mode = mode
        self._reads = mode == "rb"
        self._written = 0
        self._size = tf.io.gfile.stat(path).length if self._reads else 0

    def readable(self):
        return self._reads

    def writable(self):
        return not self._reads

    def seekable(self):
        return self._reads

    def readinto(self, buffer):
        read = self._file.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)

    def write(self, data):
        self._file.write(bytes(data))
        self._written += len(data)
        return len(data)

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._size}[whence]
        self._file.seek(base + offset)
        return base + offset

    def tell(self):
        return self._file.tell() if self._reads else self._written

    def close(self):
        if not self.closed:
            self._file.close()
        super().close()


class MemoryFileSystem(FileSystem):
    """Like an object store, it has no folders: a file is there by its whole name."""

    @classmethod
    def scheme(cls):
        return "ram"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path):
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path):
        tf.io.gfile.makedirs(path)

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        # gfile.isdir takes the beginning of a file's name for a folder.
        for directory, _, names in _walk(dir_or_prefix.rpartition("/")[0]):
            for name in names:
                path = self.join(directory, name)
                if path.startswith(dir_or_prefix):
                    yield self.metadata(path)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        self.delete([path])  # ram:// would append
        return self._open(path, "wb", mime_type, compression_type)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        if not self.exists(path):
            raise BeamIOError(f"no file {path}")
        return self._open(path, "rb", mime_type, compression_type)

    def _open(self, path, mode, mime_type, compression_type):
        from apache_beam.io.filesystem import CompressedFile

        buffered = (io.BufferedReader if mode == "rb" else io.BufferedWriter)(_Stream(path, mode))
        kind = self._get_compression_type(path, compression_type)
        return buffered if kind == CompressionTypes.UNCOMPRESSED else CompressedFile(buffered, kind)

    def copy(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            tf.io.gfile.copy(source, target, overwrite=True)

    def rename(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            tf.io.gfile.makedirs(target.rpartition("/")[0])
            tf.io.gfile.rename(source, target, overwrite=True)

    def exists(self, path):
        return tf.io.gfile.exists(path)

    def size(self, path):
        return tf.io.gfile.stat(path).length

    def last_updated(self, path):
        return MODIFIED

    def checksum(self, path):
        return str(self.size(path))

    def metadata(self, path):
        return FileMetadata(path, self.size(path), self.last_updated(path))

    def delete(self, paths):
        for path in paths:
            if tf.io.gfile.isdir(path):
                _rmtree(path)
            elif tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)


_gfile = types.SimpleNamespace(rename=tf.io.gfile.rename, listdir=tf.io.gfile.listdir, rmtree=tf.io.gfile.rmtree)


def _listdir(path: str) -> list[str]:
    """As in tf.io.gfile, which for `assets` of ram:// also lists `assets.extra`."""
    names = _gfile.listdir(path)
    return [name for name in names if tf.io.gfile.exists(f"{path.rstrip('/')}/{name}")] if _in_memory(path) else names


def _walk(top: str, **kwargs: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    names = _listdir(top) if tf.io.gfile.isdir(top) else []
    paths = {name.rstrip("/"): f"{top.rstrip('/')}/{name}".rstrip("/") for name in names}
    folders = [name for name, path in paths.items() if tf.io.gfile.isdir(path)]
    yield top, folders, [name for name in paths if name not in folders]
    for name in folders:
        yield from _walk(paths[name])


def _rename(source: str, target: str, overwrite: bool = False) -> None:
    """As in tf.io.gfile, which for a folder of ram:// loses the files in it."""
    if not _in_memory(source) or not tf.io.gfile.isdir(source):
        _gfile.rename(source, target, overwrite)
        return
    for name in files_below(source):
        moved = f"{target}/{name}"
        tf.io.gfile.makedirs(moved.rpartition("/")[0])
        _gfile.rename(f"{source}/{name}", moved, overwrite)
    _rmtree(source)


def _rmtree(path: str) -> None:
    if not _in_memory(path):
        _gfile.rmtree(path)
        return
    folders = []
    for folder, _, names in _walk(path):
        folders.append(folder)
        for name in names:
            tf.io.gfile.remove(f"{folder}/{name}")
    for folder in reversed(folders):
        _gfile.rmtree(folder)


def _in_memory(path: str) -> bool:
    return str(path).startswith("ram://")


@pytest.fixture
def memory_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ram:// usable in this process."""
    for name, function in (("listdir", _listdir), ("walk", _walk), ("rename", _rename), ("rmtree", _rmtree)):
        monkeypatch.setattr(tf.io.gfile, name, function)


def files_below(root: str) -> list[str]:
    """The names of all files, relative to `root`."""
    return sorted(f"{folder}/{name}".removeprefix(f"{root}/") for folder, _, names in _walk(root) for name in names)

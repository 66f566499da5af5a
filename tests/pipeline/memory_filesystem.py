"""Addresses ram://, TensorFlow's filesystem in the memory of this process, for Beam: what a bucket is to a cluster."""

import io
import re

import tensorflow as tf
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem


class _Stream(io.RawIOBase):
    def __init__(self, path: str, mode: str):
        self._file = tf.io.gfile.GFile(path, mode)
        self.mode = mode
        self._reads = mode == "rb"
        self._written = 0

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
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._file.size()}[whence]
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
        folder = dir_or_prefix.rstrip("/") if tf.io.gfile.isdir(dir_or_prefix) else dir_or_prefix.rpartition("/")[0]
        for directory, _, names in tf.io.gfile.walk(folder):
            for name in names:
                path = self.join(directory, name)
                if path.startswith(dir_or_prefix):
                    yield self.metadata(path)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        tf.io.gfile.makedirs(path.rpartition("/")[0])
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
        return tf.io.gfile.stat(path).mtime_nsec / 1e9

    def checksum(self, path):
        return str(self.size(path))

    def metadata(self, path):
        return FileMetadata(path, self.size(path), self.last_updated(path))

    def delete(self, paths):
        for path in paths:
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            elif tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)


def files_below(root: str) -> list[str]:
    """The names of all files, relative to `root`."""
    return sorted(
        re.sub("^/", "", f"{folder}/{name}".removeprefix(root))
        for folder, _, names in tf.io.gfile.walk(root)
        for name in names
    )

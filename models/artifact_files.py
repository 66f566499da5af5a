"""Files of artifacts, whose folders are local or have an address such as gs://bucket/folder.

Whatever reads or writes an artifact opens its files here: addresses go to Beam's filesystems, as do the files that
Beam's own transforms read and write; plain paths go to Python. Beam is loaded with the first address.
"""

import builtins
import contextlib
import glob
import gzip as gzip_format
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

Path = str | os.PathLike[str]


class FileState(NamedTuple):
    """Modification time and size of a file, by which a change is noticed.

    Attributes:
        modified: Unix seconds.
        size: bytes.
    """

    modified: float
    size: int


def is_address(path: Path) -> bool:
    """Whether a path has a scheme, as gs://, s3:// and hdfs:// have."""
    return "://" in os.fspath(path)


def _beam() -> Any:
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _uncompressed() -> str:
    from apache_beam.io.filesystem import CompressionTypes

    return CompressionTypes.UNCOMPRESSED


def open(path: Path, mode: Literal["r", "w", "rb", "wb"] = "r") -> Any:
    """Opens a file as the built-in function does: bytes as they are stored, or text in UTF-8.

    Raises:
        OSError: the file cannot be opened.
    """
    if not is_address(path):
        return builtins.open(path, mode, encoding=None if "b" in mode else "utf-8")
    # By default Beam unpacks and packs according to the suffix of the name.
    make = _beam().open if "r" in mode else _beam().create
    stream = make(os.fspath(path), compression_type=_uncompressed())
    return stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8")


@contextlib.contextmanager
def gzip(path: Path, mode: Literal["rt", "wt", "rb"]) -> Iterator[Any]:
    """The unpacked content of a gzip file; text is in UTF-8."""
    with (
        open(path, "wb" if "w" in mode else "rb") as packed,
        gzip_format.open(packed, mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Any]:
    """A binary file to write and to seek in, which takes its name once it is complete."""
    if is_address(path):
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with open(path, "wb") as target:
                shutil.copyfileobj(file, target)
        return
    unfinished = f"{os.fspath(path)}.unfinished"
    with builtins.open(unfinished, "wb") as file:
        yield file
    os.replace(unfinished, path)


def make_folder(path: Path) -> None:
    """Makes a local folder and those above it; at an address, writing a file makes its folders."""
    if not is_address(path):
        os.makedirs(path, exist_ok=True)


def exists(path: Path) -> bool:
    """Whether there is such a file."""
    return _beam().exists(os.fspath(path)) if is_address(path) else os.path.isfile(path)


def matches(pattern: str) -> list[str]:
    """The files that match a glob, sorted. glob.escape makes a pattern of a folder's name."""
    if not is_address(pattern):
        return sorted(glob.glob(pattern))
    return sorted(found.path for found in _beam().match([pattern])[0].metadata_list)


def state(path: Path) -> FileState:
    """Returns when a file was last modified, and its size.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_address(path):
        status = os.stat(path)
        return FileState(status.st_mtime, status.st_size)
    found = _beam().match([os.fspath(path)])[0].metadata_list
    if not found:
        raise FileNotFoundError(os.fspath(path))
    return FileState(found[0].last_updated_in_seconds, found[0].size_in_bytes)


@contextlib.contextmanager
def local_folder(path: str) -> Iterator[str]:
    """A folder for a program that writes only local files: `path`, or a temporary folder if `path` is an address."""
    if is_address(path):
        with tempfile.TemporaryDirectory() as directory:
            yield directory
    else:
        yield path

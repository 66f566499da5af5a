"""The versions of a pushed model on disk, and which of them may go."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import time
import urllib.request
from collections.abc import Iterable, Iterator

from sllmr.models.errors import UserError

SERVED_VERSIONS = 2
"""How many of the newest versions deploy/models.config serves."""


def versions(directory: pathlib.Path) -> list[pathlib.Path]:
    """The numbered folders of a served model, oldest first; none where the folder is missing."""
    paths = [path for path in directory.glob("*") if path.name.isdigit()] if directory.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name))


def newest_version(directory: pathlib.Path) -> pathlib.Path | None:
    """The highest numbered folder of a served model; None without one."""
    found = versions(directory)
    return found[-1] if found else None


def model_card(version: pathlib.Path) -> pathlib.Path:
    """The file of a version's model card, beside its folder."""
    return version.with_name(f"{version.name}.md")


_HIDDEN = re.compile(r"\.(removed-)?\d+")


@contextlib.contextmanager
def _changing(directory: pathlib.Path) -> Iterator[None]:
    """Lets one command at a time change the versions, and first removes hidden folders that killed commands left.

    The kernel frees the lock of a killed process, so a hidden folder belongs to nobody once this process has the lock.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for path in directory.iterdir():
            if _HIDDEN.fullmatch(path.name):
                shutil.rmtree(path)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_version(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A version that appears in one step, so that a server that polls never finds half of one.

    Yields:
        The newest version, and the hidden folder to be made, which is renamed to the next version at the end. An error
        or a signal removes it; if the process is killed, the next command does.

    Raises:
        UserError: the folder holds no version.
    """
    newest = newest_version(directory)
    if newest is None:
        raise no_version(directory)
    with _changing(directory):
        version = directory / str(max(int(time.time()), int(newest.name) + 1))
        hidden = version.with_name(f".{version.name}")
        try:
            yield newest, hidden
            hidden.rename(version)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            model_card(version).unlink(missing_ok=True)
            raise


def no_version(directory: pathlib.Path) -> UserError:
    """The error of a folder without versions."""
    return UserError(
        f"--model must be the folder of a pushed model, got {directory}, which holds no version; name a run's "
        "serving/<model>"
    )


def prune(directory: pathlib.Path, *, keep: int, loaded: Iterable[int] = ()) -> list[pathlib.Path]:
    """Removes all but the newest versions and those that a server has loaded, each with its model card.

    Args:
        directory: of the served model.
        keep: how many of the newest to keep, at least SERVED_VERSIONS.
        loaded: versions to keep besides, see `loaded_versions`.

    Returns:
        What was removed, oldest first.

    Raises:
        UserError: `keep` is too small, or the folder holds no version.
    """
    if keep < SERVED_VERSIONS:
        raise UserError(
            f"--keep must be at least {SERVED_VERSIONS}, got {keep}; a server of deploy/models.config serves as many "
            "of the newest versions"
        )
    found = versions(directory)
    if not found:
        raise no_version(directory)
    in_use = set(loaded)
    with _changing(directory):
        removed = [path for path in found[:-keep] if int(path.name) not in in_use]
        for path in removed:
            # Out of the way in one step, so that a server that polls never finds half a version.
            hidden = path.with_name(f".removed-{path.name}")
            path.rename(hidden)
            shutil.rmtree(hidden)
            model_card(path).unlink(missing_ok=True)
    return removed


def loaded_versions(model_url: str, timeout_s: float = 10.0) -> set[int]:
    """The versions that TF Serving has not unloaded.

    Args:
        model_url: such as http://localhost:8501/v1/models/ranker.
        timeout_s: of the request.

    Raises:
        UserError: the server does not answer, or not as TF Serving does.
    """
    try:
        with urllib.request.urlopen(model_url, timeout=timeout_s) as response:
            statuses = json.load(response)["model_version_status"]
        return {int(status["version"]) for status in statuses if status["state"] != "END"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "--server must be the address of a model of TF Serving, such as http://localhost:8501/v1/models/ranker, "
            f"got {model_url}, which does not say its versions: {error}; nothing was removed"
        ) from None

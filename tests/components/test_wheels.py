import hashlib
import zipfile

import pytest

from sllmr.components.wheels import FetchError, fetch_wheel, read_member


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and nothing else; returns the hash of its only wheel."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "planted_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("planted_data/table.txt", "content")
        archive.writestr(
            "planted_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: planted-data\nVersion: 1.0\n"
        )
        archive.writestr(
            "planted_data-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("planted_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_pinned_wheel_is_fetched_once_and_then_comes_from_the_cache(index, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    wheel = fetch_wheel("planted-data==1.0", index, cache)
    assert read_member(wheel, "planted_data/table.txt") == b"content"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert fetch_wheel("planted-data==1.0", index, cache) == wheel
    assert list(cache.iterdir()) == [wheel]


@pytest.mark.slow
def test_a_damaged_cache_entry_is_fetched_again(index, tmp_path):
    wheel = fetch_wheel("planted-data==1.0", index, tmp_path)
    wheel.write_bytes(b"damaged")
    assert read_member(fetch_wheel("planted-data==1.0", index, tmp_path), "planted_data/table.txt") == b"content"


@pytest.mark.slow
def test_a_wheel_with_another_hash_is_refused_and_not_kept(index, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(FetchError, match=f"must have SHA-256 {'0' * 64}, got {index}"):
        fetch_wheel("planted-data==1.0", "0" * 64, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_a_wheel_that_pip_cannot_find_gives_its_reason(index, tmp_path):
    with pytest.raises(FetchError, match=r"pip must be able to fetch planted-data==2.0.*check the network"):
        fetch_wheel("planted-data==2.0", index, tmp_path / "cache")


@pytest.mark.slow
def test_a_member_that_the_wheel_lacks_is_named(index, tmp_path):
    wheel = fetch_wheel("planted-data==1.0", index, tmp_path)
    with pytest.raises(FetchError, match=r"must hold planted_data/other.txt"):
        read_member(wheel, "planted_data/other.txt")

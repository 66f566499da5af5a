"""A model is pushed once."""

import pytest
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from sllmr.pipeline.pusher import Executor, same_files


@pytest.fixture
def push(tmp_path):
    """Pushes a model with this content, blessed or not; returns the served versions."""
    served = tmp_path / "serving"
    destination = pusher_pb2.PushDestination()
    destination.filesystem.base_directory = str(served)
    calls = []

    def run(content: str, blessed: bool = True) -> list[str]:
        calls.append(content)
        folder = tmp_path / f"run{len(calls)}"
        model, blessing = standard_artifacts.Model(), standard_artifacts.ModelBlessing()
        pushed = standard_artifacts.PushedModel()
        model.uri, blessing.uri, pushed.uri = (str(folder / name) for name in ("model", "blessing", "pushed"))
        (folder / "model" / "Format-Serving" / "variables").mkdir(parents=True)
        (folder / "model" / "Format-Serving" / "saved_model.pb").write_text("graph")
        (folder / "model" / "Format-Serving" / "variables" / "data").write_text(content)
        blessing.set_int_custom_property("blessed", int(blessed))
        (folder / "blessing").mkdir()
        (folder / "blessing" / ("BLESSED" if blessed else "NOT_BLESSED")).write_text("")
        executor = Executor()
        executor.Do(
            {"model": [model], "model_blessing": [blessing]},
            {"pushed_model": [pushed]},
            {"push_destination": proto_utils.proto_to_json(destination)},
        )
        for version in served.iterdir() if served.exists() else ():  # TFX counts in seconds
            if len(version.name) > 5:
                version.rename(served / str(1000 + len(calls)))
        return sorted(path.name for path in served.iterdir()) if served.exists() else []

    return run


def test_the_same_model_is_pushed_once(push):
    assert push("weights") == push("weights") == ["1001"]


def test_another_model_is_another_version(push):
    assert push("weights") == ["1001"]
    assert push("other weights") == ["1001", "1002"]


def test_a_model_that_is_not_blessed_is_not_pushed(push):
    assert push("weights", blessed=False) == []


def test_a_missing_file_makes_two_models_different(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_text("x")
    assert same_files(str(tmp_path / "a"), str(tmp_path / "b"))
    (tmp_path / "a" / "variables").write_text("x")
    assert not same_files(str(tmp_path / "a"), str(tmp_path / "b"))

"""A folder of earlier runs: what is gone is computed again, and what cannot be compared is said."""

import io
import pathlib

import pytest
from ml_metadata import proto
from ml_metadata.metadata_store import MetadataStore
from rich.console import Console

from sllmr.pipeline.folder_lock import FolderError
from sllmr.pipeline.run_folder import ARTIFACTS_DIRECTORY, METADATA_FILE, prepare


def store_of(folder: pathlib.Path) -> MetadataStore:
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(folder / METADATA_FILE)
    connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    return MetadataStore(connection)


@pytest.fixture
def used(tmp_path):
    """A folder with a Model and an empty PushedModel of the pipeline sllmr-shop."""
    store = store_of(tmp_path)
    store.put_contexts(
        [proto.Context(type_id=store.put_context_type(proto.ContextType(name="pipeline")), name="sllmr-shop")]
    )
    for name in ("Model", "PushedModel"):
        folder = tmp_path / ARTIFACTS_DIRECTORY / name
        folder.mkdir(parents=True)
        kind = store.put_artifact_type(proto.ArtifactType(name=name))
        store.put_artifacts([proto.Artifact(type_id=kind, uri=str(folder), state=proto.Artifact.LIVE)])
    (tmp_path / ARTIFACTS_DIRECTORY / "Model" / "saved_model.pb").write_text("model")
    return tmp_path


def said_by(folder: pathlib.Path, name: str = "sllmr-shop") -> str:
    terminal = io.StringIO()
    prepare(folder, name, Console(file=terminal, width=500))
    return terminal.getvalue()


def states(folder: pathlib.Path) -> dict[str, bool]:
    """By type, whether the record holds the artifact for live."""
    store = store_of(folder)
    return {
        kind.name: artifact.state == proto.Artifact.LIVE
        for kind in store.get_artifact_types()
        for artifact in store.get_artifacts_by_type(kind.name)
    }


def test_a_new_folder_and_an_intact_one_need_nothing(used, tmp_path_factory):
    assert said_by(tmp_path_factory.mktemp("new")) == ""
    assert said_by(used) == ""
    assert states(used) == {"Model": True, "PushedModel": True}


@pytest.mark.parametrize("removed", ["Model", "Model/saved_model.pb"])
def test_what_is_gone_counts_as_deleted_once(used, removed):
    path = used / ARTIFACTS_DIRECTORY / removed
    if path.is_dir():
        (path / "saved_model.pb").unlink()
        path.rmdir()
    else:
        path.unlink()
    assert "1 results of earlier runs are gone" in said_by(used)
    assert states(used) == {"Model": False, "PushedModel": True}
    assert said_by(used) == ""


def test_another_pipeline_in_the_same_folder_is_said(used):
    assert "had another name or other data.sizes" in said_by(used, "sllmr-shop-h7-c4")


@pytest.mark.parametrize("content", [None, b"", b"this is no database " * 100])
def test_results_without_their_record_are_refused_with_what_to_remove(used, content):
    record = used / METADATA_FILE
    record.unlink()
    if content is not None:
        record.write_bytes(content)
    with pytest.raises(FolderError, match=f"remove .*{ARTIFACTS_DIRECTORY}"):
        said_by(used)

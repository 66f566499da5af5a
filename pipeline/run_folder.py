"""Prepares a folder that earlier runs have used: finds what is gone, and says what is not compared with."""

import os
import pathlib

from ml_metadata import errors, proto
from ml_metadata.metadata_store import MetadataStore
from rich.console import Console

from sllmr.pipeline.folder_lock import FolderError

METADATA_FILE = "metadata.sqlite"
ARTIFACTS_DIRECTORY = "artifacts"

_NEVER_EMPTY = ("Examples", "Model", "TransformGraph")
"""Types of artifacts whose folder holds files; others may be empty, as where nothing was pushed."""


def prepare(output: pathlib.Path, pipeline_name: str, console: Console) -> None:
    """Makes the record of earlier runs fit what is left of them, so that TFX reruns what is gone.

    Args:
        output: the run's folder, held by this process.
        pipeline_name: of the run that is about to start.
        console: told what is gone and what is not compared with.

    Raises:
        FolderError: the record is gone or damaged while results are there.
    """
    record, artifacts = output / METADATA_FILE, output / ARTIFACTS_DIRECTORY
    if not record.exists() or not record.stat().st_size:
        if artifacts.is_dir() and any(artifacts.iterdir()):
            raise FolderError(
                f"{artifacts} holds results of earlier runs, but their record {record} is gone; remove {artifacts} or"
                " name another --output"
            )
        return
    try:
        store = _open(record)
        gone = _mark_deleted(store)
        pipelines = [context.name for context in store.get_contexts_by_type("pipeline")]
    except (errors.StatusError, RuntimeError) as error:
        raise FolderError(
            f"{record}, the record of earlier runs, cannot be read: {error}; remove it and {artifacts}, or name another"
            " --output"
        ) from None
    if gone:
        console.print(
            f"{gone} results of earlier runs are gone from {artifacts}: their steps run again, and a blessed model"
            " among them is not compared with",
            style="yellow",
            soft_wrap=True,
        )
    elif pipelines and pipeline_name not in pipelines:
        console.print(
            f"The runs in {output} had another name or other data.sizes: every step runs again, and their blessed model"
            " is not compared with",
            style="yellow",
            soft_wrap=True,
        )


def _open(record: pathlib.Path) -> MetadataStore:
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(record)
    connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE
    return MetadataStore(connection)


def _mark_deleted(store: MetadataStore) -> int:
    """Marks artifacts whose folders are gone as deleted; returns how many."""
    types = {kind.id: kind.name for kind in store.get_artifact_types()}
    gone = []
    for artifact in store.get_artifacts():
        if artifact.state == proto.Artifact.LIVE and _is_gone(artifact.uri, types[artifact.type_id]):
            artifact.state = proto.Artifact.DELETED
            gone.append(artifact)
    if gone:
        store.put_artifacts(gone)
    return len(gone)


def _is_gone(uri: str, kind: str) -> bool:
    if not os.path.exists(uri):
        return True
    return kind in _NEVER_EMPTY and os.path.isdir(uri) and not any(files for _, _, files in os.walk(uri))

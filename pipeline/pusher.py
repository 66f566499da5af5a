"""Pushes a blessed model unless it is the one that was pushed last."""

import logging
import os
import pathlib
from typing import Any

from tfx import types
from tfx.components.pusher import component, executor
from tfx.dsl.components.base import executor_spec
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from sllmr.models import artifact_files
from sllmr.pipeline.served_versions import newest_version

_log = logging.getLogger(__name__)


class Executor(executor.Executor):
    """TFX's Pusher, which pushes nothing if the newest version that is served has the same files.

    TFX runs Pusher again when a rerun of Evaluator blesses the same model once more.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See base class."""
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        served = newest_version(pathlib.Path(destination.filesystem.base_directory))
        model = self.GetModelPath(input_dict)
        if served is None or not self.CheckBlessing(input_dict) or not same_files(model, str(served)):
            super().Do(input_dict, output_dict, exec_properties)
            return
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        io_utils.copy_dir(model, pushed.uri)
        self._MarkPushed(pushed, pushed_destination=str(served), pushed_version=served.name)
        _log.info("this model is served already as version %s: nothing was pushed", served.name)


class Pusher(component.Pusher):
    """As TFX's; see Executor."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)


def same_files(one: str, other: str) -> bool:
    """Whether two folders, local or at an address, hold the same files with the same content."""
    names = [
        sorted(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, files in fileio.walk(root)
            for name in files
        )
        for root in (one, other)
    ]
    return names[0] == names[1] and all(
        _content(os.path.join(one, name)) == _content(os.path.join(other, name)) for name in names[0]
    )


def _content(path: str) -> bytes:
    with artifact_files.open(path, "rb") as file:
        return file.read()

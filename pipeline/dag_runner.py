"""Runs the steps of a pipeline one after the other in this process, on TFX's LocalDagRunner."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from sllmr.pipeline.beam_config import PLUGIN, BeamConfig

_OPTIONS_FILE = "PIPELINE_OPTIONS_FILE"
"""Environment variable that Beam's worker processes read."""


class DagRunner(LocalDagRunner):
    """LocalDagRunner whose Beam workers all import `sllmr.components`.

    Attributes:
        ran: whether a pipeline was run; TFX's command line replaces `run` while it only registers one.
    """

    def __init__(self, beam: BeamConfig):
        super().__init__()
        self._beam = beam
        self.ran = False

    def run_with_ir(self, *args: Any, **kwargs: Any) -> None:
        self.ran = True
        with plugin_in_worker_processes(self._beam):
            super().run_with_ir(*args, **kwargs)


@contextlib.contextmanager
def plugin_in_worker_processes(beam: BeamConfig) -> Iterator[None]:
    """Gives `--beam_plugins` to the worker processes of Beam's local runner, which passes no options on to them.

    Without the plugin, TensorFlow Data Validation cannot be imported there (components.compatibility).
    """
    if not beam.starts_local_processes:
        yield
        return
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "options.json"
        file.write_text(json.dumps({"beam_plugins": [PLUGIN]}), encoding="utf-8")
        os.environ[_OPTIONS_FILE] = str(file)
        try:
            yield
        finally:
            del os.environ[_OPTIONS_FILE]

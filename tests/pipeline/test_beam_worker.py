"""The worker that Beam's pool starts takes the pipeline's options from its runner and answers to it."""

import concurrent.futures
import os
import pathlib
import queue
import subprocess
import sys

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)

WORKER = pathlib.Path(sys.executable).with_name("sllmr-beam-worker")

PLUGIN = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
"""


class Runner(
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
    beam_fn_api_pb2_grpc.BeamFnControlServicer,
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,
):
    """A runner without work: it tells the options of its pipeline, and hangs up on the worker that reports."""

    def __init__(self) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.reported: queue.Queue[str] = queue.Queue()

    def GetProvisionInfo(self, request, context):
        self.asked.put(dict(context.invocation_metadata())["worker_id"])
        response = beam_provision_api_pb2.GetProvisionInfoResponse()
        response.info.pipeline_options.update({"beam:option:beam_plugins:v1": ["a_plugin"]})
        return response

    def Control(self, request_iterator, context):
        self.reported.put(dict(context.invocation_metadata())["worker_id"])
        return iter(())

    def Logging(self, request_iterator, context):
        for _ in request_iterator:
            pass
        return iter(())


@pytest.mark.slow
def test_a_worker_imports_the_plugins_of_the_pipeline_and_reports_to_its_runner(tmp_path):
    (tmp_path / "a_plugin.py").write_text(PLUGIN)
    runner, server = Runner(), grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(runner, server)
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(runner, server)
    beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(runner, server)
    address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        endpoints = [f"--{name}_endpoint={address}" for name in ("logging", "artifact", "provision", "control")]
        done = subprocess.run(
            [WORKER, "--id=7-1", *endpoints],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.stop(None).wait()
    assert done.returncode == 0, done.stderr
    assert [runner.asked.get_nowait(), runner.reported.get_nowait()] == ["7-1", "7-1"]
    assert (tmp_path / "imported").exists()

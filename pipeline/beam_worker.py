"""One Python worker of Flink or Spark, started by Beam's worker pool: its `--container_executable`.

Without it the pool starts `python -c ...`, whichever Python comes first on PATH, and that worker imports neither the
`--beam_plugins` of the pipeline nor applies its other options; TensorFlow Data Validation then fails in it.
"""

import argparse
import os
from collections.abc import Sequence

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

TIMEOUT_S = 60
"""Seconds in which the runner must answer with the pipeline's options."""


def main(argv: Sequence[str] | None = None) -> None:
    """Executes bundles until the runner hangs up.

    Args:
        argv: the command line that Beam's container contract prescribes: this worker's id and the runner's endpoints.
    """
    parser = argparse.ArgumentParser(prog="sllmr-beam-worker", description=__doc__)
    parser.add_argument("--id", required=True, help="of this worker")
    for endpoint in ("logging", "provision", "control"):
        parser.add_argument(f"--{endpoint}_endpoint", required=True, help="HOST:PORT of the runner")
    arguments, _ = parser.parse_known_args(argv)
    with grpc.insecure_channel(arguments.provision_endpoint) as channel:
        info = (
            beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
            .GetProvisionInfo(
                beam_provision_api_pb2.GetProvisionInfoRequest(),
                metadata=[("worker_id", arguments.id)],
                timeout=TIMEOUT_S,
                wait_for_ready=True,
            )
            .info
        )
    # Beam's worker reads the rest of the contract from its environment.
    os.environ.update(
        WORKER_ID=arguments.id,
        PIPELINE_OPTIONS=json_format.MessageToJson(info.pipeline_options),
        RUNNER_CAPABILITIES=" ".join(info.runner_capabilities),
        LOGGING_API_SERVICE_DESCRIPTOR=_descriptor(arguments.logging_endpoint),
        CONTROL_API_SERVICE_DESCRIPTOR=_descriptor(arguments.control_endpoint),
    )
    sdk_worker_main.main([])


def _descriptor(url: str) -> str:
    return text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url))

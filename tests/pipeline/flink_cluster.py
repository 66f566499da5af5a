"""Flink on this machine: Beam's job server with a cluster of two task slots for each job, and a pool of Python workers.

The three commands are those of docs/runners.md.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

SLOTS = 2
START_S = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flink:
    """A running job server.

    Attributes:
        job_endpoint: HOST:PORT of the job server.
        args: `beam.args` of a pipeline that runs there.
    """

    job_endpoint: str
    args: tuple[str, ...]

    def job_states(self) -> list[str]:
        """The state of every job that it was given, `DONE` of those that succeeded."""
        with grpc.insecure_channel(self.job_endpoint) as channel:
            jobs = beam_job_api_pb2_grpc.JobServiceStub(channel).GetJobs(beam_job_api_pb2.GetJobsRequest())
        return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in jobs.job_info]


@contextlib.contextmanager
def running_flink(directory: pathlib.Path) -> Iterator[Flink]:
    """Starts both servers, which log into `directory`, and stops them."""
    job_port, artifact_port, pool_port = _free_ports(3)
    jar = os.environ.get("FLINK_JOB_SERVER_JAR")
    assert jar, "FLINK_JOB_SERVER_JAR must name Beam's job server for Flink; run `make flink-test`, which sets it"
    job_server = [
        *("java", "-jar", jar, "--flink-master=[local]", f"--job-port={job_port}", f"--artifact-port={artifact_port}"),
        *("--expansion-port=-1", f"--artifacts-dir={directory / 'artifacts'}"),
    ]
    worker = pathlib.Path(sys.executable).with_name("sllmr-beam-worker")
    pool = [
        *(sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"),
        *(f"--service_port={pool_port}", f"--container_executable={worker}"),
    ]
    with _running(job_server, directory / "job-server.log"), _running(pool, directory / "pool.log"):
        for port in (job_port, pool_port):
            _wait_for(port)
        yield Flink(
            job_endpoint=f"localhost:{job_port}",
            args=(
                "--runner=FlinkRunner",
                f"--job_endpoint=localhost:{job_port}",
                f"--parallelism={SLOTS}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{pool_port}",
                "--environment_cache_millis=60000",
            ),
        )


@contextlib.contextmanager
def _running(command: Sequence[str], log_file: pathlib.Path) -> Iterator[None]:
    with open(log_file, "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()  # the pool ends its workers
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("localhost", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return

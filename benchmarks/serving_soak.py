"""Requests of concurrent clients while versions change under them.

    python -m benchmarks.serving_soak

A stand-in for TF Serving (tests/serving/server.py) serves a folder of versions in a process of its own, and polls it as
TF Serving does. Clients send `rank` over gRPC, each its next request when the last one is answered, while new versions
appear. A cell is one soak, with or without the replay of warm-up requests. A line holds the number of requests, how
many of them failed, and percentiles of their wall times: of all requests, and of those in flight between the start of a
load and a second after its end.
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results" / "serving_soak.jsonl"
_POLL_S, _AFTER_S = 0.2, 1.0


class Sent(NamedTuple):
    """One request: Unix seconds of its start, wall seconds, and the name of its error, or "" if it was answered."""

    at: float
    seconds: float
    error: str


class Load(NamedTuple):
    """One change of versions: Unix seconds of the start and the end of the load."""

    start: float
    end: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--changes", type=int, default=5, help="new versions of a soak")
    parser.add_argument("--seconds", type=float, default=8.0, help="between two changes")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--items", type=int, default=20_000, help="of the catalog")
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS, help="JSON lines")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--no-warm-up", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        serve(pathlib.Path(arguments.serve), warm_up=not arguments.no_warm_up)
        return
    import numpy as np

    from benchmarks.measurement import Results, versions
    from benchmarks.serving import Network

    results = Results(arguments.output)
    with tempfile.TemporaryDirectory() as directory:
        version = pathlib.Path(directory) / "version"
        for warm_up in (True, False):
            cell = {
                "backbone": "dcnv2",
                "warm_up": warm_up,
                **{name: getattr(arguments, name) for name in ("clients", "changes", "seconds", "candidates", "items")},
                "versions": versions("tensorflow", "tensorflow-serving-api", "grpcio"),
            }
            if results.holds(cell):
                continue
            if not version.exists():
                Network("dcnv2", arguments.items).export(version)
            items = np.random.default_rng(2).integers(0, arguments.items, 20 + arguments.candidates)
            ids = [f"item{number}" for number in items]
            sent, loads = soak(
                version,
                ids[:20],
                ids[20:],
                warm_up=warm_up,
                clients=arguments.clients,
                changes=arguments.changes,
                seconds=arguments.seconds,
            )
            load_average = {"load_average": round(os.getloadavg()[0], 2)}
            results.append(cell, summarize(sent, loads) | load_average)


def summarize(sent: Sequence[Sent], loads: Sequence[Load]) -> dict[str, Any]:
    """Counts, and percentiles in milliseconds of all requests and of those around a change."""
    import numpy as np

    near = [
        request
        for request in sent
        if any(request.at < load.end + _AFTER_S and request.at + request.seconds > load.start for load in loads)
    ]

    def percentiles(part: Sequence[Sent]) -> dict[str, float]:
        values = np.array([request.seconds for request in part]) * 1e3
        return {
            "p50_ms": round(float(np.quantile(values, 0.5)), 1),
            "p99_ms": round(float(np.quantile(values, 0.99)), 1),
            "longest_ms": round(float(values.max()), 1),
        }

    return {
        "requests": len(sent),
        "failed": sum(bool(request.error) for request in sent),
        "errors": sorted({request.error for request in sent if request.error}),
        "loads": len(loads),
        "load_s": round(float(np.mean([load.end - load.start for load in loads])), 2),
        "all": percentiles(sent),
        "at_a_change": {"requests": len(near), **percentiles(near)},
    }


def soak(
    version: pathlib.Path,
    history: Sequence[str],
    candidates: Sequence[str],
    *,
    warm_up: bool,
    clients: int,
    changes: int,
    seconds: float,
) -> tuple[list[Sent], list[Load]]:
    """Serves copies of a version, one after the other, to clients that never stop.

    Args:
        version: a SavedModel of ours.
        history, candidates: item ids of every request.
        warm_up: whether the server replays the warm-up requests of a version before it serves it.
        clients: threads that send.
        changes: new versions.
        seconds: between the end of a load and the next version.

    Returns:
        Every request, and every load but the first.
    """
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory)
        shutil.copytree(version, folder / "1")
        with _server(folder, warm_up=warm_up) as (address, loads):
            done = threading.Event()
            with concurrent.futures.ThreadPoolExecutor(clients) as pool:
                running = [pool.submit(_send, address, history, candidates, done) for _ in range(clients)]
                try:
                    for number in range(2, 2 + changes):
                        time.sleep(seconds)
                        shutil.copytree(version, folder / f".{number}")
                        (folder / f".{number}").rename(folder / str(number))
                        loads.read_one()
                    time.sleep(seconds)
                finally:
                    done.set()
                sent = [request for client in running for request in client.result()]
            return sent, loads.seen


def _send(address: str, history: Sequence[str], candidates: Sequence[str], done: threading.Event) -> list[Sent]:
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "ranker", "rank"
    for name, ids in (("history_item_ids", history), ("candidate_item_ids", candidates)):
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array([ids], object), dtype=tf.string))
    sent = []
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        while not done.is_set():
            at, start, error = time.time(), time.perf_counter(), ""
            try:
                order = tf.make_ndarray(stub.Predict(request, timeout=60.0).outputs["order"])
                if sorted(order[0].tolist()) != list(range(len(candidates))):
                    error = "wrong answer"
            except grpc.RpcError as failure:
                error = str(failure.code())
            sent.append(Sent(at, time.perf_counter() - start, error))
    return sent


class _Loads:
    """What the server says of its loads, read from its output."""

    def __init__(self, lines: Any):
        self._lines = lines
        self.seen: list[Load] = []

    def read_one(self) -> None:
        """Waits for the next load."""
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the server ended; its messages are above")
        self.seen.append(Load(*json.loads(line)))


@contextlib.contextmanager
def _server(folder: pathlib.Path, *, warm_up: bool) -> Iterator[tuple[str, _Loads]]:
    """Runs the stand-in in a process of its own; yields its gRPC address, and its loads after the first."""
    command = [sys.executable, "-m", "benchmarks.serving_soak", "--serve", str(folder)]
    # The process ends with its standard input, which Popen closes at the end of the block.
    with subprocess.Popen(
        command if warm_up else [*command, "--no-warm-up"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the server did not start; its messages are above")
        yield address, _Loads(process.stdout)


def serve(folder: pathlib.Path, *, warm_up: bool) -> None:
    """Serves the newest versions of a folder until standard input ends; prints the gRPC address, and each load."""
    from tests.serving.server import ModelServer

    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    with ModelServer("ranker", folder, warm_up=warm_up) as server:
        print(server.grpc_address, flush=True)
        while not ended.wait(_POLL_S):
            known, start = server.numbers, time.time()
            server.load_newest()
            if server.numbers != known:
                print(json.dumps([start, time.time()]), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()

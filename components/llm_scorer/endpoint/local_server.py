"""The bundled model behind an OpenAI-compatible server, in a process of its own.

    python -m sllmr.components.llm_scorer.endpoint.local_server --model-path FILE [--threads 2] [--slots 8]
        [--context 1024]

prints one line, its base URL, once /health answers, and lives until SIGTERM or the end of its standard input,
whichever comes first: the process that started it holds the other end of that pipe, so the server dies with
it even when it is killed with SIGKILL. A process of its own because the embedded server cannot be stopped
within one, and because Beam's workers should hold a URL and nothing else, as they do for a remote endpoint.
"""

import argparse
import contextlib
import ctypes
import http.client
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator

from sllmr.components.llm_scorer.errors import LlmError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0


class LocalServerError(LlmError):
    """The local LLM server did not start, or is not installed completely."""


@contextlib.contextmanager
def local_server(
    model_path: str,
    *,
    threads: int,
    slots: int,
    context: int,
    log_path: str,
    embeddings: bool = False,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[str]:
    """Runs the server around a block and stops it whatever happens.

    Args:
        model_path: the GGUF file.
        threads: CPU threads for all slots together.
        slots: requests that are decoded side by side.
        context: tokens a slot holds, prompt and answer.
        log_path: receives the server's own log.
        embeddings: whether it also answers /v1/embeddings, by the mean over a text's tokens.
        start_timeout_s: seconds until /health must answer.

    Yields:
        The base URL for an OpenAI client, ending in /v1.

    Raises:
        LocalServerError: it ended or did not answer in time; the message carries the end of its log.
    """
    command = [sys.executable, "-m", __name__, "--model-path", model_path]
    command += ["--threads", str(threads), "--slots", str(slots), "--context", str(context)]
    command += ["--embeddings"] if embeddings else []
    environment = {
        **os.environ,
        # Threads that spin while they wait for each other make the server several times slower on busy cores; threads
        # that sleep at once make it a quarter slower on idle ones. Microseconds of spinning cost little on both.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    os.makedirs(os.path.dirname(os.path.abspath(log_path)), exist_ok=True)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
        try:
            yield _first_line(process, log_path, start_timeout_s)
        finally:
            _stop(process)


def _first_line(process: subprocess.Popen, log_path: str, timeout_s: float) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda out: lines.put(out.readline()), args=(process.stdout,), daemon=True).start()
    try:
        url = lines.get(timeout=timeout_s).strip()
        reason = "ended before it was ready"
    except queue.Empty:
        url, reason = "", f"was not ready within {timeout_s:g} s"
    if url:
        return url
    with open(log_path, encoding="utf-8", errors="replace") as log:
        tail = "".join(log.readlines()[-5:]).strip()
    raise LocalServerError(f"the local LLM server {reason}; its log {log_path} ends with: {tail}")


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def check_runtime() -> None:
    """Raises LocalServerError where the system library that the server needs is missing."""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        raise LocalServerError(
            "the local LLM needs the system library libgomp.so.1, which is missing; install it with "
            "`apt-get install libgomp1` (Debian, Ubuntu) or name another llm.base_url"
        ) from None


def main() -> None:
    """Serves the model of the command line until the process is ended; prints one line when it is ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--embeddings", action="store_true", help="also answer /v1/embeddings")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    args = parser.parse_args()

    # Ctrl-C reaches the whole foreground group; the starting process decides when the server ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # llama.cpp may write to stdout, which here carries one line only.
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        check_runtime()
    except LocalServerError as error:
        raise SystemExit(str(error)) from None
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model_path
    params.model_alias = {os.path.basename(args.model_path)}
    params.hostnames = ["127.0.0.1"]
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    params.kv_unified = False
    # By default a request takes over any idle slot that shares a tenth of its prompt, so contexts that have no more in
    # common than the instructions would push each other's histories out.
    params.slot_prompt_similarity = 0.5
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.n_gpu_layers = 0
    params.ui = False
    params.warmup = False
    if args.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # Saved prompt states would grow to gigabytes; the slots themselves hold the prefixes that are in use.
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    _await_health(server.listening_address)
    print(f"{server.listening_address}/v1", file=announce, flush=True)
    while sys.stdin.buffer.read(1 << 16):
        pass
    # The embedded server cannot be stopped in order while it answers; there is no state to lose.
    os._exit(0)


def _await_health(address: str) -> None:
    # http.client and not urllib, which would send this to the proxy that the environment may name.
    while True:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)


if __name__ == "__main__":
    main()

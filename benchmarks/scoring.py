"""How near the scorer comes to an endpoint's limit, and at what cost, beside a plain client and a peer in one run.

    python -m benchmarks.scoring [--requests 1000 10000 100000] [--clients sllmr sllmr_two_processes asyncio curator]

The endpoint is loopback_server.py: 200 ms an answer, at most 64 requests in flight, so 320 answers a second at best.
One cell is one client and one number of listwise requests of ten candidates. results/scoring.jsonl gets a line for
each; cells that it already has are skipped. The peer is installed into an environment of its own under the work folder.

Figures of each cell:

    requests_per_s      answers over the time from the first request's arrival to the last answer, at the server
    fraction_of_limit   requests_per_s over the limit
    cores               CPU seconds of the client's process tree in that time, over that time
    cpu_s_per_1000      CPU seconds of that tree from start to end, planning and imports included
    peak_rss_mb         most resident memory of that tree
    rejected            requests that the server turned away with 429
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from benchmarks.measurement import Results, measure, versions
from benchmarks.scoring_clients import CLIENTS
from sllmr.components.catalog import Item, read_catalog, write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.messages import Candidate, Context
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import POPULAR
from sllmr.models import features
from sllmr.models.tf_examples import to_example

LATENCY_MS = 200
CONCURRENCY = 64
LIMIT_PER_S = CONCURRENCY / (LATENCY_MS / 1000)
CANDIDATES = 10
HISTORY = 10
ITEMS = 2000
CATEGORIES = ("Skin Care", "Hair Care", "Fragrance", "Makeup", "Tools & Accessories", "Bath & Body")
PEER = "bespokelabs-curator==0.1.31"
FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results" / "scoring.jsonl"


def write_input(directory: pathlib.Path, requests: int) -> None:
    """Writes a catalog, `requests` made-up train rows of as many users, and as many listwise requests."""
    if (directory / "size.json").exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    rng = random.Random(0)
    items = [
        Item(
            item_id=f"i{n}",
            title=f"Product number {n} of a made-up catalogue, {rng.choice(('50 ml', '100 ml', 'set of 2'))}",
            categories=tuple(rng.sample(CATEGORIES, 2)),
            train_count=rng.randrange(500),
            is_tail=n % 5 == 0,
        )
        for n in range(ITEMS)
    ]
    write_catalog(str(directory / "catalog"), items)
    sizes = features.FeatureSizes(history=HISTORY)
    row_features = features.row_features(sizes)
    with tf.io.TFRecordWriter(str(directory / "rows-0.tfrecord.gz"), "GZIP") as file:
        for user in range(requests):
            *history, chosen = rng.sample(items, HISTORY + 1)
            file.write(to_example(_row(user, history, chosen, sizes), row_features).SerializeToString())
    catalog = read_catalog(str(directory / "catalog"))
    strategy = create_strategy(LlmConfig(model="loopback", base_url="http://localhost/v1").resolve())
    with open(directory / "requests.jsonl", "w") as lines:
        for n in range(requests):
            drawn = rng.sample(items, HISTORY + CANDIDATES)
            context = Context(
                context_id=f"c{n}",
                history_item_ids=tuple(item.item_id for item in drawn[:HISTORY]),
                history_length=HISTORY,
                candidates=tuple(Candidate(item_id=item.item_id, role=POPULAR) for item in drawn[HISTORY:]),
            )
            (request,) = strategy.requests(context, catalog)
            lines.write(json.dumps({**request.body, "max_tokens": request.max_tokens}) + "\n")
    (directory / "size.json").write_text(json.dumps({"requests": requests, "candidates": CANDIDATES}))


def _row(user: int, history: list[Item], chosen: Item, sizes: features.FeatureSizes) -> dict[str, Any]:
    """A row as InteractionsExampleGen writes it; categories and brands, which the scorer does not read, are empty."""
    return {
        features.USER_ID: f"u{user}",
        features.HISTORY_ITEM_IDS: [item.item_id for item in history],
        features.HISTORY_CATEGORIES: [""] * (sizes.history * sizes.categories),
        features.HISTORY_BRANDS: [""] * sizes.history,
        features.HISTORY_LENGTH: sizes.history,
        features.ITEM_ID: chosen.item_id,
        features.ITEM_CATEGORIES: [""] * sizes.categories,
        features.ITEM_BRAND: "",
        features.ITEM_TRAIN_COUNT: chosen.train_count,
        features.IS_TAIL: int(chosen.is_tail),
        features.USER_TRAIN_COUNT: sizes.history + 1,
        features.POSITION: sizes.history + 1,
        features.IS_COLD: 0,
        features.LABEL: 1,
    }


def peer_python(work: pathlib.Path) -> str:
    """The interpreter of the peer's environment; makes the environment if it is missing."""
    directory = work / PEER.replace("==", "-")
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        print(f"installing {PEER} into {directory}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], check=True)
        (directory / "complete").touch()
    return str(python)


@contextlib.contextmanager
def loopback_server() -> Iterator[str]:
    """Runs the endpoint in a process of its own; yields its base URL."""
    command = [sys.executable, str(FOLDER / "loopback_server.py"), "--latency-ms", str(LATENCY_MS)]
    command += ["--concurrency", str(CONCURRENCY), "--candidates", str(CANDIDATES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def measure_cell(client: str, requests: int, work: pathlib.Path) -> dict[str, Any]:
    """Runs one client over a number of requests; returns its figures."""
    source, output = work / f"input-{requests}", work / f"output-{client}-{requests}"
    write_input(source, requests)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    python = peer_python(work) if client == "curator" else sys.executable
    with loopback_server() as url:
        command = [python, str(FOLDER / "scoring_clients.py"), client, "--url", url, "--input", str(source)]
        command += ["--output", str(output), "--concurrency", str(CONCURRENCY)]
        environment = {} if client == "curator" else {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        measured = measure(command, environment=environment, log=output / "log")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            url.removesuffix("/v1") + "/stats", timeout=10
        ) as response:
            server = json.load(response)
    reported = json.loads(measured.output.splitlines()[-1])
    if reported["answers"] != requests:
        raise RuntimeError(f"{client} must bring {requests} answers, got {reported['answers']}; see {output / 'log'}")
    shutil.rmtree(output)
    seconds = server["last_at"] - server["first_at"]
    rate = server["answered"] / seconds
    return {
        "requests_per_s": round(rate, 1),
        "fraction_of_limit": round(rate / LIMIT_PER_S, 4),
        "cores": round(measured.cpu_between(server["first_at"], server["last_at"]) / seconds, 3),
        "cpu_s_per_1000": round(measured.cpu_s / requests * 1000, 3),
        "peak_rss_mb": round(measured.peak_rss_mb),
        "peak_rss_mb_while_scoring": round(measured.peak_between(server["first_at"], server["last_at"])),
        "seconds": round(measured.seconds, 1),
        "answered": server["answered"],
        "rejected": server["rejected"],
        "most_in_flight": server["most_in_flight"],
        "server_cores": round(server["server_cpu_s"] / seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/benchmarks"))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    work = arguments.work.resolve()
    settings = {"latency_ms": LATENCY_MS, "concurrency": CONCURRENCY, "candidates": CANDIDATES}
    for requests in arguments.requests:
        for client in arguments.clients:
            used = {"peer": PEER} if client == "curator" else versions("openai")
            used |= versions("apache-beam") if client.startswith("sllmr") else {}
            cell = {"client": client, "requests": requests, **settings, "versions": used}
            if results.holds(cell):
                print(f"{client} over {requests} requests: already in {arguments.results}")
            else:
                results.append(cell, measure_cell(client, requests, work))


if __name__ == "__main__":
    main()

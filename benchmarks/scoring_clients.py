"""One client of the scoring benchmark, in a process of its own: see scoring.py, which starts it.

    python benchmarks/scoring_clients.py CLIENT --url URL --input DIR --output DIR --concurrency N

A client sends every request of the input once and writes every answer to a file. This is a script, not a module of a
package, because the peer's environment holds nothing of this project.
"""

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import pathlib


def run_sllmr(url: str, source: pathlib.Path, output: pathlib.Path, concurrency: int, processes: int = 1) -> None:
    """The scorer on Beam's local runner: chooses users and candidates from the rows, queries, writes the score table.

    Several worker processes divide the requests that may be in flight evenly among them.
    """
    import functools

    import sllmr.pipeline  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

    from sllmr.pipeline.beam_config import BeamConfig  # isort: skip

    import apache_beam as beam

    from sllmr.components.llm_scorer.config import LlmConfig
    from sllmr.components.llm_scorer.jobs.scoring import score
    from sllmr.components.llm_scorer.jobs.workspace import Workspace

    size = json.loads((source / "size.json").read_text())
    workers = ("--direct_running_mode=multi_processing", f"--direct_num_workers={processes}") if processes > 1 else ()
    for directory in ("work", "scores"):
        (output / directory).mkdir()
    workspace = Workspace(
        config=LlmConfig.model_validate(
            {
                "model": "loopback",
                "base_url": url,
                "api_key_env": "SLLMR_BENCHMARK_KEY",
                "concurrency": concurrency // processes,
                "budget": {"pairs": size["requests"] * size["candidates"]},
                "candidates": {"per_context": size["candidates"]},
            }
        ),
        catalog_directory=str(source / "catalog"),
        cache_directory=str(output / "cache"),
        work_directory=str(output / "work"),
        output_directory=str(output / "scores"),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(BeamConfig(args=workers).pipeline_args)),
    )
    book = score(workspace, beam.io.ReadFromTFRecord(str(source / "rows-*.tfrecord.gz")))
    print(json.dumps({"answers": book.requests.sent, "scored_pairs": book.scored}))


def run_two_processes(url: str, source: pathlib.Path, output: pathlib.Path, concurrency: int) -> None:
    """run_sllmr in two worker processes."""
    run_sllmr(url, source, output, concurrency, processes=2)


def run_asyncio(url: str, source: pathlib.Path, output: pathlib.Path, concurrency: int) -> None:
    """The plainest fast client: `concurrency` coroutines over one AsyncOpenAI; no cache, no ledger, no resume."""
    print(json.dumps({"answers": asyncio.run(_ask_all(url, source, output, concurrency))}))


async def _ask_all(url: str, source: pathlib.Path, output: pathlib.Path, concurrency: int) -> int:
    import openai

    # As in a usual script, a semaphore limits the tasks; one task for each request would keep all requests in memory.
    in_flight = asyncio.Semaphore(concurrency)
    answers = 0
    with open(source / "requests.jsonl") as lines, open(output / "answers.jsonl", "w") as file:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client, asyncio.TaskGroup() as tasks:

            async def ask(body: dict) -> None:
                nonlocal answers
                try:
                    completion = await client.chat.completions.create(model="loopback", **body)
                finally:
                    in_flight.release()
                answers += 1
                file.write(completion.model_dump_json() + "\n")

            for line in lines:
                await in_flight.acquire()
                tasks.create_task(ask(json.loads(line)))
    return answers


def run_curator(url: str, source: pathlib.Path, output: pathlib.Path, concurrency: int) -> None:
    """bespokelabs-curator: an LLM over a dataset, with its own cache of answers, retries and progress."""
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    os.environ.update(
        TELEMETRY_ENABLED="0",
        HF_HUB_OFFLINE="1",
        CURATOR_CACHE_DIR=str(output / "cache"),
        # It counts tokens by a vocabulary that it would download; a package that it depends on carries the same file.
        TIKTOKEN_CACHE_DIR=str(pathlib.Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"),
    )
    from bespokelabs import curator

    class Scorer(curator.LLM):
        def prompt(self, row: dict) -> list[dict]:
            return row["messages"]

        def parse(self, row: dict, response: str) -> dict:
            return {"response": response}

    with open(source / "requests.jsonl") as lines:
        rows = [{"messages": json.loads(line)["messages"]} for line in lines]
    scorer = Scorer(
        model_name="gpt-4o-mini",
        backend="openai",
        backend_params={
            "base_url": url,
            "api_key": "none",
            "max_concurrent_requests": concurrency,
            # Too high to limit anything.
            "max_requests_per_minute": 10**6,
            "max_tokens_per_minute": 10**12,
        },
    )
    answers = scorer(rows)
    dataset = getattr(answers, "dataset", answers)
    with open(output / "answers.jsonl", "w") as file:
        for row in itertools.islice(dataset, None):
            file.write(json.dumps(row["response"]) + "\n")
    print(json.dumps({"answers": len(dataset)}))


CLIENTS = {"asyncio": run_asyncio, "curator": run_curator, "sllmr": run_sllmr, "sllmr_two_processes": run_two_processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--input", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--concurrency", required=True, type=int)
    arguments = parser.parse_args()
    CLIENTS[arguments.client](arguments.url, arguments.input, arguments.output, arguments.concurrency)


if __name__ == "__main__":
    main()

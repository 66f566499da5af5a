"""Models behind the local server: how fast they answer with and without prefix reuse, and what they know.

    python -m benchmarks.local_server [--models smollm2-135m-instruct-q4_1] [--strategies title_likelihood yes_no]
        [--parts speed skill] [--users 150] [--contexts 20] [--accept-license]

Over MovieLens-100K as configs/quickstart.yaml splits it, train rows only. results/local_server.jsonl gets a line for
each cell; cells that it already has are skipped.

speed: sends the requests of `--contexts` contexts of ten candidates, each context in order in one thread, as the scorer
does: once unchanged, so that a context's requests share the beginning of the prompt, and once with a different number
before each prompt, so that none do. The figures are pairs and requests per second, the server's CPU seconds per request
and per pair, and the fraction of prompt tokens that it read from its cache.

skill: takes `--users` users with one train row each, and for each row the target item, an item drawn uniformly and one
about as popular as the target item (the scorer's own draw of a negative), neither in that user's train rows. The figure
is how often the target item scores higher than the other; a tie counts half. Half-widths are 1.96 standard errors.

Gemma is not trained to follow instructions, so measure it with --strategies title_likelihood alone.
"""

import argparse
import dataclasses
import itertools
import math
import os
import pathlib
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sllmr.pipeline  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

import apache_beam as beam  # isort: skip
import tensorflow as tf

from benchmarks.measurement import Results, tree_sample, versions
from sllmr.components.catalog import Item, read_catalog
from sllmr.components.interactions_example_gen import rows
from sllmr.components.interactions_example_gen.transforms import PrepareInteractions, WriteCatalog
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import TITLE_LIKELIHOOD, YES_NO, CandidateConfig, LlmConfig
from sllmr.components.llm_scorer.contexts.candidates import OTHER, CandidatePools, PositiveRow
from sllmr.components.llm_scorer.contexts.transforms import ParsePositiveRows
from sllmr.components.llm_scorer.endpoint.client import LlmClient
from sllmr.components.llm_scorer.endpoint.local_model import fetch_local_model
from sllmr.components.llm_scorer.endpoint.local_server import local_server
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL, LOCAL_MODELS
from sllmr.components.llm_scorer.messages import Answer, Candidate, Context, LlmRequest, Usage
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import NEGATIVE, POPULAR
from sllmr.pipeline.beam_config import BeamConfig
from sllmr.pipeline.config import load_config
from sllmr.pipeline.datasets.fetch import fetch_missing

FOLDER = pathlib.Path(__file__).parent
CONFIG = FOLDER.parent / "configs" / "quickstart.yaml"
RESULTS = FOLDER / "results" / "local_server.jsonl"
SEED = 0
STRATEGIES = (TITLE_LIKELIHOOD, YES_NO)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSplit:
    """Catalog, one positive row of each user in an order drawn by hash, and all items of each user."""

    catalog: Mapping[str, Item]
    positives: tuple[PositiveRow, ...]
    items_of: Mapping[str, frozenset[str]]


def read_train_split(work: pathlib.Path) -> TrainSplit:
    """Reads the quickstart's tables as a run does."""
    from rich.console import Console

    config = load_config(CONFIG)
    fetch_missing(config, Console())
    with beam.Pipeline(argv=list(BeamConfig().pipeline_args)) as graph:
        prepared = graph | PrepareInteractions(config.data)
        _ = prepared[rows.TRAIN] | beam.io.WriteToTFRecord(str(work / "train"), file_name_suffix=".tfrecord.gz")
        _ = prepared["catalog"] | beam.ParDo(WriteCatalog(str(work / "catalog")))
    catalog = read_catalog(str(work / "catalog"))
    by_user: dict[str, list[PositiveRow]] = {}
    parse = ParsePositiveRows(config.llm)
    files = [str(file) for file in sorted(work.glob("train-*.tfrecord.gz"))]
    for encoded in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        for row in parse.process(encoded):
            by_user.setdefault(row.user_id, []).append(row)
    drawn = [
        min(found, key=lambda m: seeded_fraction(SEED, "moment", m.user_id, m.position)) for found in by_user.values()
    ]
    return TrainSplit(
        catalog=catalog,
        positives=tuple(sorted(drawn, key=lambda m: seeded_fraction(SEED, "user", m.user_id))),
        items_of={user: frozenset(m.item_id for m in found) for user, found in by_user.items()},
    )


def contexts_of(split: TrainSplit, count: int, config: CandidateConfig) -> list[tuple[PositiveRow, Context]]:
    """The first `count` rows that have a history and a titled item, as calibration contexts."""
    pools = CandidatePools(split.catalog, config)
    able = (m for m in split.positives if m.history_item_ids and split.catalog[m.item_id].title)
    return [
        (
            row,
            pools.context(
                row,
                name=OTHER,
                calibration=True,
                interacted=split.items_of[row.user_id],
                size=config.per_context,
                seed=SEED,
            ),
        )
        for row in itertools.islice(able, count)
    ]


class Asker:
    """Sends a context's requests in order, and contexts in parallel; reuses the answers to repeated requests."""

    def __init__(self, config: LlmConfig, base_url: str):
        self._client = LlmClient(config, base_url)
        self._threads = config.concurrency or 1
        self._answers: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.calls = 0
        self.usage = Usage()

    def answer(self, groups: Iterable[tuple[LlmRequest, ...]]) -> list[list[Answer]]:
        """One list of answers for each group."""
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(lambda group: [self._ask(request) for request in group], groups))

    def _ask(self, request: LlmRequest) -> Answer:
        known = self._answers.get(request.key)
        if known is not None:
            return Answer(response=known, cached=True)
        response = self._client.send(request)
        used = Usage.of(response)
        with self._lock:
            self.calls += 1
            self.usage = Usage(
                prompt=self.usage.prompt + used.prompt,
                cached_prompt=self.usage.cached_prompt + used.cached_prompt,
                completion=self.usage.completion + used.completion,
            )
            self._answers[request.key] = response
        return Answer(response=response)


def without_shared_prefix(groups: list[tuple[LlmRequest, ...]]) -> list[tuple[LlmRequest, ...]]:
    """The same requests, with a different number before each prompt."""
    number = itertools.count(100_000)

    def behind(request: LlmRequest) -> LlmRequest:
        if request.kind == messages.FORCED:
            body = {**request.body, "prompt": f"{next(number)} {request.body['prompt']}"}
        else:
            first, *others = request.body["messages"]
            body = {
                **request.body,
                "messages": [{**first, "content": f"{next(number)} {first['content']}"}, *others],
            }
        return dataclasses.replace(request, body=body)

    return [tuple(behind(request) for request in group) for group in groups]


def measure_speed(config: LlmConfig, split: TrainSplit, url: str, *, contexts: int, shared: bool) -> dict[str, Any]:
    """Measures the speed of one strategy, with or without shared prefixes."""
    strategy = create_strategy(config)
    asked = [context for _, context in contexts_of(split, contexts, CandidateConfig())]
    groups = [strategy.requests(context, split.catalog) for context in asked]
    groups = groups if shared else without_shared_prefix(groups)
    asker = Asker(config, url)
    before, own_before, started = tree_sample(os.getpid()).cpu_s, time.process_time(), time.monotonic()
    asker.answer(groups)
    seconds = time.monotonic() - started
    server_cpu_s = tree_sample(os.getpid()).cpu_s - before - (time.process_time() - own_before)
    pairs = sum(len(context.candidates) for context in asked)
    return {
        "pairs": pairs,
        "requests": asker.calls,
        "pairs_per_s": round(pairs / seconds, 2),
        "requests_per_s": round(asker.calls / seconds, 2),
        "server_cpu_s_per_request": round(server_cpu_s / asker.calls, 3),
        "server_cpu_s_per_pair": round(server_cpu_s / pairs, 3),
        "prompt_tokens": asker.usage.prompt,
        "cached_fraction": round(asker.usage.cached_prompt / asker.usage.prompt, 3),
    }


def with_uniform_negative(split: TrainSplit, row: PositiveRow, context: Context) -> Context:
    """The context with three candidates: the target item, its negative, and an item drawn uniformly."""
    taken = {c.item_id for c in context.candidates} | split.items_of[row.user_id] | set(row.history_item_ids)
    titled = sorted(item.item_id for item in split.catalog.values() if item.title and item.item_id not in taken)
    uniform = random.Random(f"{SEED}/{context.context_id}").choice(titled)
    negative = next(c for c in context.candidates if c.role == NEGATIVE)
    target = next(c for c in context.candidates if c.item_id == row.item_id)
    return dataclasses.replace(context, candidates=(target, negative, Candidate(item_id=uniform, role=POPULAR)))


def measure_skill(
    split: TrainSplit, users: int, raw_scores: Callable[[list[Context]], list[list[float | None]]]
) -> dict[str, Any]:
    """How often the target item scores higher than either negative.

    Args:
        raw_scores: a list of scores for each context's target item, negative about as popular, and uniform negative.
    """
    config = CandidateConfig(per_context=2, negatives_per_target=1, tail_per_context=0)
    contexts = [with_uniform_negative(split, row, context) for row, context in contexts_of(split, users, config)]
    scored = [[s for s in scores if s is not None] for scores in raw_scores(contexts)]
    scored = [scores for scores in scored if len(scores) == 3]
    result: dict[str, Any] = {"users": len(contexts), "scored": len(scored)}
    for name, index in (("popularity_matched", 1), ("uniform", 2)):
        wins = [(scores[0] > scores[index]) + (scores[0] == scores[index]) / 2 for scores in scored]
        right = sum(wins) / len(wins)
        deviation = math.sqrt(sum((win - right) ** 2 for win in wins) / (len(wins) - 1))
        result[name] = {"auc": round(right, 3), "half_width": round(1.96 * deviation / math.sqrt(len(wins)), 3)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=LOCAL_MODELS, default=(BUNDLED_MODEL,))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--accept-license", action="store_true", help="for a model that asks for it")
    parser.add_argument("--parts", nargs="+", choices=("speed", "skill"), default=("speed", "skill"))
    parser.add_argument("--users", type=int, default=150)
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    results = Results(arguments.results)
    with tempfile.TemporaryDirectory(prefix="local-server-benchmark-") as directory:
        work = pathlib.Path(directory)
        split = read_train_split(work)
        for name in arguments.models:
            for strategy in arguments.strategies:
                config = LlmConfig(
                    model=name, strategy=strategy, timeout_s=600, accept_license=arguments.accept_license
                ).resolve()
                measure_model(config, split, work, results, arguments)
        cell = {"part": "skill", "users": arguments.users, "strategy": "popularity"}
        if "skill" in arguments.parts and not results.holds(cell):
            results.append(cell, measure_skill(split, arguments.users, _train_counts(split)))


def measure_model(
    config: LlmConfig, split: TrainSplit, work: pathlib.Path, results: Results, arguments: argparse.Namespace
) -> None:
    """Measures and appends those cells of one model and strategy that the results lack."""
    settings = config.local_server
    with local_server(
        fetch_local_model(os.path.join(load_config(CONFIG).cache_dir, "models"), config.model),
        threads=settings.threads,
        slots=config.slots,
        context=settings.context,
        log_path=str(work / "server.log"),
    ) as url:
        common = {
            "model": config.model,
            "strategy": config.strategy,
            "prompt": create_strategy(config).prompt_version,
            "history_items": config.history_items,
            **versions("xllamacpp"),
        }
        for shared in (True, False) if "speed" in arguments.parts else ():
            cell = {"part": "speed", "shared_prefix": shared, "contexts": arguments.contexts, **common}
            if not results.holds(cell):
                speed = measure_speed(config, split, url, contexts=arguments.contexts, shared=shared)
                results.append(cell, {"threads": settings.threads, "slots": config.slots, **speed})
        cell = {"part": "skill", "users": arguments.users, **common}
        if "skill" in arguments.parts and not results.holds(cell):
            results.append(cell, measure_skill(split, arguments.users, _scores_by(config, split, url)))


def _scores_by(config: LlmConfig, split: TrainSplit, url: str) -> Callable[[list[Context]], list[list[float | None]]]:
    def scores(contexts: list[Context]) -> list[list[float | None]]:
        strategy = create_strategy(config)
        answers = Asker(config, url).answer([strategy.requests(context, split.catalog) for context in contexts])
        return [
            [result.raw_score for result in strategy.results(context, answered)]
            for context, answered in zip(contexts, answers, strict=True)
        ]

    return scores


def _train_counts(split: TrainSplit) -> Callable[[list[Context]], list[list[float | None]]]:
    def scores(contexts: list[Context]) -> list[list[float | None]]:
        return [[float(split.catalog[c.item_id].train_count) for c in context.candidates] for context in contexts]

    return scores


if __name__ == "__main__":
    main()

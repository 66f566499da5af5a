"""One scoring run from train rows to the score table: plan, estimate, ask, account. Beam, but no TFX."""

import contextlib
import dataclasses
import glob
import gzip
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import tensorflow as tf

from components import scores
from components.catalog import read_catalog
from components.llm_scorer import exchange, ledger
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import EMBEDDING, LlmConfig, LlmError
from components.llm_scorer.estimate import Estimate, estimate
from components.llm_scorer.exchange import Context
from components.llm_scorer.forecast import Askable, Forecast, forecast
from components.llm_scorer.handler import LlmHandler
from components.llm_scorer.ledger import RunLedger, latency_percentiles_s
from components.llm_scorer.local_model import fetch_local_model
from components.llm_scorer.local_server import local_server
from components.llm_scorer.progress import ProgressReporter
from components.llm_scorer.strategies import create_strategy
from components.llm_scorer.transforms import FAILURES, SCORES, AskLlm, ContextsToAsk, CountAskable

_PLAN = "contexts"
_PLAN_SHARDS = "-*.tfrecord.gz"
_ASKABLE = "askable.json"
_NOTHING_TO_ASK = (
    "there is nothing to ask the LLM about: no positive row of the train split has an item with a title in its history "
    "and two candidates; check the titles of data.items"
)
_NOTHING_TO_SEND = "http://127.0.0.1:9/v1"
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """Scores train rows into `output_directory`, laid out as components/scores.py says.

    Attributes:
        config: what the person decided.
        catalog_directory: of the ItemCatalog.
        cache_directory: keeps answers and the bundled model's weights between runs, outside TFX's executions;
            every worker must reach it, as it must the other directories.
        work_directory: for the plan and the local server's log.
        output_directory: of the LlmScores.
        make_pipeline: a fresh Beam pipeline with the runner's options.
    """

    config: LlmConfig
    catalog_directory: str
    cache_directory: str
    work_directory: str
    output_directory: str
    make_pipeline: Callable[[], beam.Pipeline]

    def run(self, train_rows: beam.PTransform) -> dict[str, Any]:
        """Plans, tells the estimate, asks what the cache does not know, and accounts for every pair.

        Args:
            train_rows: reads the serialized rows of the train split, and of no other.

        Returns:
            The ledger, as written to ledger.json.

        Raises:
            LlmError: a need is not met, the endpoint refuses, nothing was scored, or too many pairs failed.
                All answers so far are in the cache.
        """
        started = time.monotonic()
        config = self.config.resolve()
        strategy = create_strategy(config)
        plan = self._plan(train_rows, config)
        cache = ResponseCache(self.cache_directory)
        expected = estimate(_read_plan(plan), read_catalog(self.catalog_directory), strategy, config, cache)
        if not expected.pairs:
            raise LlmError(_NOTHING_TO_ASK)
        _logger.info("llm: %s by %s, %s", config.model, config.strategy, expected)
        run = RunLedger(self.cache_directory, uuid.uuid4().hex)
        run.add({ledger.PRIOR_NANO_USD: expected.prior_nano_usd})
        try:
            with self._endpoint(config, expected) as base_url:
                handler = LlmHandler(config, base_url, self.cache_directory, run.run_id)
                with ProgressReporter(run, pairs=expected.pairs, to_send=expected.to_send):
                    self._ask(plan, config, handler)
            totals = run.totals()
            run.forget()
        except BaseException:
            # Also Ctrl-C: threads and processes that still work would go on spending.
            run.end()
            raise
        finally:
            run.close()
            # Kept open until here: the last connection to close would fold the write-ahead log into the file.
            cache.close()
        book = self._account(expected, totals, config, strategy.prompt_version, time.monotonic() - started)
        with open(os.path.join(self.output_directory, scores.LEDGER_FILE), "w", encoding="utf-8") as file:
            json.dump(book, file, indent=2)
        _check_failures(book, config)
        return book

    def forecast(self, train_rows: beam.PTransform) -> list[Forecast]:
        """What `run` would ask, cost and reach, without a call; the last one is the whole plan.

        The plan in `work_directory` holds user ids, without which users cannot be counted.

        Args:
            train_rows: as for `run`.

        Raises:
            LlmError: as `run` where there is nothing to ask about.
        """
        config = self.config.resolve()
        strategy = create_strategy(config)
        plan = self._plan(train_rows, config.model_copy(update={"store_user_ids": True}), count_askable=True)
        contexts = list(_read_plan(plan))
        if not contexts:
            raise LlmError(_NOTHING_TO_ASK)
        with open(os.path.join(self.work_directory, _ASKABLE), encoding="utf-8") as file:
            askable = Askable(**json.load(file))
        cache = ResponseCache(self.cache_directory)
        try:
            return forecast(contexts, read_catalog(self.catalog_directory), askable, strategy, config, cache)
        finally:
            cache.close()

    def planned_contexts(self) -> Iterator[Context]:
        """The contexts that the last `run` or `forecast` in `work_directory` planned."""
        return _read_plan(os.path.join(self.work_directory, _PLAN) + _PLAN_SHARDS)

    def _plan(self, train_rows: beam.PTransform, config: LlmConfig, *, count_askable: bool = False) -> str:
        prefix = os.path.join(self.work_directory, _PLAN)
        with self.make_pipeline() as pipeline:
            rows = pipeline | "ReadTrainRows" >> train_rows
            _ = (
                rows
                | "ContextsToAsk" >> ContextsToAsk(self.catalog_directory, config)
                | "Encode" >> beam.Map(_encode_context)
                | "WritePlan" >> beam.io.WriteToTFRecord(prefix, file_name_suffix=".tfrecord.gz")
            )
            if count_askable:
                _ = (
                    rows
                    | "CountAskable" >> CountAskable(self.catalog_directory, config)
                    | "EncodeAskable" >> beam.Map(_encode_askable)
                    | "WriteAskable"
                    >> beam.io.WriteToText(os.path.join(self.work_directory, _ASKABLE), shard_name_template="")
                )
        return prefix + _PLAN_SHARDS

    @contextlib.contextmanager
    def _endpoint(self, config: LlmConfig, expected: Estimate) -> Iterator[str]:
        if not expected.to_send:
            yield config.base_url or _NOTHING_TO_SEND
            return
        config.check_needs()
        if config.base_url is not None:
            yield config.base_url
            return
        with local_server(
            fetch_local_model(os.path.join(self.cache_directory, "models")),
            threads=config.local_server.threads,
            slots=config.local_server.slots,
            context=config.local_server.context,
            embeddings=config.strategy == EMBEDDING,
            log_path=os.path.join(self.work_directory, "local_server.log"),
        ) as base_url:
            yield base_url

    def _ask(self, plan: str, config: LlmConfig, handler: LlmHandler) -> None:
        with self.make_pipeline() as pipeline:
            results = (
                pipeline
                | "ReadPlan" >> beam.io.ReadFromTFRecord(plan)
                | "Decode" >> beam.Map(Context.from_json)
                | "AskLlm" >> AskLlm(self.catalog_directory, config, handler)
            )
            _ = (
                results[SCORES]
                | "Serialize" >> beam.Map(scores.ScoreRecord.serialize)
                | "WriteScores"
                >> beam.io.WriteToTFRecord(
                    os.path.join(self.output_directory, scores.SCORES_PREFIX), file_name_suffix=".tfrecord.gz"
                )
            )
            _ = results[FAILURES] | "WriteFailures" >> beam.io.WriteToText(
                os.path.join(self.output_directory, scores.FAILURES_PREFIX), file_name_suffix=".jsonl.gz"
            )

    def _account(
        self,
        expected: Estimate,
        totals: dict[str, int],
        config: LlmConfig,
        prompt_version: str,
        seconds: float,
    ) -> dict[str, Any]:
        """Counts what was written, and holds it to what was planned."""
        roles: Counter[str] = Counter()
        times: list[int] = []
        for record in scores.read_scores(self.output_directory):
            roles.update(record.roles)
            times.append(record.scored_at)
        scored = roles.total()
        failures = _count_failures(self.output_directory)
        failed = failures.total()
        if scored + failed != expected.pairs:
            raise LlmError(
                f"every pair must end scored or failed: {expected.pairs} were planned, {scored} scored "
                f"and {failed} failed; this is a defect, please report it"
            )
        cost = totals.get(ledger.NANO_USD, 0) / 1e9
        return {
            "model": config.model,
            "strategy": config.strategy,
            "prompt_version": prompt_version,
            "contexts": expected.contexts,
            "probes": expected.probes,
            "requested": expected.pairs,
            "cached": totals.get(ledger.PAIRS_CACHED, 0),
            "scored": scored,
            "failed": failed,
            "failures": dict(sorted(failures.items())),
            "scored_by_role": dict(sorted(roles.items())),
            "calls": {
                "planned": expected.calls,
                "sent": totals.get(ledger.CALLS_SENT, 0),
                "cached": totals.get(ledger.CALLS_CACHED, 0),
                "failed": totals.get(ledger.CALLS_FAILED, 0),
                "refused_by_budget": totals.get(ledger.CALLS_REFUSED_BY_BUDGET, 0),
            },
            "corrupt_cache_entries": totals.get(ledger.CORRUPT_ENTRIES, 0),
            "tokens": {
                "prompt": totals.get(ledger.PROMPT_TOKENS, 0),
                "cached_prompt": totals.get(ledger.CACHED_PROMPT_TOKENS, 0),
                "completion": totals.get(ledger.COMPLETION_TOKENS, 0),
            },
            "estimated_tokens": {"prompt": expected.usage.prompt, "completion": expected.usage.completion},
            "cost_usd": None if config.price is None else cost,
            "estimated_cost_usd": None if expected.cost_nano_usd is None else expected.cost_nano_usd / 1e9,
            "cost_of_cached_answers_usd": None if config.price is None else expected.prior_nano_usd / 1e9,
            "latency_s": latency_percentiles_s(totals),
            "seconds": round(seconds, 3),
            "oldest_score": min(times, default=None),
            "newest_score": max(times, default=None),
        }


def _encode_context(context: Context) -> bytes:
    return context.to_json().encode()


def _encode_askable(askable: Askable) -> str:
    return json.dumps(dataclasses.asdict(askable))


def _read_plan(pattern: str) -> Iterator[Context]:
    files = sorted(glob.glob(pattern))
    for line in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        yield Context.from_json(line)


def _count_failures(directory: str) -> Counter[str]:
    failures: Counter[str] = Counter()
    for path in glob.glob(os.path.join(directory, scores.FAILURES_PREFIX + "-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            failures.update(json.loads(line)["reason"] for line in file)
    return failures


def _check_failures(book: dict[str, Any], config: LlmConfig) -> None:
    """The budget's end is the person's wish and no failure; everything else counts."""
    unasked = book["failures"].get(exchange.BUDGET_EXHAUSTED, 0)
    if unasked:
        go_on = (
            f"{unasked} of {book['requested']} pairs were not asked about, as "
            f"max_cost_usd={config.budget.max_cost_usd} would have been passed; raise "
            "llm.budget.max_cost_usd and run again, what was paid for is cached"
        )
        if not book["scored"]:
            raise LlmError(go_on)
        _logger.warning("%s", go_on)
    asked = book["requested"] - unasked
    failed = book["failed"] - unasked
    if asked and failed / asked > config.max_failure_rate:
        raise LlmError(
            f"the share of failed pairs must be at most max_failure_rate={config.max_failure_rate:g}, got "
            f"{failed} of {asked} ({failed / asked:.1%}): {book['failures']}; see the failures beside "
            "ledger.json, mend the cause or raise llm.max_failure_rate, and run again (answers are "
            "cached)"
        )

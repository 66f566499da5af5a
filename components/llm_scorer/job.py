"""One scoring run from train rows to the score table: plan, estimate, ask, account. Beam, but no TFX."""

import contextlib
import dataclasses
import glob
import gzip
import json
import logging
import os
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from components import scores
from components.catalog import read_catalog
from components.llm_scorer import congestion, exchange, ledger
from components.llm_scorer.audit import OrderAudit, is_audited
from components.llm_scorer.batch import BatchJob, check_batch
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.candidates import number_of_contexts
from components.llm_scorer.config import EMBEDDING, REPLAY, LlmConfig, LlmError
from components.llm_scorer.drift import drift_report
from components.llm_scorer.estimate import Estimate, estimate
from components.llm_scorer.exchange import Context, LlmRequest
from components.llm_scorer.forecast import Askable, Forecast, forecast, users_first
from components.llm_scorer.handler import LlmHandler
from components.llm_scorer.ledger import RunLedger, latency_percentiles_s
from components.llm_scorer.local_model import fetch_local_model
from components.llm_scorer.local_server import local_server
from components.llm_scorer.progress import ProgressReporter
from components.llm_scorer.rescore import (
    CONTEXTS,
    FATES,
    GONE,
    KEPT,
    REASONS,
    Fate,
    Replan,
    RowsOfOtherUsers,
    asked_again,
    check_table,
    copy_failures,
    read_fates,
)
from components.llm_scorer.strategies import create_strategy
from components.llm_scorer.strategies.replay import records_to_replay
from components.llm_scorer.transforms import FAILURES, SCORES, TO_CHOOSE, TO_DRAW, AskLlm, ContextsToAsk, CountAskable

_PLAN = "contexts"
_OTHERS = "others"
_PLAN_SUFFIX = ".jsonl.gz"
_PLAN_SHARDS = "-*" + _PLAN_SUFFIX
_CONTEXTS_PER_SHARD = 1000
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
        plan = self._plan(train_rows, config)
        if config.strategy == REPLAY:
            _tell_replayed(plan, config)
        return self._close(self._score(plan, config), config, started)

    def rescore(self, train_rows: beam.PTransform, table: str, max_age_days: float | None) -> dict[str, Any]:
        """Brings an earlier table up to date: keeps what stands, asks about users who chose more since. See rescore.py.

        Places that the table leaves free in budget.pairs go to users who are not in it.

        Args:
            train_rows: as for `run`.
            table: an LlmScores folder of this seed; it is only read.
            max_age_days: scores that are older are asked again; None keeps them.

        Returns:
            The ledger of the whole new table; calls, tokens and money are those of this run alone.

        Raises:
            LlmError: as `run`; the table cannot be used, or holds more than budget.pairs.
        """
        started = time.monotonic()
        config = self.config.resolve()
        check_table(table, config)
        if max_age_days is not None and max_age_days <= 0:
            raise LlmError(
                f"max_age_days must be above 0, got {max_age_days:g}; leave it out to keep scores of any age"
            )
        not_before = 0 if max_age_days is None else int(time.time() - max_age_days * 86400)
        fates = self._replan(train_rows, table, config, not_before)
        counts = Counter(fate.fate for fate in fates)
        again = {reason: counts[reason] for reason in REASONS}
        standing = counts[KEPT] + sum(again.values())
        places = number_of_contexts(config.budget.pairs, config.candidates.per_context) - standing
        if places < 0:
            raise LlmError(
                f"budget.pairs must hold the {standing} contexts of the table, got places for {places + standing}; "
                "raise llm.budget.pairs to that of the table"
            )
        self._plan_others(places)
        plan = os.path.join(self.work_directory, _PLAN) + _PLAN_SHARDS
        new = sum(1 for _ in _read_plan(plan)) - sum(again.values())
        _logger.info(
            "llm: of the table's %d contexts %d are kept, %d asked again and %d gone; %d new ones",
            len(fates),
            counts[KEPT],
            sum(again.values()),
            counts[GONE],
            new,
        )
        kept = self._take_over(table, fates)
        book = self._score(plan, config, kept=kept, not_before=not_before)
        book["rescore"] = {
            "kept": counts[KEPT],
            "asked_again": again,
            "new": new,
            "gone": counts[GONE],
            "drift": drift_report(asked_again(table, self.output_directory, fates)),
        }
        return self._close(book, config, started, kept)

    def _score(
        self, plan: str, config: LlmConfig, *, kept: "Kept | None" = None, not_before: int = 0
    ) -> dict[str, Any]:
        """Asks about a plan; returns the ledger."""
        strategy = create_strategy(config)
        cache = ResponseCache(self.cache_directory, not_before=not_before)
        expected = estimate(_read_plan(plan), read_catalog(self.catalog_directory), strategy, config, cache)
        if not expected.pairs and kept is None:
            raise LlmError(_NOTHING_TO_ASK)
        _logger.info("llm: %s by %s, %s", config.model, config.strategy, expected)
        if expected.under_way:
            raise LlmError(
                f"{expected.under_way} of {expected.calls} calls are with the Batch API, and asked again they would be "
                "paid for twice; fetch their answers with sllmr batch, or stop them with sllmr batch --cancel"
            )
        run = RunLedger(self.cache_directory, uuid.uuid4().hex)
        run.add({ledger.PRIOR_NANO_USD: expected.prior_nano_usd, ledger.PRIOR_TOKENS: expected.prior_tokens})
        try:
            with self._endpoint(config, expected) as base_url:
                handler = LlmHandler(
                    config,
                    base_url,
                    self.cache_directory,
                    run.run_id,
                    self.catalog_directory,
                    not_before=not_before,
                )
                with ProgressReporter(
                    run, pairs=expected.pairs, to_send=expected.to_send, concurrency=config.concurrency or 1
                ):
                    self._ask(plan, handler)
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
        return self._account(plan, expected, totals, config, strategy.prompt_version, kept or Kept())

    def _close(
        self, book: dict[str, Any], config: LlmConfig, started: float, kept: "Kept | None" = None
    ) -> dict[str, Any]:
        """Writes the ledger, then holds the failures of this run to their limit."""
        book = {**book, "seconds": round(time.monotonic() - started, 3)}
        with open(os.path.join(self.output_directory, scores.LEDGER_FILE), "w", encoding="utf-8") as file:
            json.dump(book, file, indent=2)
        _check_failures(book, config, kept or Kept())
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

    def batch_job(self, train_rows: beam.PTransform) -> BatchJob:
        """What brings the answers that `run` would ask for into the cache by the Batch API.

        Args:
            train_rows: as for `run`.

        Raises:
            LlmError: there is nothing to ask about; the Batch API cannot ask what is configured.
        """
        config = self.config.resolve()
        check_batch(config)
        config.check_needs()
        strategy = create_strategy(config)
        plan = self._plan(train_rows, config)
        if next(_read_plan(plan), None) is None:
            raise LlmError(_NOTHING_TO_ASK)
        catalog = read_catalog(self.catalog_directory)

        def requests() -> Iterator[LlmRequest]:
            for context in _read_plan(plan):
                yield from strategy.requests(context, catalog)

        return BatchJob(config, self.cache_directory, requests)

    def planned_contexts(self) -> Iterator[Context]:
        """The contexts that the last `run` or `forecast` in `work_directory` planned."""
        return _read_plan(os.path.join(self.work_directory, _PLAN) + _PLAN_SHARDS)

    def _plan(self, train_rows: beam.PTransform, config: LlmConfig, *, count_askable: bool = False) -> str:
        prefix = os.path.join(self.work_directory, _PLAN)
        with self.make_pipeline() as pipeline:
            rows = pipeline | "ReadTrainRows" >> train_rows
            _ = (
                {TO_CHOOSE: rows, TO_DRAW: pipeline | "ReadTrainRowsAgain" >> train_rows}
                | "ContextsToAsk" >> ContextsToAsk(self.catalog_directory, config)
                | "WritePlan" >> _WriteContexts(prefix)
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

    def _ask(self, plan: str, handler: LlmHandler) -> None:
        with self.make_pipeline() as pipeline:
            results = (
                pipeline
                | "ReadPlan" >> beam.io.ReadFromText(plan)
                | "Decode" >> beam.Map(Context.from_json)
                | "AskLlm" >> AskLlm(handler)
            )
            _ = results[SCORES] | "WriteScores" >> beam.io.WriteToTFRecord(
                os.path.join(self.output_directory, scores.SCORES_PREFIX), file_name_suffix=".tfrecord.gz"
            )
            _ = results[FAILURES] | "WriteFailures" >> beam.io.WriteToText(
                os.path.join(self.output_directory, scores.FAILURES_PREFIX), file_name_suffix=".jsonl.gz"
            )

    def _replan(self, train_rows: beam.PTransform, table: str, config: LlmConfig, not_before: int) -> list[Fate]:
        """Writes the plan, the kept records, and what a plan for users outside the table would ask; tells what becomes
        of each context of the table.
        """
        prefix = os.path.join(self.work_directory, _PLAN)
        with self.make_pipeline() as pipeline:
            records = (
                pipeline
                | "ReadTable" >> beam.io.ReadFromTFRecord(scores.scores_pattern(table))
                | "ParseRecords" >> beam.Map(scores.ScoreRecord.parse)
            )
            inputs = {"rows": pipeline | "ReadTrainRows" >> train_rows, "records": records}
            inputs_again = {"rows": pipeline | "ReadTrainRowsAgain" >> train_rows, "records": records}
            replanned = inputs | "Replan" >> Replan(self.catalog_directory, config, not_before)
            _ = replanned[CONTEXTS] | "WritePlan" >> _WriteContexts(f"{prefix}-again")
            _ = (
                {
                    TO_CHOOSE: inputs | "RowsOfOtherUsers" >> RowsOfOtherUsers(config.seed),
                    TO_DRAW: inputs_again | "RowsOfOtherUsersAgain" >> RowsOfOtherUsers(config.seed),
                }
                | "ContextsToAsk" >> ContextsToAsk(self.catalog_directory, config)
                | "WriteOthers" >> _WriteContexts(os.path.join(self.work_directory, _OTHERS))
            )
            _ = (
                replanned[KEPT]
                | "Serialize" >> beam.Map(scores.ScoreRecord.serialize)
                | "WriteKept"
                >> beam.io.WriteToTFRecord(
                    os.path.join(self.output_directory, f"{scores.SCORES_PREFIX}-kept"),
                    file_name_suffix=".tfrecord.gz",
                    # Beam clears what looks like shards of its own when the other scores are written: -*-of-*.
                    shard_name_template="-SSSSS",
                )
            )
            _ = replanned[FATES] | "WriteFates" >> beam.io.WriteToText(
                os.path.join(self.work_directory, FATES), file_name_suffix=".jsonl"
            )
        fates = read_fates(os.path.join(glob.escape(self.work_directory), FATES) + "-*.jsonl")
        if all(fate.fate == GONE for fate in fates):
            raise LlmError(
                f"none of the table's {len(fates)} contexts is of a user of today's train rows; llm.seed={config.seed} "
                "and data.interactions must be those that the table was scored with"
            )
        return fates

    def _plan_others(self, contexts: int) -> None:
        """Adds so many contexts of users who are not in the table to the plan."""
        others = users_first(_read_plan(os.path.join(self.work_directory, _OTHERS) + _PLAN_SHARDS))
        for first in range(0, min(contexts, len(others)), _CONTEXTS_PER_SHARD):
            path = os.path.join(self.work_directory, f"{_PLAN}-new-{first}{_PLAN_SUFFIX}")
            with gzip.open(path, "wt", encoding="utf-8") as lines:
                shard = others[first : min(contexts, first + _CONTEXTS_PER_SHARD)]
                lines.writelines(context.to_json() + "\n" for context in shard)

    def _take_over(self, table: str, fates: list[Fate]) -> "Kept":
        """Brings the failures of kept contexts along; counts what is kept."""
        ids = {fate.context_id for fate in fates if fate.fate == KEPT}
        copy_failures(table, self.output_directory, ids)
        failures = _count_failures(self.output_directory)
        del failures[exchange.UNKNOWN_ITEM]
        contexts = probes = pairs = 0
        for record in scores.read_scores(self.output_directory):
            contexts, probes = contexts + 1, probes + bool(record.chosen_item_id)
            pairs += len(record.item_ids)
        return Kept(contexts=contexts, probes=probes, pairs=pairs + failures.total(), failures=failures)

    def _account(
        self,
        plan: str,
        expected: Estimate,
        totals: dict[str, int],
        config: LlmConfig,
        prompt_version: str,
        kept: "Kept",
    ) -> dict[str, Any]:
        """Counts what was written, and holds it to what was planned and kept."""
        roles: Counter[str] = Counter()
        times: list[int] = []
        audit = OrderAudit()
        for record in scores.read_scores(self.output_directory):
            roles.update(record.roles)
            times.append(record.scored_at)
            audit.add(record)
        asked_twice = [c.context_id for c in _read_plan(plan) if is_audited(c.context_id, config)]
        scored = roles.total()
        failures = _count_failures(self.output_directory)
        unknown_items = failures.pop(exchange.UNKNOWN_ITEM, 0)
        failed = failures.total()
        if scored + failed != expected.pairs + kept.pairs:
            raise LlmError(
                f"every pair must end scored or failed: {expected.pairs} were planned and {kept.pairs} kept, {scored} "
                f"scored and {failed} failed; this is a defect, please report it"
            )
        cost = totals.get(ledger.NANO_USD, 0) / 1e9
        return {
            "model": config.model,
            "strategy": config.strategy,
            "prompt_version": prompt_version,
            "contexts": expected.contexts + kept.contexts,
            "probes": expected.probes + kept.probes,
            "requested": expected.pairs + kept.pairs,
            "kept": kept.pairs,
            "cached": totals.get(ledger.PAIRS_CACHED, 0),
            "scored": scored,
            "failed": failed,
            "failures": dict(sorted(failures.items())),
            "unknown_items_in_answers": unknown_items,
            "scored_by_role": dict(sorted(roles.items())),
            "calls": {
                "planned": expected.calls,
                "sent": totals.get(ledger.CALLS_SENT, 0),
                "cached": totals.get(ledger.CALLS_CACHED, 0),
                "failed": totals.get(ledger.CALLS_FAILED, 0),
                "refused_by_budget": totals.get(ledger.CALLS_REFUSED_BY_BUDGET, 0),
                "repeated": totals.get(ledger.CALLS_REPEATED, 0),
            },
            "pushback": {
                "times": totals.get(congestion.PUSHED_BACK, 0),
                "fewest_at_once": congestion.fewest_places(totals, config.concurrency or 1),
                "concurrency": config.concurrency,
            },
            "corrupt_cache_entries": totals.get(ledger.CORRUPT_ENTRIES, 0),
            "tokens": {
                "prompt": totals.get(ledger.PROMPT_TOKENS, 0),
                "cached_prompt": totals.get(ledger.CACHED_PROMPT_TOKENS, 0),
                "completion": totals.get(ledger.COMPLETION_TOKENS, 0),
            },
            "estimated_tokens": dataclasses.asdict(expected.usage),
            "cost_usd": None if config.price is None else cost,
            "estimated_cost_usd": None if expected.cost_nano_usd is None else expected.cost_nano_usd / 1e9,
            # Set aside for calls that ended without an answer but may be billed; known only under a cap.
            "cost_of_lost_answers_at_most_usd": totals.get(ledger.RESERVED_NANO_USD, 0) / 1e9,
            "cost_of_cached_answers_usd": None if config.price is None else expected.prior_nano_usd / 1e9,
            "latency_s": latency_percentiles_s(totals),
            "oldest_score": min(times, default=None),
            "median_score": statistics.median_low(times) if times else None,
            "newest_score": max(times, default=None),
            "contexts_outdated": sum(0 < c.scored_user_positives < c.user_positives for c in _read_plan(plan)),
            "audit": audit.report(asked_twice),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What a rescored table takes over from the earlier one; `pairs` are scored ones and failed ones."""

    contexts: int = 0
    probes: int = 0
    pairs: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)


def _tell_replayed(plan: str, config: LlmConfig) -> None:
    """Says how much of a replayed folder is used; a table of other rows or another seed does not fit at all."""
    records = records_to_replay(config)
    if records is None:
        return
    used = sum(1 for _ in _read_plan(plan))
    if not used:
        raise LlmError(
            f"none of the {len(records)} contexts of llm.replay_table is in the train rows; llm.seed={config.seed} and "
            "data must be those that the table was scored with"
        )
    _logger.info("llm: %d of the %d contexts of llm.replay_table are used", used, len(records))


class _WriteContexts(beam.PTransform):
    """Context -> files of JSON lines. Small ones: they are what asking is spread over, without a shuffle that a runner
    might keep in memory."""

    def __init__(self, prefix: str):
        super().__init__()
        self._prefix = prefix

    def expand(self, contexts: beam.PCollection):
        return (
            contexts
            | "Encode" >> beam.Map(Context.to_json)
            | "Write"
            >> beam.io.WriteToText(
                self._prefix, file_name_suffix=_PLAN_SUFFIX, max_records_per_shard=_CONTEXTS_PER_SHARD
            )
        )


def _encode_askable(askable: Askable) -> str:
    return json.dumps(dataclasses.asdict(askable))


def _read_plan(pattern: str) -> Iterator[Context]:
    for path in sorted(glob.glob(pattern)):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(Context.from_json, lines)


def _count_failures(directory: str) -> Counter[str]:
    failures: Counter[str] = Counter()
    for path in glob.glob(os.path.join(directory, scores.FAILURES_PREFIX + "-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            failures.update(json.loads(line)["reason"] for line in file)
    return failures


def _check_failures(book: dict[str, Any], config: LlmConfig, kept: Kept) -> None:
    """The budget's end is the person's wish and no failure; everything else of this run counts."""
    failures = Counter(book["failures"]) - kept.failures
    requested = book["requested"] - kept.pairs
    unasked = failures[exchange.BUDGET_EXHAUSTED]
    if unasked:
        go_on = (
            f"{unasked} of {requested} pairs were not asked about, as {_caps(config)} would have been passed; raise "
            "it and run again, what was paid for is cached"
        )
        if not book["scored"]:
            raise LlmError(go_on)
        _logger.warning("%s", go_on)
    asked = requested - unasked
    failed = failures.total() - unasked
    if asked and failed / asked > config.max_failure_rate:
        raise LlmError(
            f"the share of failed pairs must be at most max_failure_rate={config.max_failure_rate:g}, got "
            f"{failed} of {asked} ({failed / asked:.1%}): {dict(failures)}; see the failures beside "
            "ledger.json, mend the cause or raise llm.max_failure_rate, and run again (answers are "
            "cached)"
        )


def _caps(config: LlmConfig) -> str:
    caps = {"max_cost_usd": config.budget.max_cost_usd, "max_tokens": config.budget.max_tokens}
    return " or ".join(f"llm.budget.{name}={cap}" for name, cap in caps.items() if cap is not None)

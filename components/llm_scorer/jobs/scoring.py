"""Scores train rows: plan, estimate, query the LLM about what the cache does not know, account. Beam, but no TFX."""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Sequence

import apache_beam as beam

from sllmr.components import scores
from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.config import REPLAY, LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimate, estimate
from sllmr.components.llm_scorer.endpoint.local_model import fetch_local_model
from sllmr.components.llm_scorer.endpoint.local_server import local_server
from sllmr.components.llm_scorer.errors import LlmError, NothingToReplay
from sllmr.components.llm_scorer.jobs.accounting import Kept, account, close
from sllmr.components.llm_scorer.jobs.import_local import import_local
from sllmr.components.llm_scorer.jobs.plan import (
    NOTHING_TO_SCORE,
    PLAN,
    PLAN_SHARDS,
    read_plan,
    report_user_scores,
    write_plan,
    write_shards,
)
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.handler import LlmHandler
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.requests.progress import ProgressReporter
from sllmr.components.llm_scorer.requests.sharing import share_run
from sllmr.components.llm_scorer.requests.transforms import FAILURES, SCORES, AskLlm
from sllmr.components.llm_scorer.results import ScoringLedger
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.llm_scorer.strategies.replay import records_to_replay, user_scores_to_replay
from sllmr.models import artifact_files

_NOTHING_TO_SEND = "http://127.0.0.1:9/v1"
_logger = logging.getLogger(__name__)


def score(workspace: Workspace, train_rows: beam.PTransform) -> ScoringLedger:
    """Plans, logs the estimate, queries the LLM for what the cache does not know, and accounts for every pair.

    Args:
        workspace: configuration and folders.
        train_rows: reads the serialized rows of the train split, and of no other.

    Returns:
        The ledger, as written to ledger.json.

    Raises:
        LlmError: a need is not met, the endpoint refuses, nothing was scored, or too many pairs failed.
            All responses so far are in the cache.
    """
    started = time.monotonic()
    config = workspace.resolved(train_rows)
    plan = write_plan(workspace, train_rows, config)
    if config.strategy == REPLAY:
        _log_replayed(plan, config)
    book = score_plan(workspace, plan, config)
    if user_scores_to_replay(config) is not None:
        book = book.model_copy(update={"replay_table": report_user_scores(workspace, config)})
    return close(workspace, book, config, started)


def score_contexts(workspace: Workspace, contexts: Sequence[Context]) -> ScoringLedger:
    """Scores some contexts of another job's plan: requests are those of `score`, so the cache serves both.

    Args:
        workspace: configuration and folders.
        contexts: of `planned_contexts` of a job with another work directory.

    Returns:
        The ledger, as written to ledger.json.

    Raises:
        LlmError: as `score`.
    """
    started = time.monotonic()
    write_shards(workspace, contexts, "part")
    config = workspace.config.with_item_vectors(workspace.item_vectors_file).resolve()
    plan = os.path.join(workspace.work_directory, PLAN) + PLAN_SHARDS
    return close(workspace, score_plan(workspace, plan, config), config, started)


def score_plan(
    workspace: Workspace, plan: str, config: LlmConfig, *, kept: Kept | None = None, not_before: int = 0
) -> ScoringLedger:
    """Queries the LLM about a plan.

    Args:
        workspace: configuration and folders.
        plan: pattern of the plan's files.
        config: resolved.
        kept: what a rescored table takes over.
        not_before: responses from before this Unix second do not count.

    Returns:
        The ledger, with no wall time yet.
    """
    import_local(workspace.cache_directory, workspace.store)
    strategy = create_strategy(config)
    # Kept open as the last one: the last connection to close folds the write-ahead log into the file.
    with (
        contextlib.closing(ResponseCache(workspace.store, not_before=not_before)) as cache,
        contextlib.closing(RunLedger(workspace.store, uuid.uuid4().hex)) as run,
    ):
        with run.driven():
            share_run(run, config, strategy.prompt_version, _parts(plan))
            expected = _estimate(workspace, plan, config, cache)
            if not expected.pairs and kept is None:
                raise LlmError(NOTHING_TO_SCORE)
            run.spent_before(expected.prior_nano_usd, expected.prior_tokens)
            run.add({ledger.PAIRS_PLANNED: expected.pairs})
            with _endpoint(workspace, config, expected) as base_url:
                handler = LlmHandler(
                    config,
                    base_url,
                    workspace.store,
                    run.run_id,
                    workspace.catalog_directory,
                    not_before=not_before,
                    retry_failed=workspace.retry_failed,
                )
                with ProgressReporter(
                    run, pairs=expected.pairs, to_send=expected.to_send, concurrency=config.concurrency or 1
                ):
                    _send(workspace, plan, handler)
        totals = run.totals()
        run.forget()
    return account(workspace, plan, expected, totals, config, strategy.prompt_version, kept or Kept())


def _parts(plan: str) -> Iterator[str]:
    """Yields a text for each context of a plan that identifies it and its candidates."""
    for context in read_plan(plan):
        yield "\n".join((context.context_id, *(candidate.item_id for candidate in context.candidates)))


def _estimate(workspace: Workspace, plan: str, config: LlmConfig, cache: ResponseCache) -> Estimate:
    """Sizes the plan and logs it.

    Raises:
        LlmError: requests of the plan are with the Batch API.
    """
    expected = estimate(
        read_plan(plan),
        read_catalog(workspace.catalog_directory),
        create_strategy(config),
        config,
        cache,
        retry_failed=workspace.retry_failed,
    )
    _logger.info("llm: %s by %s, %s", config.model, config.strategy, expected)
    if expected.failed_earlier:
        _logger.info("llm: %s", retry_line(expected))
    if expected.in_flight:
        raise LlmError(
            f"{expected.in_flight} of {expected.requests} requests are with the Batch API; sent again, they are "
            "paid for twice; fetch their responses with sllmr batch, or stop them with sllmr batch --cancel"
        )
    return expected


def retry_line(expected: Estimate) -> str:
    """`12 requests got no score earlier; querying them again costs about $0.0010`."""
    price = "an unknown price" if expected.retry_nano_usd is None else f"about ${expected.retry_nano_usd / 1e9:.4f}"
    return f"{expected.failed_earlier} requests got no score earlier; querying them again costs {price}"


@contextlib.contextmanager
def _endpoint(workspace: Workspace, config: LlmConfig, expected: Estimate) -> Iterator[str]:
    if not expected.to_send:
        yield config.base_url or _NOTHING_TO_SEND
        return
    check_needs(config)
    if config.base_url is not None:
        yield config.base_url
        return
    with (
        artifact_files.local_folder(workspace.work_directory) as folder,
        local_server(
            fetch_local_model(os.path.join(workspace.cache_directory, "models"), config.model),
            threads=config.local_server.threads,
            slots=config.slots,
            context=config.local_server.context,
            log_path=os.path.join(folder, "local_server.log"),
        ) as base_url,
    ):
        yield base_url


def _send(workspace: Workspace, plan: str, handler: LlmHandler) -> None:
    with workspace.make_pipeline() as pipeline:
        results = (
            pipeline
            | "ReadPlan" >> beam.io.ReadFromText(plan)
            | "Decode" >> beam.Map(Context.from_json)
            | "AskLlm" >> AskLlm(handler)
        )
        _ = results[SCORES] | "WriteScores" >> beam.io.WriteToTFRecord(
            os.path.join(workspace.output_directory, scores.SCORES_PREFIX), file_name_suffix=".tfrecord.gz"
        )
        _ = results[FAILURES] | "WriteFailures" >> beam.io.WriteToText(
            os.path.join(workspace.output_directory, scores.FAILURES_PREFIX), file_name_suffix=".jsonl.gz"
        )


def _log_replayed(plan: str, config: LlmConfig) -> None:
    """Logs how much of a replayed folder is used; raises NothingToReplay if no context of it is in the train rows."""
    records = records_to_replay(config)
    if records is None:
        return
    used = sum(1 for _ in read_plan(plan))
    if not used:
        raise NothingToReplay(
            f"none of the {len(records)} contexts of llm.replay_table is in the train rows; llm.seed={config.seed} and "
            "data must be those that the table was scored with"
        )
    _logger.info("llm: %d of the %d contexts of llm.replay_table are used", used, len(records))

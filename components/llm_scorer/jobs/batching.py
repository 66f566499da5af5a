"""Scoring by the Batch API: a BatchJob brings the responses into the cache, and `score` then makes the table."""

from collections.abc import Iterator

import apache_beam as beam

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.batch.job import BatchJob, check_batch
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.import_local import import_local
from sllmr.components.llm_scorer.jobs.plan import NOTHING_TO_SCORE, read_plan, write_plan
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.messages import LlmRequest
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.strategies import create_strategy


def batch_job(workspace: Workspace, train_rows: beam.PTransform) -> BatchJob:
    """The job that brings the responses that `score` would request into the cache by the Batch API.

    Args:
        workspace: configuration and folders.
        train_rows: as for `score`.

    Raises:
        LlmError: there is nothing to query the LLM about; the Batch API does not serve what is configured.
    """
    config = workspace.resolved(train_rows)
    check_batch(config)
    check_needs(config)
    import_local(workspace.cache_directory, workspace.store)
    strategy = create_strategy(config)
    plan = write_plan(workspace, train_rows, config)
    if next(read_plan(plan), None) is None:
        raise LlmError(NOTHING_TO_SCORE)
    catalog = read_catalog(workspace.catalog_directory)

    def requests() -> Iterator[LlmRequest]:
        for context in read_plan(plan):
            yield from strategy.requests(context, catalog)

    return BatchJob(config, workspace.cache_directory, workspace.store, requests)

"""What a scoring job would send, cost and reach, without a request."""

import apache_beam as beam

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.cost.forecast import Forecast, forecast
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.import_local import import_local
from sllmr.components.llm_scorer.jobs.plan import NOTHING_TO_SCORE, read_askable, read_plan, write_plan
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy


def forecast_job(workspace: Workspace, train_rows: beam.PTransform) -> list[Forecast]:
    """What `score` would send, cost and reach, without a request; the last forecast is the whole plan.

    The plan in the work directory holds user ids, without which users cannot be counted.

    Args:
        workspace: configuration and folders.
        train_rows: as for `score`.

    Raises:
        LlmError: there is nothing to query the LLM about; what cache_directory keeps cannot be copied into the store.
    """
    import_local(workspace.cache_directory, workspace.store)
    config = workspace.resolved(train_rows)
    strategy = create_strategy(config)
    plan = write_plan(workspace, train_rows, config.model_copy(update={"store_user_ids": True}), count_askable=True)
    contexts = list(read_plan(plan))
    if not contexts:
        raise LlmError(NOTHING_TO_SCORE)
    askable = read_askable(workspace)
    cache = ResponseCache(workspace.store)
    try:
        return forecast(contexts, read_catalog(workspace.catalog_directory), askable, strategy, config, cache)
    finally:
        cache.close()

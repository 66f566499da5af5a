"""Sets llm.budget.pairs if the user has not: by a table's size, or by the train rows. Beam, but no TFX."""

import contextlib
import copy
import glob
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator

import apache_beam as beam

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.config import REPLAY, LlmConfig
from sllmr.components.llm_scorer.contexts.transforms import TO_CHOOSE, TO_DRAW, ContextsToAsk
from sllmr.components.llm_scorer.cost.estimate import Estimate, estimate
from sllmr.components.llm_scorer.cost.pair_budget import PairBudget, bounded, has_bounds
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.llm_scorer.strategies.replay import contexts_to_replay, user_scores_to_replay
from sllmr.components.pair_yield import PairYield
from sllmr.models import artifact_files

SAMPLE_CONTEXTS = 200
"""Contexts whose requests tell what a pair takes."""

_logger = logging.getLogger(__name__)


def with_pairs(
    config: LlmConfig,
    train_rows: beam.PTransform,
    *,
    pair_yield: PairYield | None,
    catalog_directory: str,
    work_directory: str,
    make_pipeline: Callable[[], beam.Pipeline],
) -> LlmConfig:
    """The configuration with budget.pairs set; unchanged if it is set, or if a table of scores by user is replayed.

    Such a table has no limit. Otherwise the number depends on rows and configuration, and not on the response cache: a
    rerun plans the same contexts.

    Args:
        config: resolved.
        train_rows: reads the serialized rows of the train split, and of no other.
        pair_yield: preference pairs of a context; needed only if budget.pairs is None.
        catalog_directory, work_directory, make_pipeline: of the job.
    """
    if config.budget.pairs is not None or user_scores_to_replay(config) is not None:
        return config
    if config.strategy == REPLAY:
        return config.with_pairs(config.candidates.per_context * max(1, contexts_to_replay(config)))
    if pair_yield is None:
        raise ValueError("pair_yield must be set for a configuration without budget.pairs")
    train_positives = sum(item.train_count for item in read_catalog(catalog_directory).values())
    found = PairBudget.unbounded(pair_yield.enough_pairs(train_positives))
    if has_bounds(config):
        sample = _sample(config, found.enough, train_rows, catalog_directory, work_directory, make_pipeline)
        if sample.pairs:
            found = bounded(found.enough, sample, config)
    _logger.log(logging.WARNING if found.bound else logging.INFO, "llm: %s", found)
    return config.with_pairs(found.pairs)


def _sample(
    config: LlmConfig,
    enough: int,
    train_rows: beam.PTransform,
    catalog_directory: str,
    work_directory: str,
    make_pipeline: Callable[[], beam.Pipeline],
) -> Estimate:
    """The size of a plan of at most SAMPLE_CONTEXTS contexts, as if no response were cached."""
    rows = copy.copy(train_rows)  # Beam ties a transform to the first pipeline that it is applied to
    small = config.with_pairs(min(enough, SAMPLE_CONTEXTS * config.candidates.per_context))
    sample = os.path.join(work_directory, f"sample-{uuid.uuid4().hex}")
    with make_pipeline() as pipeline:
        _ = (
            {
                TO_CHOOSE: pipeline | "ReadTrainRows" >> rows,
                TO_DRAW: pipeline | "ReadTrainRowsAgain" >> rows,
            }
            | "ContextsToAsk" >> ContextsToAsk(catalog_directory, small)
            | "Encode" >> beam.Map(Context.to_json)
            | "WriteSample" >> beam.io.WriteToText(os.path.join(sample, "contexts"), file_name_suffix=".gz")
        )
    with tempfile.TemporaryDirectory() as no_responses, contextlib.closing(ResponseCache(no_responses)) as cache:
        catalog = read_catalog(catalog_directory)
        return estimate(_contexts_in(sample), catalog, create_strategy(small), small, cache)


def _contexts_in(directory: str) -> Iterator[Context]:
    for path in artifact_files.matches(os.path.join(glob.escape(directory), "contexts-*.gz")):
        with artifact_files.gzip(path, "rt") as lines:
            yield from map(Context.from_json, lines)

"""The plan of a scoring job: the scoring contexts to query the LLM about, as files in the work directory."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence

import apache_beam as beam

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts import scored_users
from sllmr.components.llm_scorer.contexts.transforms import TO_CHOOSE, TO_DRAW, Askable, ContextsToAsk, CountAskable
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.results import ReplayTableReport
from sllmr.components.llm_scorer.strategies.replay import user_scores_to_replay
from sllmr.models import artifact_files

PLAN = "contexts"
PLAN_SUFFIX = ".jsonl.gz"
PLAN_SHARDS = "-*" + PLAN_SUFFIX
CONTEXTS_PER_SHARD = 1000
NOTHING_TO_SCORE = (
    "there is nothing to query the LLM about: no positive row of the train split has an item with a title in its "
    "history and two candidates; check the titles of data.items"
)
_ASKABLE = "askable.json"
_TALLY = "replay_table.json"
_logger = logging.getLogger(__name__)


def write_plan(
    workspace: Workspace, train_rows: beam.PTransform, config: LlmConfig, *, count_askable: bool = False
) -> str:
    """Selects the scoring contexts that the budget of pairs allows, and writes them to the work directory.

    Args:
        workspace: where the catalog is and where the files go.
        train_rows: reads serialized rows of the train split.
        config: resolved.
        count_askable: whether to write the number of contexts that could be scored, too.

    Returns:
        The pattern of the files with the contexts.
    """
    prefix = os.path.join(workspace.work_directory, PLAN)
    by_user = user_scores_to_replay(config) is not None
    with workspace.make_pipeline() as pipeline:
        rows = pipeline | "ReadTrainRows" >> train_rows
        if by_user:
            contexts = _contexts_of_scored_users(workspace, pipeline, rows, config)
        else:
            contexts = {
                TO_CHOOSE: rows,
                TO_DRAW: pipeline | "ReadTrainRowsAgain" >> train_rows,
            } | "ContextsToAsk" >> ContextsToAsk(workspace.catalog_directory, config)
        _ = contexts | "WritePlan" >> WriteContexts(prefix)
        if count_askable:
            _ = (
                rows
                | "CountAskable" >> CountAskable(workspace.catalog_directory, config)
                | "EncodeAskable" >> beam.Map(_encode_askable)
                | "WriteAskable"
                >> beam.io.WriteToText(os.path.join(workspace.work_directory, _ASKABLE), shard_name_template="")
            )
    if by_user:
        report_user_scores(workspace, config, tell=True)
    return prefix + PLAN_SHARDS


def read_plan(pattern: str) -> Iterator[Context]:
    """The contexts in the files of a pattern."""
    for path in artifact_files.matches(pattern):
        with artifact_files.gzip(path, "rt") as lines:
            yield from map(Context.from_json, lines)


def write_shards(workspace: Workspace, contexts: Sequence[Context], name: str) -> None:
    """Adds contexts to the plan, in files of the size that `write_plan` makes; `name` tells them from its own."""
    for first in range(0, len(contexts), CONTEXTS_PER_SHARD):
        path = os.path.join(workspace.work_directory, f"{PLAN}-{name}-{first}{PLAN_SUFFIX}")
        with artifact_files.gzip(path, "wt") as lines:
            lines.writelines(context.to_json() + "\n" for context in contexts[first : first + CONTEXTS_PER_SHARD])


def planned_contexts(workspace: Workspace) -> Iterator[Context]:
    """The contexts that the last job in the work directory planned."""
    return read_plan(os.path.join(workspace.work_directory, PLAN) + PLAN_SHARDS)


def read_askable(workspace: Workspace) -> Askable:
    """What `write_plan` counted."""
    with artifact_files.open(os.path.join(workspace.work_directory, _ASKABLE)) as file:
        return Askable(**json.load(file))


def report_user_scores(workspace: Workspace, config: LlmConfig, *, tell: bool = False) -> ReplayTableReport:
    """What the plan uses of a table of scores by user.

    Raises:
        LlmError: it uses no row of it.
    """
    table = user_scores_to_replay(config)
    assert table is not None
    with artifact_files.open(os.path.join(workspace.work_directory, _TALLY)) as file:
        report = scored_users.report_of(table, json.load(file))
    scored_users.check_report(report, table, read_catalog(workspace.catalog_directory))
    if tell:
        scored_users.tell(report, _logger)
    return report


class WriteContexts(beam.PTransform):
    """Context -> files of JSON lines. Small ones: workers take one file each, without a shuffle that a runner might
    keep in memory.
    """

    def __init__(self, prefix: str):
        super().__init__()
        self._prefix = prefix

    def expand(self, contexts: beam.PCollection):
        return (
            contexts
            | "Encode" >> beam.Map(Context.to_json)
            | "Write"
            >> beam.io.WriteToText(self._prefix, file_name_suffix=PLAN_SUFFIX, max_records_per_shard=CONTEXTS_PER_SHARD)
        )


def _contexts_of_scored_users(
    workspace: Workspace, pipeline: beam.Pipeline, rows: beam.PCollection, config: LlmConfig
) -> beam.PCollection:
    if workspace.held_out_rows is None:
        raise ValueError("held_out_rows must be set to replay a table of scores by user")
    made = {
        scored_users.TRAIN: rows,
        scored_users.HELD_OUT: pipeline | "ReadHeldOutRows" >> workspace.held_out_rows,
    } | "ContextsOfScoredUsers" >> scored_users.ContextsOfScoredUsers(workspace.catalog_directory, config)
    _ = (
        made[scored_users.TALLY]
        | "EncodeTally" >> beam.Map(scored_users.encode_tally)
        | "WriteTally" >> beam.io.WriteToText(os.path.join(workspace.work_directory, _TALLY), shard_name_template="")
    )
    return made[scored_users.CONTEXTS]


def _encode_askable(askable: Askable) -> str:
    return json.dumps(dataclasses.asdict(askable))

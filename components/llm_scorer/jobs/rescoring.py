"""Brings an earlier score table up to date; see contexts/rescoring.py for the choice of what is scored again."""

import glob
import logging
import os
import time
from collections import Counter

import apache_beam as beam

from sllmr.components import scores
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts.candidates import number_of_contexts
from sllmr.components.llm_scorer.contexts.rescoring import (
    CONTEXTS,
    FATES,
    GONE,
    KEPT,
    REASONS,
    Fate,
    Replan,
    RowsOfOtherUsers,
    check_table,
    copy_failures,
    read_fates,
    scored_again,
)
from sllmr.components.llm_scorer.contexts.transforms import TO_CHOOSE, TO_DRAW, ContextsToAsk
from sllmr.components.llm_scorer.cost.forecast import users_first
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.accounting import Kept, close, count_failures
from sllmr.components.llm_scorer.jobs.plan import (
    PLAN,
    PLAN_SHARDS,
    WriteContexts,
    read_plan,
    write_shards,
)
from sllmr.components.llm_scorer.jobs.scoring import score_plan
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.quality.drift import drift_report
from sllmr.components.llm_scorer.results import RescoringReport, ScoringLedger
from sllmr.components.llm_scorer.strategies.replay import user_scores_to_replay

_OTHERS = "others"
_logger = logging.getLogger(__name__)


def rescore(workspace: Workspace, train_rows: beam.PTransform, table: str, max_age_days: float | None) -> ScoringLedger:
    """Brings an earlier table up to date: keeps the scores that still hold, scores the other contexts again.

    Slots that the table leaves free in budget.pairs go to users who are not in it. Without budget.pairs, a table that
    holds more contexts than the data require is not cut.

    Args:
        workspace: configuration and folders.
        train_rows: as for `score`.
        table: an LlmScores folder of this seed; it is only read.
        max_age_days: scores that are older are scored again; None keeps them.

    Returns:
        The ledger of the whole new table; requests, tokens and money are those of this run alone.

    Raises:
        LlmError: as `score`; the table cannot be used, or holds more than budget.pairs.
    """
    started = time.monotonic()
    config = workspace.resolved(train_rows)
    if user_scores_to_replay(config) is not None:
        raise LlmError(
            "llm.replay_table must be a table of contexts to rescore, got one of scores by user, which is read "
            "whole in every run; run sllmr score"
        )
    check_table(table, config)
    if max_age_days is not None and max_age_days <= 0:
        raise LlmError(f"max_age_days must be above 0, got {max_age_days:g}; leave it out to keep scores of any age")
    not_before = 0 if max_age_days is None else int(time.time() - max_age_days * 86400)
    fates = _replan(workspace, train_rows, table, config, not_before)
    counts = Counter(fate.fate for fate in fates)
    again = {reason: counts[reason] for reason in REASONS}
    standing = counts[KEPT] + sum(again.values())
    places = number_of_contexts(config.planned_pairs, config.candidates.per_context) - standing
    if places < 0 and workspace.config.budget.pairs is not None:
        raise LlmError(
            f"budget.pairs must hold the {standing} contexts of the table, got places for {places + standing}; "
            "raise llm.budget.pairs to that of the table"
        )
    _plan_others(workspace, max(0, places))
    plan = os.path.join(workspace.work_directory, PLAN) + PLAN_SHARDS
    new = sum(1 for _ in read_plan(plan)) - sum(again.values())
    _logger.info(
        "llm: of the table's %d contexts %d are kept, %d scored again and %d gone; %d new ones",
        len(fates),
        counts[KEPT],
        sum(again.values()),
        counts[GONE],
        new,
    )
    kept = _take_over(workspace, table, fates)
    book = score_plan(workspace, plan, config, kept=kept, not_before=not_before)
    report = RescoringReport(
        kept=counts[KEPT],
        scored_again=again,
        new=new,
        gone=counts[GONE],
        drift=drift_report(scored_again(table, workspace.output_directory, fates)),
    )
    return close(workspace, book.model_copy(update={"rescore": report}), config, started, kept)


def _replan(
    workspace: Workspace, train_rows: beam.PTransform, table: str, config: LlmConfig, not_before: int
) -> list[Fate]:
    """Writes the plan, the kept records, and the contexts of users outside the table; returns what becomes of each
    context of the table.
    """
    prefix = os.path.join(workspace.work_directory, PLAN)
    with workspace.make_pipeline() as pipeline:
        records = (
            pipeline
            | "ReadTable" >> beam.io.ReadFromTFRecord(scores.scores_pattern(table))
            | "ParseRecords" >> beam.Map(scores.ScoreRecord.parse)
        )
        inputs = {"rows": pipeline | "ReadTrainRows" >> train_rows, "records": records}
        inputs_again = {"rows": pipeline | "ReadTrainRowsAgain" >> train_rows, "records": records}
        replanned = inputs | "Replan" >> Replan(workspace.catalog_directory, config, not_before)
        _ = replanned[CONTEXTS] | "WritePlan" >> WriteContexts(f"{prefix}-again")
        _ = (
            {
                TO_CHOOSE: inputs | "RowsOfOtherUsers" >> RowsOfOtherUsers(config.seed),
                TO_DRAW: inputs_again | "RowsOfOtherUsersAgain" >> RowsOfOtherUsers(config.seed),
            }
            | "ContextsToAsk" >> ContextsToAsk(workspace.catalog_directory, config)
            | "WriteOthers" >> WriteContexts(os.path.join(workspace.work_directory, _OTHERS))
        )
        _ = (
            replanned[KEPT]
            | "Serialize" >> beam.Map(scores.ScoreRecord.serialize)
            | "WriteKept"
            >> beam.io.WriteToTFRecord(
                os.path.join(workspace.output_directory, f"{scores.SCORES_PREFIX}-kept"),
                file_name_suffix=".tfrecord.gz",
                # When Beam writes the other scores, it deletes files that look like its own shards (-*-of-*).
                shard_name_template="-SSSSS",
            )
        )
        _ = replanned[FATES] | "WriteFates" >> beam.io.WriteToText(
            os.path.join(workspace.work_directory, FATES), file_name_suffix=".jsonl"
        )
    fates = read_fates(os.path.join(glob.escape(workspace.work_directory), FATES) + "-*.jsonl")
    if all(fate.fate == GONE for fate in fates):
        raise LlmError(
            f"none of the table's {len(fates)} contexts is of a user of today's train rows; llm.seed={config.seed} "
            "and data.interactions must be those that the table was scored with"
        )
    return fates


def _plan_others(workspace: Workspace, contexts: int) -> None:
    """Adds up to `contexts` contexts of users who are not in the table to the plan."""
    others = users_first(read_plan(os.path.join(workspace.work_directory, _OTHERS) + PLAN_SHARDS))
    write_shards(workspace, others[:contexts], "new")


def _take_over(workspace: Workspace, table: str, fates: list[Fate]) -> Kept:
    """Brings the failures of kept contexts along; counts what is kept."""
    ids = {fate.context_id for fate in fates if fate.fate == KEPT}
    copy_failures(table, workspace.output_directory, ids)
    failures = count_failures(workspace.output_directory)
    del failures[messages.UNKNOWN_ITEM]
    contexts = calibration_contexts = pairs = 0
    for record in scores.read_scores(workspace.output_directory):
        contexts, calibration_contexts = contexts + 1, calibration_contexts + bool(record.target_item_id)
        pairs += len(record.item_ids)
    return Kept(
        contexts=contexts,
        calibration_contexts=calibration_contexts,
        pairs=pairs + failures.total(),
        failures=failures,
    )

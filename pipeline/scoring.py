"""The scoring step alone, outside TFX: what it would cost (`sllmr plan`), the step itself (`sllmr score`), fetching
its responses by the Batch API (`sllmr batch`), and updating its table to later rows (`sllmr rescore`).

All read the two tables with InteractionsExampleGen's transforms, so contexts, candidates and cache keys are those of a
whole run with the same configuration.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import apache_beam as beam
from rich.console import Console

from sllmr.components import scores
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, NON_POSITIVES_PREFIX
from sllmr.components.interactions_example_gen import report, rows
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.interactions_example_gen.transforms import (
    PrepareInteractions,
    WriteCatalog,
    WriteItemsOfUsers,
    WriteReport,
)
from sllmr.components.item_embedder.job import EmbeddingJob
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.batching import batch_job
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.plan import planned_contexts
from sllmr.components.llm_scorer.jobs.rescoring import rescore as rescore_table
from sllmr.components.llm_scorer.jobs.scoring import score as score_rows
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.quality.staleness import staleness
from sllmr.components.llm_scorer.results import BatchReport, ScoringLedger
from sllmr.components.llm_scorer.strategies.replay import user_scores_to_replay
from sllmr.models.item_vectors import VECTORS_FILE
from sllmr.pipeline.beam_config import check_runner
from sllmr.pipeline.config import Config, load_config
from sllmr.pipeline.console import print_scores, run_log
from sllmr.pipeline.datasets.fetch import fetch_missing
from sllmr.pipeline.folder_lock import folder_lock, without_wildcards
from sllmr.pipeline.inputs import check_inputs
from sllmr.pipeline.scoring_tables import ledger_table, print_batch_report, print_embedding_plan, print_plan
from sllmr.pipeline.stopped import what_is_kept

WORK_DIRECTORY = "work"
FAILED_DIRECTORY = "failed"
"""In WORK_DIRECTORY: the table of a job that failed, with its failures and ledger, until the next job."""

BATCH_FILE = "batch.json"
_NO_RETRY = " --no-retry-failed"
_ROWS = "train"
_HELD_OUT_ROWS = "held_out"
_VECTORS = "item_vectors"


def plan(config_file: pathlib.Path, contexts_file: pathlib.Path | None, log_file: pathlib.Path) -> None:
    """Prints requests, cost, time and reach of scoring, without sending a request.

    Args:
        config_file: YAML, see pipeline.config.
        contexts_file: gets the planned contexts as JSON lines, for scoring by other means and `replay`; None: nowhere.
        log_file: gets every log record.

    Raises:
        ConfigError: the configuration cannot be used.
        DataError: the tables break a rule.
        LlmError: there is nothing to score.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    # The rows and this plan hold user ids, so both are deleted once the numbers are known.
    with tempfile.TemporaryDirectory(prefix="sllmr-plan-") as directory, run_log(log_file, console, steps=0):
        work = pathlib.Path(directory)
        train_rows = _prepare(config, work, console)
        vectors = _embedding_job(config, work).estimate() if config.uses_item_vectors else None
        if vectors is None or not vectors.to_send:
            _embed(config, work, console)
        workspace = _workspace(config, work, output=work)
        curve = forecast_job(workspace, train_rows)
        train_positives = read_report(work).splits["train"].positives
        if contexts_file is not None:
            _write_contexts(planned_contexts(workspace), contexts_file, store_user_ids=config.llm.store_user_ids)
    if vectors is not None:
        print_embedding_plan(console, config, vectors)
    print_plan(console, config, curve, train_positives)
    if contexts_file is not None:
        console.print(f"Contexts   {contexts_file}", soft_wrap=True)


def score(
    config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path, *, retry_failed: bool = True
) -> ScoringLedger:
    """Scores into `output`, laid out as components/scores.py says.

    An earlier table there is replaced once the new one is complete and within llm.max_failure_rate; else it stays, and
    what failed is in work/failed. Responses are in the cache, and the same command resumes. Waits for another process
    that works in the same folder.

    Args:
        config_file: YAML, see pipeline.config.
        output: an absolute folder.
        log_file: gets every log record; the terminal gets progress and the ledger.
        retry_failed: whether requests whose earlier responses gave no score are queried again.

    Returns:
        The ledger.

    Raises:
        ConfigError, DataError, LlmError: as `plan`, or the endpoint refuses, or too much failed.
    """
    again = shlex.join(["sllmr", "score", "--config", str(config_file), "--output", str(output)])
    if not retry_failed:
        again += _NO_RETRY

    def run(workspace: Workspace, train_rows: beam.PTransform) -> ScoringLedger:
        return score_rows(dataclasses.replace(workspace, retry_failed=retry_failed), train_rows)

    return _write_table(config_file, output, log_file, again, run)


def rescore(
    config_file: pathlib.Path,
    table: pathlib.Path,
    output: pathlib.Path,
    max_age_days: float | None,
    log_file: pathlib.Path,
    *,
    retry_failed: bool = True,
) -> ScoringLedger:
    """Writes the score table in `table`, brought up to date with today's rows, to `output`. See jobs/rescoring.py.

    Args:
        config_file: YAML, see pipeline.config; model, strategy and seed those of the table.
        table: an absolute folder, as score or a run's LlmScorer wrote it; it stays as it is.
        output: another absolute folder.
        max_age_days: scores that are older are scored again; None for llm.max_age_days.
        log_file, retry_failed: as for `score`.

    Returns:
        The ledger.

    Raises:
        ConfigError, DataError, LlmError: as `score`, or the table does not fit.
    """
    if output == table:
        # What fails or exceeds the budget has no score in the new table, so the old table must be kept.
        raise LlmError(f"--output must be another folder than --scores, got {output} for both; name a new one")
    words = ["--config", str(config_file), "--scores", str(table), "--output", str(output)]
    again = shlex.join(["sllmr", "rescore", *words])
    if max_age_days is not None:
        again += f" --max-age-days {max_age_days:g}"
    if not retry_failed:
        again += _NO_RETRY

    def run(workspace: Workspace, train_rows: beam.PTransform) -> ScoringLedger:
        days = workspace.config.max_age_days if max_age_days is None else max_age_days
        return rescore_table(dataclasses.replace(workspace, retry_failed=retry_failed), train_rows, str(table), days)

    return _write_table(config_file, output, log_file, again, run)


def _write_table(
    config_file: pathlib.Path,
    output: pathlib.Path,
    log_file: pathlib.Path,
    again: str,
    run: Callable[[Workspace, beam.PTransform], ScoringLedger],
) -> ScoringLedger:
    """Runs a job whose table goes to `output` once it has succeeded; `again` is the command that resumes."""
    console = Console(highlight=False)
    config = load_config(config_file)
    check_needs(config.llm)
    with folder_lock(output, console):
        work = without_wildcards(output) / WORK_DIRECTORY
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        table = work / "scores"
        table.mkdir()
        with run_log(log_file, console, steps=0):
            try:
                train_rows = _prepare(config, work, console)
                _embed(config, work, console)
                book = run(_workspace(config, work, output=table), train_rows)
            except BaseException as error:
                if (table / scores.LEDGER_FILE).exists():
                    table.rename(work / FAILED_DIRECTORY)
                    console.print(f"Failed     {output / WORK_DIRECTORY / FAILED_DIRECTORY}", soft_wrap=True)
                console.print(
                    what_is_kept(error, config.store or config.cache_dir, again),
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
                raise
        scores.publish(str(table), str(output))
        shutil.rmtree(work)
    console.print(ledger_table(book))
    print_scores(console, book, staleness(book, time.time()), config.llm.max_age_days)
    console.print(f"Scores     {output}", soft_wrap=True)
    return book


def batch(
    config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path, *, wait: bool, cancel: bool
) -> BatchReport:
    """Fetches responses into the cache by the Batch API; `score` with the same configuration then writes their table.

    Args:
        config_file: YAML, see pipeline.config.
        output: an absolute folder; gets the report as batch.json.
        log_file: gets every log record; the terminal gets progress and the report.
        wait: whether to wait until all batches have ended; if not, only submits, and fetches what is ready.
        cancel: whether to cancel the batches in flight, fetch their responses, and submit nothing.

    Returns:
        The report, see BatchJob.run.

    Raises:
        ConfigError, DataError, LlmError: as `plan`, or the Batch API cannot serve the configuration, or refuses.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    options = shlex.join(["--config", str(config_file), "--output", str(output)])
    with (
        folder_lock(output, console),
        tempfile.TemporaryDirectory(prefix="sllmr-batch-") as directory,
        run_log(log_file, console, steps=0),
    ):
        work = pathlib.Path(directory)
        try:
            train_rows = _prepare(config, work, console)
            _embed(config, work, console)
            job = batch_job(_workspace(config, work, output=work), train_rows)
            with contextlib.closing(job):
                book = job.cancel() if cancel else job.run(wait=wait)
        except BaseException:
            console.print(
                f"Stopped. What is with the Batch API stays there; to resume: sllmr batch {options}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
            raise
        (output / BATCH_FILE).write_text(book.model_dump_json(indent=2), encoding="utf-8")
    print_batch_report(console, book, options, cancelled=cancel)
    if book.refusal:
        raise LlmError(book.refusal)
    return book


def _embedding_job(config: Config, work: pathlib.Path) -> EmbeddingJob:
    return EmbeddingJob(
        config=config.item_vectors,
        catalog_directory=str(work / "catalog"),
        cache_directory=config.cache_dir,
        store_url=config.store,
        work_directory=str(work),
        output_directory=str(work / _VECTORS),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(config.beam.pipeline_args)),
    )


def _embed(config: Config, work: pathlib.Path, console: Console) -> None:
    """Makes the vectors that the scorer reads, if it reads any."""
    if config.scorer_reads_item_vectors:
        console.print("Embedding the items' texts", style="dim")
        _embedding_job(config, work).run()


def _workspace(config: Config, work: pathlib.Path, *, output: pathlib.Path) -> Workspace:
    vectors = work / _VECTORS / VECTORS_FILE
    return Workspace(
        config=config.llm,
        catalog_directory=str(work / "catalog"),
        cache_directory=config.cache_dir,
        store_url=config.store,
        work_directory=str(work),
        output_directory=str(output),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(config.beam.pipeline_args)),
        item_vectors_file=str(vectors) if vectors.exists() else None,
        pair_yield=config.pair_yield,
        held_out_rows=beam.io.ReadFromTFRecord(str(work / _HELD_OUT_ROWS) + "-*.tfrecord.gz", validate=False),
    )


def _prepare(config: Config, work: pathlib.Path, console: Console) -> beam.PTransform:
    """Writes the train rows and the catalog to `work`; returns a transform that reads the rows.

    The other rows are written only if a table of scores by user is replayed, to leave their items out of it: see
    Workspace.held_out_rows.
    """
    fetch_missing(config, console)
    check_inputs(config)
    check_runner(config.beam)
    by_user = user_scores_to_replay(config.llm) is not None
    console.print("Reading the tables", style="dim")
    with _workspace(config, work, output=work).make_pipeline() as pipeline:
        _write_rows(pipeline, config.data, work, by_user=by_user)
    data = read_report(work)
    report.check_report(data, config.data)
    for notice in data.notices:
        console.print(f"data: {notice}", style="yellow", markup=False, soft_wrap=True)
    return beam.io.ReadFromTFRecord(str(work / _ROWS) + "-*.tfrecord.gz")


def _write_rows(pipeline: beam.Pipeline, config: DataConfig, work: pathlib.Path, *, by_user: bool) -> None:
    prepared = pipeline | "PrepareInteractions" >> PrepareInteractions(config)
    _ = prepared[rows.TRAIN] | "WriteTrain" >> beam.io.WriteToTFRecord(
        str(work / _ROWS), file_name_suffix=".tfrecord.gz"
    )
    if by_user:
        _ = (
            (prepared[rows.VALID], prepared[rows.TEST])
            | "HeldOut" >> beam.Flatten()
            | "WriteHeldOut" >> beam.io.WriteToTFRecord(str(work / _HELD_OUT_ROWS), file_name_suffix=".tfrecord.gz")
        )
        _ = prepared["non_positives"] | "WriteNonPositives" >> WriteItemsOfUsers(
            str(work / "catalog"), NON_POSITIVES_PREFIX
        )
    _ = prepared["earlier_positives"] | "WriteEarlierPositives" >> WriteItemsOfUsers(
        str(work / "catalog"), EARLIER_POSITIVES_PREFIX
    )
    _ = prepared["catalog"] | "WriteCatalog" >> beam.ParDo(WriteCatalog(str(work / "catalog")))
    _ = prepared["report"] | "WriteReport" >> beam.ParDo(WriteReport(str(work)))


def _write_contexts(contexts: Iterator[Context], file: pathlib.Path, *, store_user_ids: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as lines:
        for context in contexts:
            shown = context if store_user_ids else dataclasses.replace(context, user_id="")
            lines.write(shown.to_json() + "\n")

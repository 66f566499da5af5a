"""The scoring step alone, outside TFX: what it would cost (`sllmr plan`), the step itself (`sllmr score`), its answers
by the Batch API (`sllmr batch`), and its repetition on later rows (`sllmr rescore`).

All read the two tables with InteractionsExampleGen's transforms, so contexts, candidates and cache keys are those of a
whole run with the same configuration.
"""

import contextlib
import dataclasses
import functools
import glob
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from rich.console import Console
from rich.table import Table

from components import scores
from components.interactions_example_gen import report, rows
from components.interactions_example_gen.config import DataConfig
from components.interactions_example_gen.tables import check_tables
from components.interactions_example_gen.transforms import PrepareInteractions, WriteCatalog, WriteReport
from components.llm_scorer.config import EMBEDDING, LISTWISE, YES_NO, LlmError
from components.llm_scorer.estimate import expected_seconds
from components.llm_scorer.exchange import Context
from components.llm_scorer.forecast import Forecast
from components.llm_scorer.job import ScoringJob
from components.llm_scorer.staleness import staleness
from pipeline.config import Config, load_config
from pipeline.console import print_scores, run_log
from pipeline.datasets.fetch import fetch_missing

WORK_DIRECTORY = "work"
BATCH_FILE = "batch.json"
_ROWS = "train"


def plan(config_file: pathlib.Path, contexts_file: pathlib.Path | None, log_file: pathlib.Path) -> None:
    """Prints what scoring would ask, cost, take and reach, without a call.

    Args:
        config_file: YAML, see pipeline.config.
        contexts_file: gets the planned contexts as JSON lines, for scoring by other means and `replay`; None: nowhere.
        log_file: gets every log record.

    Raises:
        ConfigError: the configuration cannot be used.
        DataError: the tables break a rule.
        LlmError: there is nothing to ask about.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    # User ids are in the rows and in this plan: it goes when the numbers are told.
    with tempfile.TemporaryDirectory(prefix="sllmr-plan-") as directory, run_log(log_file, console, steps=0):
        work = pathlib.Path(directory)
        job = _job(config, work, output=work)
        curve = job.forecast(_prepare(config, work, console))
        if contexts_file is not None:
            _write_contexts(job.planned_contexts(), contexts_file, store_user_ids=config.llm.store_user_ids)
    _print_plan(console, config, curve)
    if contexts_file is not None:
        console.print(f"Contexts   {contexts_file}", soft_wrap=True)


def score(config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path) -> dict[str, Any]:
    """Scores into `output`, laid out as components/scores.py says.

    An earlier table there is replaced once the new one is complete. Whatever ends the job, every answer so far is in
    the cache, and the same command goes on.

    Args:
        config_file: YAML, see pipeline.config.
        output: an absolute folder.
        log_file: gets every log record; the terminal gets progress and the ledger.

    Returns:
        The ledger.

    Raises:
        ConfigError, DataError, LlmError: as `plan`, or the endpoint refuses, or too much failed.
    """
    again = f"sllmr score --config {config_file} --output {output}"
    return _write_table(config_file, output, log_file, again, lambda job, train_rows: job.run(train_rows))


def rescore(
    config_file: pathlib.Path,
    table: pathlib.Path,
    output: pathlib.Path,
    max_age_days: float | None,
    log_file: pathlib.Path,
) -> dict[str, Any]:
    """Brings the score table in `table` up to today's rows, as a whole new one in `output`. See ScoringJob.rescore.

    Args:
        config_file: YAML, see pipeline.config; model, strategy and seed those of the table.
        table: an absolute folder, as score or a run's LlmScorer wrote it; it stays as it is.
        output: another absolute folder.
        max_age_days: scores that are older are asked again; None for llm.max_age_days.
        log_file: as for `score`.

    Returns:
        The ledger.

    Raises:
        ConfigError, DataError, LlmError: as `score`, or the table does not fit.
    """
    if output == table:
        # What fails or is beyond the budget has no score in the new table: the old one must outlive it.
        raise LlmError(f"--output must be another folder than --scores, got {output} for both; name a new one")
    again = f"sllmr rescore --config {config_file} --scores {table} --output {output}"
    if max_age_days is not None:
        again += f" --max-age-days {max_age_days:g}"

    def run(job: ScoringJob, train_rows: beam.PTransform) -> dict[str, Any]:
        return job.rescore(train_rows, str(table), job.config.max_age_days if max_age_days is None else max_age_days)

    return _write_table(config_file, output, log_file, again, run)


def _write_table(
    config_file: pathlib.Path,
    output: pathlib.Path,
    log_file: pathlib.Path,
    again: str,
    run: Callable[[ScoringJob, beam.PTransform], dict[str, Any]],
) -> dict[str, Any]:
    """Runs a job whose table goes to `output` once it is complete; `again` is the command that goes on."""
    console = Console(highlight=False)
    config = load_config(config_file)
    config.llm.check_needs()
    work = output / WORK_DIRECTORY
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    table = work / "scores"
    table.mkdir()
    with run_log(log_file, console, steps=0):
        try:
            book = run(_job(config, work, output=table), _prepare(config, work, console))
        except BaseException:
            console.print(
                f"Stopped. Every answer so far is kept in {config.cache_dir}; to go on: {again}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
            raise
        finally:
            # Also where too many pairs failed: their reasons are in it.
            if (table / scores.LEDGER_FILE).exists():
                _publish(table, output)
    shutil.rmtree(work)
    console.print(ledger_table(book))
    print_scores(console, book, staleness(book, time.time()), config.llm.max_age_days)
    console.print(f"Scores     {output}", soft_wrap=True)
    return book


def batch(
    config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path, *, wait: bool, cancel: bool
) -> dict[str, Any]:
    """Brings answers into the cache by the Batch API; `score` with the same configuration then makes the table of them.

    Args:
        config_file: YAML, see pipeline.config.
        output: an absolute folder; gets the report as batch.json.
        log_file: gets every log record; the terminal gets progress and the report.
        wait: until all batches have ended; else only hands over, and fetches what is ready.
        cancel: stops the batches under way, fetches what they answered, and hands nothing over.

    Returns:
        The report, see BatchJob.run.

    Raises:
        ConfigError, DataError, LlmError: as `plan`, or the Batch API cannot ask what is configured, or refuses.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    options = f"--config {config_file} --output {output}"
    with tempfile.TemporaryDirectory(prefix="sllmr-batch-") as directory, run_log(log_file, console, steps=0):
        work = pathlib.Path(directory)
        try:
            job = _job(config, work, output=work).batch_job(_prepare(config, work, console))
            with contextlib.closing(job):
                book = job.cancel() if cancel else job.run(wait=wait)
        except BaseException:
            console.print(
                f"Stopped. What is with the Batch API stays there; to go on: sllmr batch {options}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
            raise
    (output / BATCH_FILE).write_text(json.dumps(book, indent=2), encoding="utf-8")
    _print_batch_report(console, book, options, cancelled=cancel)
    if book["refusal"]:
        raise LlmError(book["refusal"])
    return book


def _print_batch_report(console: Console, book: dict[str, Any], options: str, *, cancelled: bool) -> None:
    table = Table(title=f"{book['model']} by {book['strategy']}, Batch API", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests", f"{book['requests']:,}")
    table.add_row("answered", f"{book['answered']:,}, {book['answered_by_batch']:,} of them by batch")
    table.add_row("under way", f"{book['under_way']:,} in {len(book['batches_under_way'])} batches")
    for reason, count in book["left"].items():
        table.add_row(f"not tried again: {reason}", f"{count:,}")
    table.add_row("prompt tokens by batch", f"{book['tokens']['prompt']:,}")
    table.add_row("completion tokens by batch", f"{book['tokens']['completion']:,}")
    table.add_row("cost by batch", _dollars(book["cost_usd"]))
    table.add_row("cost of other cached answers", _dollars(book["cost_of_live_answers_usd"]))
    if book["under_way"]:
        table.add_row("under way, at most", _dollars(book["set_aside_usd"]))
    console.print(table)
    missing = book["requests"] - book["answered"]
    if book["under_way"]:
        lines = [f"To fetch what is under way: sllmr batch {options}"]
    else:
        lines = []
        if book["not_handed_over"] and not book["refusal"]:
            why = (
                "as you stopped them"
                if cancelled
                else "as llm.budget has no room for them: raise it and run this again"
            )
            lines.append(f"{book['not_handed_over']:,} requests were not handed over, {why}")
        if missing:
            lines.append(f"sllmr score asks the {missing:,} missing ones live, at the price that sllmr plan tells")
        lines.append(f"For the table: sllmr score {options}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def ledger_table(book: dict[str, Any]) -> Table:
    """The ledger of a scoring job, as ledger.json holds it."""
    table = Table(title=f"{book['model']} by {book['strategy']} ({book['prompt_version']})", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    what = "pairs of the table" if "rescore" in book else "pairs asked about"
    table.add_row(what, f"{book['requested']:,} in {book['contexts']:,} contexts")
    if "rescore" in book:
        part = book["rescore"]
        reasons = ", ".join(f"{count:,} by {reason}" for reason, count in part["asked_again"].items() if count)
        table.add_row("contexts kept", f"{part['kept']:,} ({book['kept']:,} pairs)")
        table.add_row("contexts asked again", f"{sum(part['asked_again'].values()):,}{reasons and f' ({reasons})'}")
        table.add_row("contexts new, gone", f"{part['new']:,}, {part['gone']:,}")
    table.add_row("scored", f"{book['scored']:,}")
    for reason, count in book["failures"].items():
        table.add_row(f"failed: {reason}", f"{count:,}")
    if book["unknown_items_in_answers"]:
        table.add_row("answered without being asked about", f"{book['unknown_items_in_answers']:,}")
    calls, tokens = book["calls"], book["tokens"]
    table.add_row("calls sent", f"{calls['sent']:,}, {calls['failed']:,} more failed")
    table.add_row("repeats of calls", f"{calls['repeated']:,}")
    if book["pushback"]["times"]:
        fewest, most = book["pushback"]["fewest_at_once"], book["pushback"]["concurrency"]
        table.add_row("pushed back", f"{book['pushback']['times']:,} times, down to {fewest} of {most} calls at once")
    table.add_row("answered by the cache", f"{calls['cached']:,}")
    table.add_row("prompt tokens", f"{tokens['prompt']:,}, {tokens['cached_prompt']:,} cached by the server")
    table.add_row("completion tokens", f"{tokens['completion']:,}")
    table.add_row("cost of this run", _dollars(book["cost_usd"]))
    table.add_row("cost of cached answers, earlier", _dollars(book["cost_of_cached_answers_usd"]))
    if book["latency_s"]:
        table.add_row("latency", ", ".join(f"{name} {value:.2f} s" for name, value in book["latency_s"].items()))
    table.add_row("time", f"{book['seconds']:.0f} s")
    return table


def _job(config: Config, work: pathlib.Path, *, output: pathlib.Path) -> ScoringJob:
    return ScoringJob(
        config=config.llm,
        catalog_directory=str(work / "catalog"),
        cache_directory=config.cache_dir,
        work_directory=str(work),
        output_directory=str(output),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(config.beam.pipeline_args)),
    )


def _prepare(config: Config, work: pathlib.Path, console: Console) -> beam.PTransform:
    """Writes the train rows and the catalogue to `work`; returns what reads the rows."""
    fetch_missing(config, console)
    check_tables(config.data)
    console.print("Reading the tables", style="dim")
    with _job(config, work, output=work).make_pipeline() as pipeline:
        _write_rows(pipeline, config.data, work)
    with open(work / report.FILE_NAME, encoding="utf-8") as file:
        report.check_report(json.load(file), config.data)
    return beam.io.ReadFromTFRecord(str(work / _ROWS) + "-*.tfrecord.gz")


def _write_rows(pipeline: beam.Pipeline, config: DataConfig, work: pathlib.Path) -> None:
    prepared = pipeline | "PrepareInteractions" >> PrepareInteractions(config)
    _ = prepared[rows.TRAIN] | "WriteTrain" >> beam.io.WriteToTFRecord(
        str(work / _ROWS), file_name_suffix=".tfrecord.gz"
    )
    _ = prepared["catalog"] | "WriteCatalog" >> beam.ParDo(WriteCatalog(str(work / "catalog")))
    _ = prepared["report"] | "WriteReport" >> beam.ParDo(WriteReport(str(work)))


def _publish(table: pathlib.Path, output: pathlib.Path) -> None:
    """Moves a complete table in place of an earlier one."""
    for prefix in (scores.SCORES_PREFIX, scores.FAILURES_PREFIX):
        for old in glob.glob(os.path.join(glob.escape(str(output)), prefix + "-*.gz")):
            os.unlink(old)
    for file in sorted(table.iterdir()):
        os.replace(file, output / file.name)


def _write_contexts(contexts: Iterator[Context], file: pathlib.Path, *, store_user_ids: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8") as lines:
        for context in contexts:
            shown = context if store_user_ids else dataclasses.replace(context, user_id="")
            lines.write(shown.to_json() + "\n")


def _print_plan(console: Console, config: Config, curve: list[Forecast]) -> None:
    llm = config.llm.resolve()
    whole = curve[-1].size
    seconds, bound = expected_seconds(whole, llm)
    summary = Table(title=f"Plan: {llm.model} by {llm.strategy}", show_header=False)
    summary.add_column()
    summary.add_column(justify="right")
    summary.add_row("pairs", f"{whole.pairs:,} in {whole.contexts:,} contexts")
    summary.add_row("requests", f"{whole.calls:,}, {whole.cached:,} of them answered by the cache")
    if whole.under_way:
        summary.add_row("with the Batch API now", f"{whole.under_way:,} (sllmr batch fetches them)")
    cached = whole.usage.cached_prompt
    summary.add_row(
        "prompt tokens to send",
        f"about {whole.usage.prompt:,}" + (f", {cached:,} cached by the server" if cached else ""),
    )
    summary.add_row("completion tokens", f"about {whole.usage.completion:,}")
    summary.add_row("cost", _cost(whole.cost_nano_usd))
    if (
        whole.by_batch_nano_usd is not None
        and llm.strategy in (LISTWISE, YES_NO, EMBEDDING)
        and not llm.uses_local_server
    ):
        summary.add_row("cost by the Batch API (sllmr batch)", _cost(whole.by_batch_nano_usd))
    if whole.prior_nano_usd:
        summary.add_row("cost of cached answers, earlier", _cost(whole.prior_nano_usd))
    if whole.to_send:
        summary.add_row("time of the calls", f"about {_duration(seconds)} ({bound})")
    console.print(summary)

    reached = Table(title="What it reaches")
    for column in ("slice", "asked about", "of", "share"):
        reached.add_column(column, justify="left" if column == "slice" else "right")
    for name, part in curve[-1].reached.items():
        reached.add_row(name, f"{part.asked:,}", f"{part.of:,}", f"{part.share:.1%}")
    console.print(reached)

    table = Table(title="Coverage against cost")
    for column in ("budget", "pairs", "calls to send", "cost", "users", "tail items"):
        table.add_column(column, justify="right")
    for step in curve:
        table.add_row(
            f"{step.share:.0%}",
            f"{step.size.pairs:,}",
            f"{step.size.to_send:,}",
            _cost(step.size.cost_nano_usd),
            f"{step.reached['users'].share:.1%}",
            f"{step.reached['tail items'].share:.1%}",
        )
    console.print(table)
    due_tokens = whole.usage.prompt + whole.usage.completion + whole.prior_tokens
    due_usd = None if whole.cost_nano_usd is None else (whole.cost_nano_usd + whole.prior_nano_usd) / 1e9
    for name, cap, due, told in (
        ("max_cost_usd", llm.budget.max_cost_usd, due_usd, _dollars(due_usd)),
        ("max_tokens", llm.budget.max_tokens, due_tokens, f"{due_tokens:,} tokens"),
    ):
        if cap is not None and due is not None and due > cap:
            console.print(
                f"llm.budget.{name}={cap:g} would stop this before its end at about {told}: raise it or lower "
                "llm.budget.pairs",
                style="yellow",
                soft_wrap=True,
            )
    console.print("Nothing was asked.")


def _cost(nano_usd: int | None) -> str:
    return "price unknown; set llm.price_per_million_tokens" if nano_usd is None else f"${nano_usd / 1e9:.4f}"


def _dollars(usd: float | None) -> str:
    return "price unknown" if usd is None else f"${usd:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""The scoring step alone, outside TFX: what it would cost (`sllmr plan`), and the step itself (`sllmr score`).

Both read the two tables with InteractionsExampleGen's transforms, so contexts, candidates and cache keys are those of a
whole run with the same configuration.
"""

import dataclasses
import functools
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from rich.console import Console
from rich.table import Table

from components import scores
from components.interactions_example_gen import report, rows
from components.interactions_example_gen.config import DataConfig
from components.interactions_example_gen.tables import check_tables
from components.interactions_example_gen.transforms import PrepareInteractions, WriteCatalog, WriteReport
from components.llm_scorer.estimate import expected_seconds
from components.llm_scorer.exchange import Context
from components.llm_scorer.forecast import Forecast
from components.llm_scorer.job import ScoringJob
from pipeline.config import Config, load_config
from pipeline.console import run_log
from pipeline.datasets.fetch import fetch_missing

WORK_DIRECTORY = "work"
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
    console = Console(highlight=False)
    config = load_config(config_file)
    config.llm.check_needs()
    work = output / WORK_DIRECTORY
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    table = work / "scores"
    table.mkdir()
    again = f"sllmr score --config {config_file} --output {output}"
    with run_log(log_file, console, steps=0):
        try:
            job = _job(config, work, output=table)
            book = job.run(_prepare(config, work, console))
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
    console.print(f"Scores     {output}", soft_wrap=True)
    return book


def ledger_table(book: dict[str, Any]) -> Table:
    """The ledger of a scoring job, as ledger.json holds it."""
    table = Table(title=f"{book['model']} by {book['strategy']} ({book['prompt_version']})", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("pairs asked about", f"{book['requested']:,} in {book['contexts']:,} contexts")
    table.add_row("scored", f"{book['scored']:,}")
    for reason, count in book["failures"].items():
        table.add_row(f"failed: {reason}", f"{count:,}")
    calls, tokens = book["calls"], book["tokens"]
    table.add_row("calls sent", f"{calls['sent']:,}, {calls['failed']:,} more failed")
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
    summary.add_row("prompt tokens to send", f"about {whole.usage.prompt:,}")
    summary.add_row("completion tokens", f"about {whole.usage.completion:,}")
    summary.add_row("cost", _cost(whole.cost_nano_usd))
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
    cap = llm.budget.max_cost_usd
    if cap is not None and whole.cost_nano_usd is not None:
        due = (whole.cost_nano_usd + whole.prior_nano_usd) / 1e9
        if due > cap:
            console.print(
                f"llm.budget.max_cost_usd={cap:g} would stop this before its end at about {_dollars(due)}: raise it or "
                "lower llm.budget.pairs",
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

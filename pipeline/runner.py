"""One run: configuration in, artifacts, serving model, summary and report out."""

import logging
import os
import pathlib
import shlex
import time

from rich.console import Console

from sllmr.components.llm_scorer.needs import check_needs
from sllmr.pipeline import report, run_folder, summary
from sllmr.pipeline.beam_config import check_runner
from sllmr.pipeline.config import Config, load_config
from sllmr.pipeline.console import (
    below_popularity,
    metrics_table,
    other_metrics_table,
    print_decision,
    print_scores,
    print_verdict,
    run_log,
)
from sllmr.pipeline.dag_runner import DagRunner
from sllmr.pipeline.datasets.fetch import fetch_missing
from sllmr.pipeline.folder_lock import folder_lock, without_wildcards
from sllmr.pipeline.graph import build_pipeline
from sllmr.pipeline.inputs import check_inputs
from sllmr.pipeline.run_summary import RunSummary
from sllmr.pipeline.served_versions import model_card
from sllmr.pipeline.stopped import what_is_kept

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"


def run(config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path) -> RunSummary | None:
    """Runs the pipeline and leaves summary.json and report.html in `output`.

    Args:
        config_file: YAML, see pipeline.config.
        output: an existing, absolute folder.
        log_file: gets every log record; the terminal gets progress and results.

    Returns:
        The summary; None where TFX's command line only registered the pipeline.

    Raises:
        ConfigError: the configuration cannot be used; nothing was run.
        RunnerError: what `beam.args` need is not there; nothing was run.
    """
    again = shlex.join(["sllmr", "run", "--config", str(config_file), "--output", str(output)])
    return run_config(load_config(config_file), output, log_file, Console(highlight=False), again)


def run_config(
    config: Config, output: pathlib.Path, log_file: pathlib.Path, console: Console, again: str
) -> RunSummary | None:
    """As `run`, of a configuration that is in memory.

    Args:
        config: with absolute paths.
        output: an existing, absolute folder.
        log_file: gets every log record.
        console: gets progress and results.
        again: the command that resumes, for the message of a run that stops.
    """
    fetch_missing(config, console)
    check_inputs(config)
    check_runner(config.beam)
    if config.loss.llm_weight > 0:
        check_needs(config.llm)
    folder = without_wildcards(output)
    pipeline = build_pipeline(config, folder)
    dag_runner = DagRunner(config.beam)
    start = time.monotonic()
    with folder_lock(output, console), run_log(log_file, console, steps=len(pipeline.components)):
        run_folder.prepare(output, pipeline.pipeline_info.pipeline_name, console)
        try:
            dag_runner.run(pipeline)
        except BaseException as error:
            logging.exception("the run stopped")
            console.print(
                f"{what_is_kept(error, config.store or config.cache_dir, again)}; the log is {log_file}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
            raise
        if not dag_runner.ran:
            return None
        result = summary.collect(config, folder, seconds=time.monotonic() - start)
        if folder != output:
            result = _with_real_paths(result, str(folder), str(output))
        (output / SUMMARY_FILE).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        report.write(result, output / REPORT_FILE)
        if result.pushed_path is not None:
            card = model_card(pathlib.Path(result.pushed_path))
            if not card.exists():  # a rerun that pushed nothing leaves the card of the run that did
                report.write_model_card(result, card)
    _print_end(console, result, output)
    return result


def _with_real_paths(result: RunSummary, path: str, real: str) -> RunSummary:
    """The summary with `path`, a link to the run's folder, replaced by the folder's `real` path."""

    def renamed(value: str | None) -> str | None:
        return value and value.replace(path, real)

    decision = result.decision.model_copy(
        update={
            "baseline_model": renamed(result.decision.baseline_model),
            "reference_model": renamed(result.decision.reference_model),
        }
    )
    return result.model_copy(update={"pushed_path": renamed(result.pushed_path), "decision": decision})


def _print_end(console: Console, result: RunSummary, output: pathlib.Path) -> None:
    if result.steps["InteractionsExampleGen"].cached:  # otherwise the step itself has printed these
        for line in (*result.data.lines(), *result.data.notices):
            console.print(
                f"data: {line}", style="yellow" if line in result.data.notices else None, markup=False, soft_wrap=True
            )
    advice = result.config.beam.advice(result.data.interactions_table.read, os.cpu_count() or 1)
    if advice is not None and not result.steps["InteractionsExampleGen"].cached:
        console.print(advice, style="dim", markup=False, soft_wrap=True)
    if result.steps["StrictExampleValidator"].cached:  # likewise
        for distance in result.drift.exceeding:
            console.print(f"drift: {distance.sentence}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"drift: {result.drift.sentence()}", style="dim", markup=False, soft_wrap=True)
    console.print(f"leakage: {result.leakage.sentence()}", style="dim", markup=False, soft_wrap=True)
    if (start := result.training.warm_start) is not None:
        cold = start.cold_because is not None
        console.print(f"train: {start.sentence()}", style="yellow" if cold else "dim", markup=False, soft_wrap=True)
    if result.verdict is not None:
        print_verdict(console, result.verdict, result.vectors_verdict)
    console.print(metrics_table(result.metrics, result.popularity_baseline, result.backbone, result.gate))
    console.print(other_metrics_table(result.metrics["overall"].by_metric))
    console.print(f"{result.scores_are}.", style="dim", markup=False, soft_wrap=True)
    weak = below_popularity(result.metrics, result.popularity_baseline)
    if weak:
        console.print(f"Below the popularity baseline on: {', '.join(weak)}", style="yellow")
    if result.llm is not None:
        if few := result.llm.enough_pairs.sentence():
            console.print(few, style="yellow", markup=False, soft_wrap=True)
        print_scores(console, result.llm, result.llm.age, result.config.llm.max_age_days)
    print_decision(console, result.decision, result.not_blessed_because, result.pushed_path)
    console.print(f"Summary    {output / SUMMARY_FILE}", soft_wrap=True)
    console.print(f"Report     {output / REPORT_FILE}", soft_wrap=True)
    console.print(f"{result.seconds:.0f} s in all")

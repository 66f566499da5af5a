"""One run: configuration in, artifacts, serving model, summary and report out."""

import json
import logging
import pathlib
import time
from typing import Any

from rich.console import Console
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from pipeline import report, summary
from pipeline.config import load_config
from pipeline.console import metrics_table, print_scores, run_log
from pipeline.datasets.fetch import fetch_missing
from pipeline.folder_lock import folder_lock
from pipeline.graph import build_pipeline

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"


class _DagRunner(LocalDagRunner):
    """Knows whether it ran: TFX's command line replaces `run` while it only registers a pipeline."""

    ran = False

    def run_with_ir(self, *args: Any, **kwargs: Any) -> None:
        self.ran = True
        super().run_with_ir(*args, **kwargs)


def run(config_file: pathlib.Path, output: pathlib.Path, log_file: pathlib.Path) -> dict[str, Any] | None:
    """Runs the pipeline and leaves summary.json and report.html in `output`.

    Args:
        config_file: YAML, see pipeline.config.
        output: an existing, absolute folder.
        log_file: gets every log record; the terminal gets progress and results.

    Returns:
        The summary; None where TFX's command line only registered the pipeline.

    Raises:
        ConfigError: the configuration cannot be used; nothing was run.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    fetch_missing(config, console)
    if config.loss.llm_weight > 0:
        config.llm.check_needs()
    pipeline = build_pipeline(config, output)
    dag_runner = _DagRunner()
    start = time.monotonic()
    with folder_lock(output, console), run_log(log_file, console, steps=len(pipeline.components)):
        try:
            dag_runner.run(pipeline)
        except BaseException:
            logging.exception("the run stopped")
            console.print(
                f"Stopped. What was done and paid for is kept; the log is {log_file}", style="red", soft_wrap=True
            )
            raise
        if not dag_runner.ran:
            return None
        result = summary.collect(config, output, seconds=time.monotonic() - start)
        (output / SUMMARY_FILE).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        report.write(result, output / REPORT_FILE)
    _print_end(console, result, output)
    return result


def _print_end(console: Console, result: dict[str, Any], output: pathlib.Path) -> None:
    console.print(metrics_table(result))
    weak = [
        name for name, m in result["metrics"].items() if (result["popularity_baseline"][name]["auc"] or 0.0) > m["auc"]
    ]
    if weak:
        console.print(f"Below the popularity baseline on: {', '.join(weak)}", style="yellow")
    if result["llm"] is not None:
        print_scores(console, result["llm"], result["llm"]["age"], result["config"]["llm"]["max_age_days"])
    if result["blessed"]:
        console.print(f"Blessed; pushed to {result['pushed_path']}", style="green", soft_wrap=True)
    else:
        console.print("Not blessed; nothing was pushed:", style="yellow")
        for reason in result["not_blessed_because"]:
            console.print(f"  {reason}", markup=False)
    console.print(f"Summary    {output / SUMMARY_FILE}", soft_wrap=True)
    console.print(f"Report     {output / REPORT_FILE}", soft_wrap=True)
    console.print(f"{result['seconds']:.0f} s in all")

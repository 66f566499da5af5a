"""What reaches the terminal, and what only the log file."""

import io
import logging

import absl.logging
from rich.console import Console
from tfx.orchestration.local import local_dag_runner
from tfx.orchestration.portable import launcher

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.decision import Change, Measured, SliceMetrics, decide
from sllmr.pipeline.console import (
    CACHED,
    FINISHED,
    RUNNING,
    below_popularity,
    metrics_table,
    other_metrics_table,
    print_decision,
    run_log,
)
from sllmr.pipeline.run_summary import PopularityBaseline, SliceSummary


def test_steps_and_own_lines_reach_the_terminal_and_everything_the_file(tmp_path):
    terminal = io.StringIO()
    with run_log(tmp_path / "logs" / "run.log", Console(file=terminal), steps=2):
        absl.logging.info(RUNNING, "Trainer")
        logging.getLogger("sllmr.models.training").info("epoch 1")
        logging.getLogger("somebody.else").info("chatter")
        absl.logging.info(FINISHED, "Trainer")
    shown = terminal.getvalue()
    assert "[ 1/2] Trainer" in shown
    assert "epoch 1" in shown
    assert "chatter" not in shown
    written = (tmp_path / "logs" / "run.log").read_text()
    assert all(line in written for line in ("Component Trainer is running.", "epoch 1", "chatter"))


def test_the_handlers_of_before_are_back_afterwards(tmp_path):
    before = logging.getLogger().handlers[:]
    with run_log(tmp_path / "run.log", Console(file=io.StringIO()), steps=1):
        assert logging.getLogger().handlers != before
    assert logging.getLogger().handlers == before


def test_tfx_still_logs_the_lines_that_progress_is_made_of():
    with open(local_dag_runner.__file__) as file:
        source = file.read()
    assert repr(RUNNING) in source
    assert repr(FINISHED) in source
    with open(launcher.__file__) as file:
        assert repr(CACHED) in file.read()


def test_a_cached_step_says_so_and_the_next_one_does_not(tmp_path):
    terminal = io.StringIO()
    with run_log(tmp_path / "run.log", Console(file=terminal), steps=2):
        for step, cached in (("Transform", True), ("Trainer", False)):
            absl.logging.info(RUNNING, step)
            if cached:
                absl.logging.info(CACHED, 7)
            absl.logging.info(FINISHED, step)
    first, second = terminal.getvalue().split("[ 2/2]")
    assert "cached" in first
    assert "cached" not in second
    assert " s" in second


EVALUATED = decide(
    EvaluationConfig(min_auc={"overall": 0.75, "tail": 0.5}, max_drop={"cold": 0.02}),
    {
        "overall": SliceMetrics(
            examples=12_345,
            positives=6_000,
            users=1_234,
            metrics={
                "auc": Measured(
                    value=0.7,
                    lower=0.65,
                    upper=0.75,
                    users=1_234,
                    popularity=Change(value=0.72, difference=-0.02, lower=-0.03, upper=-0.01),
                    last_blessed=Change(value=0.71, difference=-0.01, lower=-0.02, upper=0.0),
                ),
                "log_loss": Measured(value=0.65, lower=0.6, upper=0.7, users=1_234),
                "hit_rate_at_10": Measured(),
            },
        ),
        "tail": SliceMetrics(
            examples=30, positives=9, users=20, metrics={"auc": Measured(value=0.6, lower=0.4, upper=0.8, users=20)}
        ),
        "cold": SliceMetrics(examples=7, positives=7, users=3),
    },
    "runs/shop/model/7",
)


def test_a_refusal_reaches_an_80_column_terminal_with_every_number():
    terminal = io.StringIO()
    metrics = {name: SliceSummary.of(m) for name, m in EVALUATED.slices.items()}
    popularity = {name: PopularityBaseline.of(m) for name, m in EVALUATED.slices.items()}
    console = Console(file=terminal, width=80)
    console.print(metrics_table(metrics, popularity, "dcnv2", None))
    console.print(other_metrics_table(metrics["overall"].by_metric))
    print_decision(console, EVALUATED.decision, EVALUATED.decision.sentences("failed"), None)
    lines = [line.split() for line in terminal.getvalue().splitlines()]
    assert ["overall", "0.7000", "0.650", "to", "0.750", "0.7200", "0.7100", "12,345", "6,000", "1,234"] in lines
    assert ["cold", "-", "not", "measurable", "-", "-", "7", "7", "3"] in lines
    assert "less is better: log_loss, calibration_error" in terminal.getvalue()
    assert ["log_loss", "0.6500", "0.600", "to", "0.700", "-", "-", "1,234"] in lines
    assert ["hit_rate_at_10", "-", "not", "measurable", "-", "-", "0"] in lines
    refusal = (
        "  auc on slice overall: 0.7000 (95% interval 0.6500 to 0.7500) against 0.7100 of the last blessed model, "
        "difference -0.0100; evaluation.min_auc.overall asks for 0.7500; 12,345 rows (6,000 positive) of 1,234 users\n"
    )
    assert f"Not blessed; nothing was pushed:\n{refusal}" in terminal.getvalue()
    assert "auc on slice tail: 0.6000 (95% interval 0.4000 to 0.8000); evaluation.min_auc.tail" in terminal.getvalue()
    assert "the data cannot tell\n" in terminal.getvalue()
    assert "auc on slice cold: not measurable on 7 rows" in terminal.getvalue()
    assert "asks for no less than popularity" in terminal.getvalue()
    assert below_popularity(metrics, popularity) == ["overall"]

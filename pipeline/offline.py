"""Evaluates one exported model, or compares two, on rows that neither was trained on."""

import datetime
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from sllmr.components.evaluator.slices import SLICES, slice_rule
from sllmr.components.interactions_example_gen.data_report import FILE_NAME as REPORT_FILE
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.model_info import ModelInfo, data_hash, read_model_info
from sllmr.components.saved_model_scores import score_files
from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.metric_names import LESS_IS_BETTER, METRICS, RANKING_METRICS
from sllmr.models.metrics import Rows
from sllmr.models.tf_examples import Example, read_tfrecords
from sllmr.pipeline.config import Config
from sllmr.pipeline.console import four_digits
from sllmr.pipeline.table_rows import is_table, make_rows

_POPULARITY = "popularity"
_COLUMNS = {
    features.USER_ID: tf.string,
    features.LABEL: tf.int64,
    features.ITEM_TRAIN_COUNT: tf.int64,
    features.IS_COLD: tf.int64,
    features.IS_TAIL: tf.int64,
}


class RowFiles(NamedTuple):
    """Rows as a run writes them.

    Attributes:
        files: gzip TFRecords of tf.Examples.
        split: name of the split if the rows are those of a run, else None.
        data_hash: of the run's data; None as split.
        first: time of the first row, ISO 8601.
    """

    files: tuple[pathlib.Path, ...]
    split: str | None
    data_hash: str | None
    first: str


def find_rows(rows: pathlib.Path, rows_from: str | None) -> RowFiles:
    """The rows of a file or a folder, and the time of the first of them.

    Args:
        rows: a gzip TFRecord file or a folder of such files. In a run's folder,
            artifacts/InteractionsExampleGen/examples/N/Split-test, the data report beside it says when they begin.
        rows_from: an ISO 8601 date or time for rows that no report stands beside.

    Raises:
        UserError: there are no rows, or nothing says when they begin.
    """
    files = tuple(sorted(rows.glob("*.gz")) if rows.is_dir() else [rows] if rows.is_file() else [])
    if not files:
        raise UserError(
            f"--rows must name a gzip TFRecord file of tf.Examples or a folder of them, got {rows}; in a run's folder "
            "that is artifacts/InteractionsExampleGen/examples/N/Split-test"
        )
    folder = rows.resolve() if rows.is_dir() else rows.resolve().parent
    report_folder = folder.parents[1].parent / "report" / folder.parent.name
    if folder.name.startswith("Split-") and (report_folder / REPORT_FILE).is_file():
        report, split = read_report(report_folder), folder.name.removeprefix("Split-")
        return RowFiles(files, split, data_hash(report), report.splits[split].first or "")
    if rows_from is None:
        raise UserError(
            f"nothing says when the rows of {rows} begin: no {REPORT_FILE} of a run stands beside them; add "
            "--rows-from DATE, the time of the first interaction among them"
        )
    _time(rows_from, "--rows-from")
    return RowFiles(files, None, None, rows_from)


def check_apart(info: ModelInfo, model: str, rows: RowFiles) -> None:
    """Refuses rows that the model may have been trained on.

    The test rows of the same data that it was trained on are accepted, because the split has kept them apart.

    Raises:
        UserError: the rows begin before the end of the training period, or are of another shape than the model's.
    """
    _check_shape(info, model, rows)
    if rows.data_hash == info.data_hash:
        if rows.split != "test":
            raise UserError(
                f"rows must be none that a model was trained on, got the split {rows.split} of the data of {model}; "
                "name its Split-test"
            )
        return
    until = info.trained_until
    if until is not None and _time(rows.first, "the first row") <= _time(until, "the training"):
        raise UserError(
            f"rows must begin after the training period of a model, got rows from {rows.first}, where {model} was "
            f"trained on interactions until {until}; take later rows"
        )


def _check_shape(info: ModelInfo, model: str, rows: RowFiles) -> None:
    example = Example.FromString(next(read_tfrecords(str(rows.files[0]))))
    history = len(example.features.feature[features.HISTORY_ITEM_IDS].bytes_list.value)
    if history != info.sizes.history:
        raise UserError(
            f"rows must have the shape that a model was trained with, got histories of {history} items, where {model} "
            f"reads {info.sizes.history}; make rows with data.sizes {info.sizes.model_dump()}"
        )


def _time(text: str, what: str) -> datetime.datetime:
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{what} must be an ISO 8601 date or time, got {text!r}; write it as 2024-01-31") from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def measure(
    models: Mapping[str, pathlib.Path], rows: pathlib.Path, rows_from: str | None, config: Config | None
) -> dict[str, Rows]:
    """The rows of each slice with the scores of the models and of popularity; a slice without rows is absent.

    Args:
        models: folders of SavedModels, by name.
        rows, rows_from: see find_rows; or a table of interactions, see table_rows.make_rows.
        config: of the run that trained the models; needed for a table.

    Raises:
        UserError: see find_rows, table_rows.make_rows and check_apart; or a model gives logits that are not finite.
    """
    infos = {directory: read_model_info(directory) for directory in models.values()}
    with tempfile.TemporaryDirectory(prefix="sllmr-rows-") as scratch:
        if rows.exists() and is_table(rows):
            if config is None:
                raise UserError(
                    f"--rows {rows} is a table of interactions, which a run's configuration says how to read; add "
                    "--config FILE, that of the run that trained the model"
                )
            made = make_rows(rows, config, list(infos.values()), rows_from, pathlib.Path(scratch))
            found = RowFiles(made.files, None, None, made.first)
        else:
            found = find_rows(rows, rows_from)
        for directory, info in infos.items():
            check_apart(info, str(directory), found)
        columns, logits = score_files(
            {name: str(directory) for name, directory in models.items()}, [str(file) for file in found.files], _COLUMNS
        )
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{models[name]} must give finite logits, got {(~np.isfinite(values)).sum()} of {len(values)} that are "
                "not; its training diverged: lower train.learning_rate"
            )
    scores = {**logits, _POPULARITY: columns[features.ITEM_TRAIN_COUNT]}
    slices: dict[str, Rows] = {}
    for name in SLICES:
        rule = slice_rule(name)
        inside = columns[rule[0]] == rule[1] if rule else np.ones(len(columns[features.LABEL]), bool)
        if inside.any():
            part = {scorer: values[inside] for scorer, values in scores.items()}
            slices[name] = Rows(columns[features.USER_ID][inside], columns[features.LABEL][inside], part)
    return slices


def evaluate(
    model: pathlib.Path, rows: pathlib.Path, rows_from: str | None, console: Console, config: Config | None = None
) -> None:
    """Prints every metric of a model beside popularity, by slice."""
    table = _table(f"{model} on {rows}", ("slice", "metric", "value", "95% interval", "popularity", "users"))
    for name, part in measure({"model": model}, rows, rows_from, config).items():
        for metric in METRICS:
            found = part.estimate(metric, "model")
            popularity = part.estimate(metric, _POPULARITY).value if metric in RANKING_METRICS else None
            table.add_row(
                name,
                metric,
                "not measurable" if found.value is None else f"{found.value:.4f}",
                _interval(found.lower, found.upper, ""),
                four_digits(popularity),
                f"{found.users:,}",
            )
    console.print(table)


def compare(
    models: Sequence[pathlib.Path],
    rows: pathlib.Path,
    rows_from: str | None,
    console: Console,
    config: Config | None = None,
) -> None:
    """Prints every metric of two models and the paired difference, by slice, and which is better in AUC."""
    a, b = models
    slices = measure({"A": a, "B": b}, rows, rows_from, config)
    table = _table(f"A {a}, B {b} on {rows}", ("slice", "metric", "A", "B", "A - B", "95% interval"))
    for name, part in slices.items():
        for metric in METRICS:
            change = part.compare(metric, "A", "B")
            table.add_row(
                name,
                metric,
                four_digits(part.estimate(metric, "A").value),
                four_digits(part.estimate(metric, "B").value),
                "not measurable" if change.difference is None else f"{change.difference:+.4f}",
                _interval(change.lower, change.upper, "+"),
            )
    console.print(table)
    console.print(f"Less is better: {', '.join(LESS_IS_BETTER)}", style="dim")
    change = slices["overall"].compare("auc", "A", "B")
    if change.lower is not None and change.lower > 0:
        answer = "A is better than B"
    elif change.upper is not None and change.upper < 0:
        answer = "B is better than A"
    else:
        answer = "The rows do not tell A and B apart"
    console.print(f"{answer} (AUC, all rows)")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("slice", "metric") else "right")
    return table


def _interval(lower: Any, upper: Any, sign: str) -> str:
    return "-" if lower is None else f"{lower:{sign}.4f} to {upper:{sign}.4f}"

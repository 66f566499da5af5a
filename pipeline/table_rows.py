"""Makes rows, as a run would, from the interactions of a table that come after the training of exported models."""

import datetime
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam

from sllmr.components.examples import FILE_PREFIX, SUFFIX
from sllmr.components.interactions_example_gen.config import DataConfig, iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.interactions_example_gen.files import SUFFIXES
from sllmr.components.interactions_example_gen.report import check_tables_read
from sllmr.components.interactions_example_gen.rows import TEST
from sllmr.components.interactions_example_gen.transforms import PrepareInteractions, WriteReport
from sllmr.components.model_info import ModelInfo
from sllmr.models.errors import UserError
from sllmr.pipeline.config import Config


class TableRows(NamedTuple):
    """Rows that were made of a table.

    Attributes:
        files: gzip TFRecords of tf.Examples.
        first: time of the first row, ISO 8601.
    """

    files: tuple[pathlib.Path, ...]
    first: str


def is_table(rows: pathlib.Path) -> bool:
    """Whether a path names a table, or a folder of parts of one, by the names of the files."""
    names = [path.name for path in rows.iterdir()] if rows.is_dir() else [rows.name]
    return any(name.lower().endswith(SUFFIXES) for name in names)


def make_rows(
    table: pathlib.Path, config: Config, models: Sequence[ModelInfo], rows_from: str | None, directory: pathlib.Path
) -> TableRows:
    """Reads a table of interactions as a run does, and writes the rows from a point in time on.

    Interactions before the end of the training make no rows, but histories, popularity and the slices need them. So
    the table should hold them, as data.interactions does.

    Args:
        table: as data.interactions.
        config: of the run that trained the models: how tables are read, the items, slices and negatives.
        models: the rows have the shape of the first, and come after the training of all.
        rows_from: ISO 8601 time of the first row; None: right after the training.
        directory: where the rows are written.

    Raises:
        DataError: the table breaks a rule.
        UserError: it holds no positives and negatives after the training.
    """
    ends = [iso_to_milliseconds(model.trained_until) for model in models if model.trained_until]
    trained_until = max(ends, default=0)
    test_from = trained_until + 1 if rows_from is None else iso_to_milliseconds(rows_from)
    split = config.data.split.model_copy(
        update={
            "strategy": "global_date",
            # The training did not see what lies between its end and the first row: popularity does not count it.
            "valid_from": _iso(min(trained_until, test_from - 1)),
            "test_from": _iso(test_from),
        }
    )
    data: DataConfig = config.data.model_copy(
        update={
            "interactions": str(table),
            "sizes": models[0].sizes,
            "split": split,
            "window": None,  # of the run; here the dates above decide
            "cold": config.data.cold.model_copy(update={"by": config.data.cold_by}),
        }
    )
    with beam.Pipeline(argv=list(config.beam.pipeline_args)) as pipeline:
        output = pipeline | "PrepareInteractions" >> PrepareInteractions(data)
        prefix = str(directory / FILE_PREFIX)
        _ = output[TEST] | "WriteRows" >> beam.io.WriteToTFRecord(prefix, file_name_suffix=SUFFIX)
        _ = output["report"] | "WriteReport" >> beam.ParDo(WriteReport(str(directory)))
    report = read_report(directory)
    check_tables_read(report, data)
    found = report.splits[TEST]
    if not 0 < found.positives < found.rows or found.first is None:
        raise UserError(
            f"--rows must hold positives and negatives from {_iso(test_from)} on, after the training of the model, got "
            f"{found.positives} positives in {found.rows} rows of {table}; add later interactions"
        )
    return TableRows(tuple(sorted(directory.glob(f"{FILE_PREFIX}*{SUFFIX}"))), found.first)


def _iso(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat(timespec="milliseconds")

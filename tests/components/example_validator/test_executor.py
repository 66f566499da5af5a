"""An anomaly stops the run: real TFDV on rows that keep or break the curated schema."""

import pathlib

import apache_beam as beam
import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_artifacts
from tfx_bsl.tfxio import tf_example_record

from components.example_validator.executor import AnomaliesFoundError, Executor
from models import features
from models.features import FeatureSizes, row_features, schema, to_example

FEATURES = row_features(FeatureSizes(history=2, categories=1))


def row(**changes) -> dict:
    values = {f.name: [""] * (2 if f.shape[:1] == (2,) else 1) if f.dtype == "string" else 0 for f in FEATURES}
    return {**values, features.ITEM_ID: "i", features.USER_ID: "u", **changes}


def statistics(rows, path: pathlib.Path) -> None:
    serialized = [to_example(r, FEATURES).SerializeToString() for r in rows]
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create(serialized)
            | tf_example_record.TFExampleBeamRecord(physical_format="memory", schema=schema(FEATURES)).BeamSource()
            | tfdv.GenerateStatistics(tfdv.StatsOptions(schema=schema(FEATURES)))
            | tfdv.WriteStatisticsToBinaryFile(str(path))
        )


def validate(rows, directory: pathlib.Path) -> None:
    stats = standard_artifacts.ExampleStatistics()
    stats.uri = str(directory / "stats")
    stats.split_names = artifact_utils.encode_split_names(["train"])
    (directory / "stats" / "Split-train").mkdir(parents=True)
    statistics(rows, directory / "stats" / "Split-train" / "FeatureStats.pb")
    curated = standard_artifacts.Schema()
    curated.uri = str(directory / "schema")
    (directory / "schema").mkdir()
    (directory / "schema" / "schema.pbtxt").write_text(text_format.MessageToString(schema(FEATURES)))
    anomalies = standard_artifacts.ExampleAnomalies()
    anomalies.uri = str(directory / "anomalies")
    executor = Executor(base_executor.BaseExecutor.Context())
    executor.Do({"statistics": [stats], "schema": [curated]}, {"anomalies": [anomalies]}, {})


def test_rows_that_keep_the_schema_pass(tmp_path):
    validate([row(), row(label=1)], tmp_path)
    assert (tmp_path / "anomalies" / "Split-train" / "SchemaDiff.pb").exists()


def test_a_label_outside_its_domain_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(AnomaliesFoundError, match=r"train: label: .*"):
        validate([row(), row(label=3)], tmp_path)

"""An anomaly stops the run, and drift and skew are measured: real TFDV on rows."""

import math
import pathlib

import apache_beam as beam
import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_artifacts
from tfx_bsl.tfxio import tf_example_record

from sllmr.components.example_validator.config import DriftConfig
from sllmr.components.example_validator.drift_report import DriftReport, read_drift_report
from sllmr.components.example_validator.executor import AnomaliesFoundError, DriftError, Executor
from sllmr.models import features
from sllmr.models.features import FeatureSizes, row_features
from sllmr.models.schema import schema
from sllmr.models.tf_examples import to_example

NOTHING = DriftConfig(max_drift={}, max_skew={})
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


def artifact_of(directory: pathlib.Path, **rows) -> standard_artifacts.ExampleStatistics:
    """The statistics of rows by split."""
    stats = standard_artifacts.ExampleStatistics()
    stats.uri = str(directory)
    stats.split_names = artifact_utils.encode_split_names(list(rows))
    for split, of_split in rows.items():
        (directory / f"Split-{split}").mkdir(parents=True)
        statistics(of_split, directory / f"Split-{split}" / "FeatureStats.pb")
    return stats


def validate(rows, directory: pathlib.Path, *, test=None, last=None, config: DriftConfig = NOTHING) -> DriftReport:
    """Runs the executor on rows of train and test; `last` are the train rows of the last run."""
    splits = {"train": rows} | ({"test": test} if test else {})
    inputs = {"statistics": [artifact_of(directory / "stats", **splits)]}
    if last:
        inputs["last_statistics"] = [artifact_of(directory / "last", train=last)]
    curated = standard_artifacts.Schema()
    curated.uri = str(directory / "schema")
    (directory / "schema").mkdir()
    (directory / "schema" / "schema.pbtxt").write_text(text_format.MessageToString(schema(FEATURES)))
    anomalies = standard_artifacts.ExampleAnomalies()
    anomalies.uri = str(directory / "anomalies")
    executor = Executor(base_executor.BaseExecutor.Context())
    properties = {"config": config.model_dump_json()}
    executor.Do(inputs | {"schema": [curated]}, {"anomalies": [anomalies]}, properties)
    return read_drift_report(anomalies.uri)


@pytest.mark.slow
def test_rows_that_keep_the_schema_pass(tmp_path):
    validate([row(), row(label=1)], tmp_path)
    assert (tmp_path / "anomalies" / "Split-train" / "SchemaDiff.pb").exists()


@pytest.mark.slow
def test_a_label_outside_its_domain_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(AnomaliesFoundError, match=r"train: label: .*"):
        validate([row(), row(label=3)], tmp_path)


def brands(**counts: int) -> list[dict]:
    return [row(item_brand=name) for name, number in counts.items() for _ in range(number)]


@pytest.mark.slow
def test_drift_and_skew_are_the_largest_changes_of_one_values_fraction(tmp_path):
    config = DriftConfig(max_drift={features.ITEM_BRAND: 0.25}, max_skew={features.ITEM_BRAND: 0.25})
    report = validate(brands(a=6, b=4), tmp_path, last=brands(a=3, b=4, c=3), test=brands(a=4, b=6), config=config)

    drift, skew = report.distances
    assert (drift.against, drift.value, drift.exceeds) == ("last_run", pytest.approx(6 / 10 - 3 / 10), True)
    assert (skew.against, skew.value, skew.exceeds) == ("test", pytest.approx(6 / 10 - 4 / 10), False)
    assert report.last_run == str(tmp_path / "last")
    assert "item_brand of the train rows against those of the last run: L-infinity distance 0.3000" in drift.sentence
    assert "drift.max_drift.item_brand allows 0.25" in drift.sentence


@pytest.mark.slow
def test_a_numeric_feature_is_compared_by_the_jensen_shannon_divergence(tmp_path):
    config = DriftConfig(max_drift={}, max_skew={features.LABEL: 0.01})
    (skew,) = validate(
        [row(label=n % 2) for n in range(8)], tmp_path, test=[row(label=int(n == 0)) for n in range(8)], config=config
    ).distances

    def entropy(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    # TFDV smooths its histograms a little.
    assert skew.value == pytest.approx(entropy((4 / 8 + 1 / 8) / 2) - (entropy(4 / 8) + entropy(1 / 8)) / 2, abs=1e-3)
    assert skew.exceeds


@pytest.mark.slow
@pytest.mark.parametrize(("key", "stops"), [("on_drift", True), ("on_skew", False)])
def test_what_is_configured_to_fail_stops_the_run_and_the_rest_warns(tmp_path, caplog, key, stops):
    config = DriftConfig(max_drift={features.ITEM_BRAND: 0.1}, max_skew={}, **{key: "fail"})
    if stops:
        with pytest.raises(DriftError, match=r"L-infinity distance 1\.0000; drift\.max_drift\.item_brand allows 0\.1"):
            validate(brands(a=4), tmp_path, last=brands(b=4), config=config)
    else:
        validate(brands(a=4), tmp_path, last=brands(b=4), config=config)
        assert "drift.max_drift.item_brand allows 0.1" in caplog.text


@pytest.mark.slow
def test_a_first_run_measures_no_drift(tmp_path):
    report = validate(brands(a=1, b=1), tmp_path, test=brands(a=1, b=1), config=DriftConfig())

    assert report.last_run is None
    assert {distance.against for distance in report.distances} == {"test"}
    assert report.exceeding == []


def test_a_threshold_outside_of_its_range_is_refused():
    with pytest.raises(ValueError, match=r"max_skew.label must be in \[0, 1\], got 2.0"):
        DriftConfig(max_skew={"label": 2.0})

import datetime
import glob
import gzip
import json
import os

import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, standard_artifacts

from sllmr.components.artifacts import DataReport, ItemCatalog
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, read_catalog
from sllmr.components.examples import TRAIN_UNTIL
from sllmr.components.interactions_example_gen import executor
from sllmr.components.interactions_example_gen.component import InteractionsExampleGen, input_fingerprint
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.interactions_example_gen.tables import DataError
from tests.components.interactions_example_gen import market


def outputs(directory):
    result = {}
    for name, artifact_type in (
        (executor.EXAMPLES, standard_artifacts.Examples),
        (executor.CATALOG, ItemCatalog),
        (executor.REPORT, DataReport),
    ):
        artifact = artifact_type()
        artifact.uri = str(directory / name)
        os.makedirs(artifact.uri)
        result[name] = [artifact]
    return result


def execute(config, output):
    properties = InteractionsExampleGen(config=config, code_fingerprint="1").spec.exec_properties
    executor.Executor(BaseBeamExecutor.Context(beam_pipeline_args=[])).Do({}, output, properties)


@pytest.mark.slow
def test_the_executor_writes_the_three_artifacts(tmp_path):
    chosen = market.interactions()
    output = outputs(tmp_path)
    execute(DataConfig(**market.write_tables(tmp_path, chosen)), output)
    artifact = output[executor.EXAMPLES][0]
    assert artifact_utils.decode_split_names(artifact.split_names) == ["train", "valid", "test"]
    files = glob.glob(f"{artifact.uri}/Split-test/*")
    rows = tf.data.TFRecordDataset(files, compression_type="GZIP")
    assert sum(1 for _ in rows) == 2 * len(chosen)
    assert len(read_catalog(output[executor.CATALOG][0].uri)) == market.ITEMS
    last = read_report(tmp_path / executor.REPORT).splits["train"].last
    assert artifact.get_int_custom_property(TRAIN_UNTIL) == 1000 * datetime.datetime.fromisoformat(last).timestamp()


@pytest.mark.slow
def test_positives_before_a_window_and_every_history_stand_beside_the_catalog(tmp_path):
    """One interaction a day: days 2 and 3 train, and a history of one item does not reach day 0."""
    chosen, output = market.interactions(), outputs(tmp_path)
    settings = {
        "split": {"strategy": "global_date"},
        "window": {"days": 4, "until": "2001-09-15"},
        "sizes": {"history": 1},
    }
    execute(DataConfig(**market.write_tables(tmp_path, chosen), **settings), output)
    lines = []
    for path in glob.glob(f"{output[executor.CATALOG][0].uri}/{EARLIER_POSITIVES_PREFIX}-*"):
        with gzip.open(path, "rt") as file:
            lines += map(json.loads, file)
    assert sorted(lines) == [[user, items[0]] for user, items in sorted(chosen.items())]


@pytest.mark.slow
def test_malformed_rows_fail_the_execution_by_name(tmp_path):
    config = DataConfig(**market.write_tables(tmp_path, market.interactions(), ["u01,i01,never"]))
    with pytest.raises(DataError, match=r"interactions.csv:\d+: timestamp must be Unix seconds.*got 'never'"):
        execute(config, outputs(tmp_path))


def test_a_missing_column_is_noticed_when_the_component_is_made(tmp_path):
    settings = market.write_tables(tmp_path, market.interactions())
    with pytest.raises(DataError, match=r"set data.columns.user_id"):
        InteractionsExampleGen(config=DataConfig(**settings, columns={"user_id": "customer"}), code_fingerprint="1")


def test_a_changed_file_changes_the_fingerprint_that_the_cache_compares(tmp_path):
    config = DataConfig(**market.write_tables(tmp_path, market.interactions()))
    before = input_fingerprint(config)
    assert before == input_fingerprint(config)
    with open(config.interactions, "a") as file:
        file.write("u01,i01,5\n")
    assert input_fingerprint(config) != before
    assert InteractionsExampleGen(config=config, code_fingerprint="1").spec.exec_properties[
        executor.INPUT_FINGERPRINT
    ] == input_fingerprint(config)

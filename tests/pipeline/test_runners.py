"""The same pipeline on Beam's local runner, in one process and in two, and on Flink with two task slots."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.scores import ScoreRecord, read_scores
from sllmr.models.tf_examples import Example
from sllmr.pipeline.beam_config import BeamConfig
from sllmr.pipeline.dag_runner import plugin_in_worker_processes
from tests.components.llm_scorer.market import market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, running_stub
from tests.golden.fields import differences
from tests.golden.run import GOLDEN, TOLERANCE, patterns, run
from tests.pipeline.flink_cluster import Flink, running_flink

TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")

WITH_EXAMPLES = ("InteractionsExampleGen/examples", "Transform/transformed_examples", "LlmScorer/scores", "PairBuilder")
"""Folders of artifacts that Beam writes as tf.Examples."""


@pytest.fixture(scope="module")
def flink(tmp_path_factory) -> Iterator[Flink]:
    with running_flink(tmp_path_factory.mktemp("flink")) as cluster:
        yield cluster


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server


def scored(root: pathlib.Path, rows: str, stub: StubServer, args: tuple[str, ...]) -> set[ScoreRecord]:
    """Runs one scoring job from an empty cache; its records without their time."""
    for directory in ("work", "scores"):
        (root / directory).mkdir(parents=True)
    write_catalog(str(root / "catalog"), market_items().values())
    settings = {
        "model": "m",
        "base_url": stub.base_url,
        "api_key_env": "NO_SUCH_KEY",
        "concurrency": 2,
        "budget": {"pairs": 60},
        "candidates": {"per_context": 6, "negatives_per_target": 2, "popularity_pool": 20},
    }
    job = Workspace(
        config=LlmConfig.model_validate(settings),
        catalog_directory=str(root / "catalog"),
        cache_directory=str(root / "cache"),
        work_directory=str(root / "work"),
        output_directory=str(root / "scores"),
        make_pipeline=functools.partial(beam.Pipeline, argv=list(args)),
    )
    book = score(job, beam.io.ReadFromTFRecord(rows))
    assert (book.scored, book.requests.sent) == (60, 10)
    return {dataclasses.replace(record, scored_at=0) for record in read_scores(str(root / "scores"))}


@pytest.fixture
def rows(tmp_path) -> str:
    file = str(tmp_path / "rows.tfrecord.gz")
    with tf.io.TFRecordWriter(file, "GZIP") as writer:
        for row in market_rows():
            writer.write(row)
    return file


@pytest.mark.slow
def test_a_scoring_job_gives_the_same_records_in_one_process_and_in_two(rows, stub, tmp_path):
    one = scored(tmp_path / "one", rows, stub, BeamConfig().pipeline_args)
    assert len(one) == 10
    assert scored(tmp_path / "two", rows, stub, BeamConfig(args=TWO_PROCESSES).pipeline_args) == one


@pytest.mark.slow
def test_tfdv_runs_in_worker_processes_too(tmp_path):
    """They start without anything of this project, and TFDV cannot be imported without components.compatibility."""
    config = BeamConfig(args=TWO_PROCESSES)
    batch = pa.RecordBatch.from_pydict({"price": [[1.0], [2.0], [4.0]]})
    with plugin_in_worker_processes(config), beam.Pipeline(argv=list(config.pipeline_args)) as pipeline:
        statistics = pipeline | beam.Create([batch]) | tfdv.GenerateStatistics()
        _ = statistics | tfdv.WriteStatisticsToTFRecord(str(tmp_path / "statistics"))
    (dataset,) = tfdv.load_statistics(str(tmp_path / "statistics")).datasets
    assert (dataset.num_examples, dataset.features[0].num_stats.max) == (3, 4.0)


@pytest.mark.flink
def test_a_scoring_job_gives_the_same_records_on_flink(flink, rows, stub, tmp_path):
    one = scored(tmp_path / "one", rows, stub, BeamConfig().pipeline_args)
    jobs = len(flink.job_states())
    args = (*flink.args, "--sdk_worker_parallelism=2")  # each task slot has a Python process, both one cache
    assert scored(tmp_path / "flink", rows, stub, BeamConfig(args=args).pipeline_args) == one
    assert set(flink.job_states()[jobs:]) == {"DONE"}


@pytest.mark.flink
def test_a_run_on_flink_from_tables_to_pushed_model_gives_the_results_of_the_local_runner(flink, tmp_path):
    local, on_flink = tmp_path / "local", tmp_path / "flink"
    for directory in (local, on_flink):
        directory.mkdir()
    run(local)
    jobs = len(flink.job_states())
    summary = run(on_flink, beam_args=flink.args)["summary.json"]
    assert set(flink.job_states()[jobs:]) == {"DONE"}
    for folder in WITH_EXAMPLES:
        expected = examples(local / "out" / "artifacts" / folder)
        assert expected, folder
        assert examples(on_flink / "out" / "artifacts" / folder) == expected, folder
    golden = json.loads(GOLDEN["summary.json"].read_text(encoding="utf-8"))
    found = {path: value for path, value in summary.items() if not path.startswith("set_keys.beam.args")}
    assert not differences(golden, found, TOLERANCE, patterns("summary.json"))
    assert list((on_flink / "out" / "serving").glob("*/*/saved_model.pb"))


def examples(folder: pathlib.Path) -> collections.Counter[tuple[str, bytes]]:
    """How often each tf.Example is in the files under a folder, by the name of the split, in no order.

    Without the time of a score: it is that of the replayed table, which each run has a copy of.
    """
    counts: collections.Counter[tuple[str, bytes]] = collections.Counter()
    for file in sorted(folder.rglob("*.gz")):
        if not file.name.endswith(".jsonl.gz"):
            for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator():
                example = Example.FromString(record)
                example.features.feature.pop("scored_at", None)
                counts[file.parent.name, example.SerializeToString(deterministic=True)] += 1
    return counts

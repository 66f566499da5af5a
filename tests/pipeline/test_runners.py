"""The same pipeline on Beam's local runner, in one process and in two, and on a Dask cluster of two processes."""

import dataclasses
import functools
import glob
import pathlib
from collections.abc import Callable, Iterator

import apache_beam as beam
import distributed
import pytest
import tensorflow as tf
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.transforms.window import FixedWindows, GlobalWindows

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.scores import ScoreRecord, read_scores
from sllmr.pipeline.config import BeamConfig
from tests.components.llm_scorer.market import market_items, market_rows
from tests.components.llm_scorer.stub_server import StubServer, running_stub

pytestmark = pytest.mark.slow

WORKERS = 2


@pytest.fixture(scope="module")
def dask_args() -> Iterator[tuple[str, ...]]:
    with distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
        address = f"--dask_client_address={cluster.scheduler_address}"
        yield BeamConfig(args=("--runner=DaskRunner", address)).pipeline_args


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server


class SplitByParity(beam.DoFn):
    """The number to the main output and, tagged, to `even` or `odd`; at the end of the bundle its sum to `sum`."""

    def start_bundle(self) -> None:
        self._sum = 0

    def process(self, number: int, addend: int):
        self._sum += number
        yield number + addend
        yield beam.pvalue.TaggedOutput("odd" if number % 2 else "even", number)

    def finish_bundle(self):
        yield beam.pvalue.TaggedOutput("sum", GlobalWindows.windowed_value(self._sum))


def length(word: str) -> tuple[int, str]:
    return len(word), word


def fail(number: int) -> int:
    raise ValueError(f"no number may be {number}")


class Remembering(beam.DoFn):
    STATE = ReadModifyWriteStateSpec("state", beam.coders.VarIntCoder())

    def process(self, element: tuple[str, int], state=beam.DoFn.StateParam(STATE)):  # noqa: B008  Beam's own form
        yield element


def test_tags_side_inputs_and_the_ends_of_bundles_reach_their_consumers(dask_args):
    with beam.Pipeline(argv=list(dask_args)) as pipeline:
        ten = pipeline | "Ten" >> beam.Create([10])
        split = (
            pipeline
            | beam.Create(range(100))
            | beam.ParDo(SplitByParity(), beam.pvalue.AsSingleton(ten)).with_outputs("even", "odd", "sum", main="all")
        )
        total = split["sum"] | beam.CombineGlobally(sum)
        assert_that(split["all"], equal_to(list(range(10, 110))), label="All")
        assert_that(split["even"], equal_to(list(range(0, 100, 2))), label="Even")
        assert_that(split["odd"], equal_to(list(range(1, 100, 2))), label="Odd")
        assert_that(total, equal_to([4950]), label="Sum")


def test_every_branch_reads_groups_and_writes(dask_args, tmp_path):
    words = [f"{'x' * (n % 7)}{n}" for n in range(200)]
    for part in range(3):
        (tmp_path / f"in-{part}.txt").write_text("\n".join(words[part::3]) + "\n")
    with beam.Pipeline(argv=list(dask_args)) as pipeline:
        read = pipeline | beam.io.ReadFromText(str(tmp_path / "in-*.txt"))
        _ = read | "WriteWords" >> beam.io.WriteToText(str(tmp_path / "words"))
        counts = read | beam.Map(length) | beam.combiners.Count.PerKey() | "Tell" >> beam.Map(str)
        _ = counts | "WriteCounts" >> beam.io.WriteToText(str(tmp_path / "counts"))
    assert sorted(lines(tmp_path / "words")) == sorted(words)
    expected = {n: sum(len(word) == n for word in words) for n in map(len, words)}
    assert sorted(lines(tmp_path / "counts")) == sorted(str(pair) for pair in expected.items())


def lines(prefix: pathlib.Path) -> list[str]:
    return [line for file in glob.glob(f"{prefix}-*") for line in pathlib.Path(file).read_text().splitlines()]


def test_a_step_that_fails_fails_the_pipeline_with_its_own_words(dask_args):
    pipeline = beam.Pipeline(argv=list(dask_args))
    _ = pipeline | beam.Create([7]) | beam.Map(fail)
    with pytest.raises(ValueError, match="no number may be 7"):
        pipeline.run().wait_until_finish()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda numbers: numbers | beam.ParDo(Remembering()), "carries no stateful or splittable DoFn, got the step"),
        (
            lambda numbers: numbers | beam.WindowInto(FixedWindows(60)) | beam.GroupByKey(),
            "groups in the global window only, got FixedWindows",
        ),
    ],
)
def test_what_the_runner_cannot_carry_is_refused_before_anything_runs(dask_args, build: Callable, message: str):
    pipeline = beam.Pipeline(argv=list(dask_args))
    _ = build(pipeline | beam.Create([("a", 1)]))
    with pytest.raises(NotImplementedError, match=message):
        pipeline.run()


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


def test_a_scoring_job_gives_the_same_records_on_every_runner(dask_args, stub, tmp_path):
    rows = str(tmp_path / "rows.tfrecord.gz")
    with tf.io.TFRecordWriter(rows, "GZIP") as writer:
        for row in market_rows():
            writer.write(row)
    one_process = scored(tmp_path / "one", rows, stub, BeamConfig().pipeline_args)
    assert len(one_process) == 10
    assert scored(tmp_path / "dask", rows, stub, dask_args) == one_process
    processes = ("--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}")
    assert scored(tmp_path / "processes", rows, stub, BeamConfig(args=processes).pipeline_args) == one_process

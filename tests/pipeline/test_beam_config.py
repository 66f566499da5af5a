"""`beam.args` that Flink or Spark could not use are refused before anything runs."""

import re
import socket

import pytest
from pydantic import ValidationError
from tfx.utils.dependency_utils import make_beam_dependency_flags

from sllmr.pipeline.beam_config import BeamConfig, RunnerError, check_runner
from sllmr.pipeline.config import ConfigError, load_config

POOL = ("--environment_type=EXTERNAL", "--environment_config=localhost:50000")


@pytest.mark.parametrize(
    "args",
    [
        ("--runner=DaskRunner",),
        ("--runner", "DaskRunner"),
        ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner",),
        ("--runner=sllmr.pipeline.dask_runner.DaskRunner",),
    ],
)
def test_a_dask_runner_is_refused_with_the_reason_and_flink(tmp_path, args):
    (tmp_path / "shop.yaml").write_text(f"data: {{interactions: a, items: b}}\nbeam: {{args: {list(args)}}}\n")
    with pytest.raises(
        ConfigError, match=r"beam\.args: .* writes empty files .* was removed; set --runner=FlinkRunner"
    ):
        load_config(tmp_path / "shop.yaml")


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (("--runner=FlinkRunner", "--job_endpoint=h:8099"), "--environment_type"),
        (("--runner=flinkrunner", "--flink_master=h:8081"), "--environment_type"),
        (("--runner", "FlinkRunner", "--flink_master", "h:8081"), "--environment_type"),
        (("--runner=SparkRunner", "--spark_master_url=spark://h:7077"), "--environment_type"),
        (("--runner=FlinkRunner", "--job_endpoint=h:8099", POOL[0]), "--environment_config"),
        (("--runner=FlinkRunner", POOL[0]), "--environment_config"),
        (("--runner=PortableRunner", *POOL), "--job_endpoint"),
    ],
)
def test_an_option_that_a_cluster_needs_is_named(args, missing):
    with pytest.raises(ValidationError, match=f"got no {missing}; add {missing}="):
        BeamConfig(args=args)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("--direct_running_mode=multi_processing", "--environment_type=EXTERNAL"),
        ("--runner=FlinkRunner",),
        ("--runner=FlinkRunner", "--flink_master=[local]"),
        ("--runner=SparkRunner", "--spark_master_url=local[4]"),
        ("--runner=FlinkRunner", "--job_endpoint=h:8099", *POOL),
        ("--runner=FlinkRunner", "--flink_master=h:8081", "--environment_type=LOOPBACK"),
        ("--runner=DataflowRunner", "--project=p", "--sdk_container_image=i"),
    ],
)
def test_complete_arguments_pass_unchanged(args):
    own = ("--beam_plugins=sllmr.components", "--sdk_container_image=none")
    given = tuple(arg for arg in BeamConfig(args=args).pipeline_args if arg not in own)
    assert given[-len(args) :] == args if args else given == ("--runner=FnApiRunner",)


@pytest.fixture
def closed_port():
    with socket.socket() as bound:
        bound.bind(("localhost", 0))  # and does not listen
        yield bound.getsockname()[1]


def test_a_job_server_that_does_not_answer_is_said(closed_port):
    config = BeamConfig(args=("--runner=FlinkRunner", f"--job_endpoint=localhost:{closed_port}", *POOL))
    with pytest.raises(RunnerError, match=rf"--job_endpoint .* got localhost:{closed_port}.*start Beam's job server"):
        check_runner(config)


def test_a_job_server_that_answers_passes():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        check_runner(BeamConfig(args=("--runner=FlinkRunner", f"--job_endpoint=localhost:{port}", *POOL)))


def test_an_address_without_a_port_is_refused():
    with pytest.raises(RunnerError, match="must name HOST:PORT of a server that answers, got flink-host"):
        check_runner(BeamConfig(args=("--runner=FlinkRunner", "--job_endpoint=flink-host", *POOL)))


def test_a_pool_of_this_machine_that_does_not_answer_is_said(closed_port):
    args = ("--runner=FlinkRunner", "--job_server_java_launcher=true", POOL[0])
    config = BeamConfig(args=(*args, f"--environment_config=localhost:{closed_port}"))
    with pytest.raises(RunnerError, match=rf"--environment_config .* got localhost:{closed_port}.*pool of Python"):
        check_runner(config)


def test_no_java_is_said():
    with pytest.raises(RunnerError, match="needs Java, got no-such-java, which is not there; install"):
        check_runner(BeamConfig(args=("--runner=FlinkRunner", "--job_server_java_launcher=no-such-java")))


def test_a_missing_jar_is_named(tmp_path):
    jar = str(tmp_path / "none.jar")
    args = ("--runner=FlinkRunner", "--job_server_java_launcher=true", f"--flink_job_server_jar={jar}")
    with pytest.raises(RunnerError, match=f"--flink_job_server_jar .* got {re.escape(jar)}"):
        check_runner(BeamConfig(args=args))


@pytest.mark.parametrize("url", ["https://host/job-server.jar", "gs://bucket/job-server.jar"])
def test_a_jar_elsewhere_is_left_to_beam(url):
    args = ("--runner=FlinkRunner", "--job_server_java_launcher=true", f"--flink_job_server_jar={url}")
    check_runner(BeamConfig(args=args))


@pytest.mark.parametrize(
    ("args", "interactions", "cores", "is_advised"),
    [
        (BeamConfig().args, 300_000, 2, True),
        (BeamConfig().args, 299_999, 2, False),
        (BeamConfig().args, 300_000, 1, False),
        (("--direct_running_mode=multi_processing", "--direct_num_workers=2"), 300_000, 8, False),
    ],
)
def test_worker_processes_are_advised_for_large_tables_by_default(args, interactions, cores, is_advised):
    advice = BeamConfig(args=args).advice(interactions, cores)
    assert (advice is not None) == is_advised
    if advice is not None:
        assert "--direct_running_mode=multi_processing, --direct_num_workers=2" in advice


@pytest.mark.parametrize(
    "args",
    [
        BeamConfig().args,
        ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
        ("--runner=apache_beam.runners.direct.DirectRunner",),
        ("--runner", "FnApiRunner", "--sdk_container_image", "mine"),
    ],
)
def test_tfx_packs_no_sources_for_local_workers(args, monkeypatch):
    monkeypatch.setattr("tfx.utils.dependency_utils.build_ephemeral_package", lambda: pytest.fail("packed"))
    given = list(BeamConfig(args=args).pipeline_args)
    assert make_beam_dependency_flags(given) == given


def test_an_image_that_is_named_stays():
    args = ("--runner=DirectRunner", "--sdk_container_image=mine")
    assert BeamConfig(args=args).pipeline_args == (*args, "--beam_plugins=sllmr.components")

"""How Beam runs the data-parallel steps, and checks before the first step that it can."""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sllmr.models.errors import UserError

_MASTERS = {"flinkrunner": "flink_master", "sparkrunner": "spark_master_url", "portablerunner": None}
"""Runner that sends a pipeline to a job server -> the option that names the cluster."""

PLUGIN = "sllmr.components"
"""What every Beam worker imports before it unpickles anything."""

INTERACTIONS_FOR_PROCESSES = 300_000
"""From this many on, a run in worker processes takes less time than one in a single process; see docs/runners.md."""

_LOCAL = ("fnapirunner", "directrunner", "bundlebaseddirectrunner", "switchingdirectrunner")
"""Runners whose workers run in this environment."""

_NO_PACKAGE = "--sdk_container_image=none"
"""Without it TFX packs its sources in every step, for workers that lack them, and leaves them in the temporary folder.

TFX packs nothing if an option says what workers run in. Local workers run in no container and do not read this option.
"""

_TIMEOUT_S = 5

_SEE = "see docs/runners.md"


class RunnerError(UserError):
    """What beam.args need is not there; the message says which, and the fix."""


class BeamConfig(BaseModel):
    """How Beam runs the data-parallel steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    args: tuple[str, ...] = Field(
        default=("--direct_running_mode=in_memory", "--direct_num_workers=1"),
        description="passed through to Beam: --runner, --direct_running_mode=multi_processing; see docs/runners.md",
    )

    @field_validator("args")
    @classmethod
    def _no_dask_runner(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("DaskRunner" in arg for arg in value):
            raise ValueError(
                f"beam.args must not name a Dask runner, got {list(value)}: Beam's writes empty files without an "
                f"error, and this project's own was removed; set --runner=FlinkRunner, {_SEE}"
            )
        return value

    @field_validator("args")
    @classmethod
    def _workers_have_an_environment(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        options = _options(value)
        if _runner(options) not in _MASTERS:
            return value
        if _runner(options) == "portablerunner" and not options.get("job_endpoint"):
            raise ValueError(
                "beam.args must name the job server of --runner=PortableRunner, got no --job_endpoint; add "
                f"--job_endpoint=localhost:8099, {_SEE}"
            )
        kind, of_kind = options.get("environment_type"), options.get("environment_config")
        if kind is None and not _starts_a_cluster_here(options):
            raise ValueError(
                "beam.args must say how the cluster starts Python workers of this project, got no "
                f"--environment_type; add --environment_type=EXTERNAL and --environment_config=localhost:50000, {_SEE}"
            )
        if kind == "EXTERNAL" and not of_kind:
            raise ValueError(
                "beam.args must name the pool of Python workers of --environment_type=EXTERNAL, got no "
                f"--environment_config; add --environment_config=localhost:50000, {_SEE}"
            )
        return value

    @property
    def pipeline_args(self) -> tuple[str, ...]:
        """`args` with Beam's local Python runner where none is named, and with what every run needs.

        Beam's own default would first download another runner's binary, unpinned, and use that.
        """
        args = self.args
        if "runner" not in _options(args):
            args = ("--runner=FnApiRunner", *args)
        if _runner(_options(args)) in _LOCAL and "sdk_container_image" not in _options(args):
            args = (*args, _NO_PACKAGE)
        return (*args, f"--beam_plugins={PLUGIN}")

    @property
    def starts_local_processes(self) -> bool:
        """Whether Beam's local runner executes bundles in processes of its own."""
        return _options(self.args).get("direct_running_mode") == "multi_processing"

    def advice(self, interactions: int, cores: int) -> str | None:
        """Advice to use worker processes, if a run on a table of this size takes less time in them; None otherwise."""
        if self.args != BeamConfig().args or interactions < INTERACTIONS_FOR_PROCESSES or cores < 2:
            return None
        return (
            f"Beam worked on {interactions:,} interactions in one process; several take less time and more memory: "
            f"beam: {{args: [--direct_running_mode=multi_processing, --direct_num_workers={cores}]}} ({_SEE})"
        )


def check_runner(config: BeamConfig) -> None:
    """Checks that what `beam.args` need for Flink or Spark is there, as far as this machine can tell.

    Raises:
        RunnerError: no job server or pool of workers answers, or there is no Java or no jar to start one.
    """
    options = _options(config.args)
    if _runner(options) not in _MASTERS:
        return
    endpoint = options.get("job_endpoint")
    if endpoint:
        if endpoint != "embed":
            _check_answers("--job_endpoint", endpoint, "start Beam's job server there")
        return
    java = options.get("job_server_java_launcher", "java")
    if shutil.which(java) is None:
        raise RunnerError(
            f"beam.args with --runner={options['runner']} start a job server, which needs Java, got {java}, which is "
            f"not there; install a Java runtime or name a running job server with --job_endpoint, {_SEE}"
        )
    for key in ("flink_job_server_jar", "spark_job_server_jar"):
        jar = options.get(key, "")
        if jar and "://" not in jar and not os.path.isfile(jar):
            raise RunnerError(
                f"--{key} of beam.args must name a file or a URL, got {jar}, which is neither; correct it"
            )
    if options.get("environment_type") == "EXTERNAL" and _starts_a_cluster_here(options):
        _check_answers("--environment_config", options["environment_config"], "start the pool of Python workers there")


def _options(args: Sequence[str]) -> Mapping[str, str]:
    """The values by option; both `--key=value` and `--key value` count, the last one wins."""
    options: dict[str, str] = {}
    key = ""
    for arg in args:
        if arg.startswith("--"):
            key, _, options[key] = arg.removeprefix("--").partition("=")
        elif key:
            options[key] = arg
    return options


def _runner(options: Mapping[str, str]) -> str:
    """The runner's name in lower case; Beam accepts any case, and a package before the name."""
    return options.get("runner", "").rpartition(".")[2].lower()


def _starts_a_cluster_here(options: Mapping[str, str]) -> bool:
    """Whether Beam starts the cluster on this machine for each pipeline, so that it can start workers itself."""
    option = _MASTERS[_runner(options)]
    if option is None or options.get("job_endpoint"):
        return False
    master = options.get(option, "")
    return master in ("", "[local]", "[auto]", "local") or master.startswith("local[")


def _check_answers(option: str, address: str, fix: str) -> None:
    host, _, port = address.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise RunnerError(
            f"{option} of beam.args must name HOST:PORT of a server that answers, got {address}: {error}; {fix}, or "
            f"correct the address, {_SEE}"
        ) from None

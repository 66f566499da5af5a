"""Compiles the pipeline for Kubeflow Pipelines v2 and Vertex AI with TFX's own runner; contacts no cluster."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration import pipeline as tfx_pipeline

from sllmr.models.errors import UserError
from sllmr.pipeline.config import PATHS, Config, load_config
from sllmr.pipeline.graph import Cluster, build_pipeline
from sllmr.pipeline.inputs import check_inputs

SPEC_FILE = "pipeline.json"
CACHE_DIRECTORY = "cache"


class KubeflowError(UserError):
    """The pipeline cannot be compiled; the message says why and the fix."""


def compile_pipeline(
    config_file: pathlib.Path, *, image: str, root: str, pipeline_root: str, output: pathlib.Path
) -> None:
    """Writes the specification of the pipeline, and prints where each file of the configuration must lie.

    Tables and prompts are read here: their columns are checked, and their fingerprints are part of the specification.

    Args:
        config_file: YAML, see pipeline.config.
        image: of the containers, see deploy/Dockerfile.
        root: absolute folder that every container reaches, such as /gcs/bucket/shop: the files of the configuration,
            the cache and the pushed models lie there.
        pipeline_root: URI of the artifacts, such as gs://bucket/shop.
        output: gets SPEC_FILE.

    Raises:
        KubeflowError: `root` is no absolute path, two files would lie at one place, or kfp is not installed.
        ConfigError: the configuration cannot be used.
    """
    if not root.startswith("/"):
        raise KubeflowError(
            f"SLLMR_ROOT must be an absolute path in the containers, got {root!r}; mount the bucket, as Vertex AI does"
            " under /gcs, and write /gcs/bucket/shop"
        )
    config = load_config(config_file)
    check_inputs(config)
    if config.serving.infra_validation_tag is not None:
        raise KubeflowError(
            f"serving.infra_validation_tag is for this machine's Docker, got {config.serving.infra_validation_tag!r};"
            " remove it from the configuration of a cluster"
        )
    places = remote_paths(config, config_file.resolve().parent, root)
    pipeline = build_pipeline(config, pathlib.Path(root), Cluster(pipeline_root))
    for node in pipeline.components:
        move(node, places)
    run(pipeline, image, output)
    for local, remote in places.items():
        print(f"{local} -> {remote}")


def remote_paths(config: Config, folder: pathlib.Path, root: str) -> dict[str, str]:
    """Where each path of the configuration lies under `root`: as it lies under `folder`, or else by its name.

    Raises:
        KubeflowError: two paths have one place.
    """
    places = {config.cache_dir: f"{root.rstrip('/')}/{CACHE_DIRECTORY}"}
    for section, keys in PATHS.items():
        for path in filter(None, (getattr(getattr(config, section), key) for key in keys)):
            inside = pathlib.Path(path).is_relative_to(folder)
            name = pathlib.Path(path).relative_to(folder).as_posix() if inside else pathlib.Path(path).name
            place = f"{root.rstrip('/')}/{name}"
            if place in places.values() and places.get(path) != place:
                raise KubeflowError(
                    f"two files must not lie at one place, got {place} for {path} too; rename one of them"
                )
            places[path] = place
    return places


def move(node: BaseNode, places: Mapping[str, str]) -> None:
    """Replaces the paths of this machine in the properties of a step by those of the containers."""
    properties: dict[str, Any] = node.exec_properties
    for name, value in properties.items():
        if isinstance(value, str):
            properties[name] = _moved(value, places)


def _moved(text: str, places: Mapping[str, str]) -> str:
    if not places:
        return text
    longest_first = "|".join(re.escape(local) for local in sorted(places, key=len, reverse=True))
    return re.sub(rf"({longest_first})(?![\w.-])", lambda match: places[match[1]], text)


def run(pipeline: tfx_pipeline.Pipeline, image: str, output: pathlib.Path) -> None:
    """Compiles by TFX's runner, which `tfx pipeline create` patches to write into a folder of its own."""
    try:
        from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner
    except ImportError as error:
        raise KubeflowError(f"kfp must be installed, but: {error}; pip install 'sllmr[kubeflow]'") from None
    settings = kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(default_image=image, use_pipeline_spec_2_1=True)
    kubeflow_v2_dag_runner.KubeflowV2DagRunner(settings, str(output), SPEC_FILE).run(pipeline)


def from_environment(environment: Mapping[str, str], default_config: pathlib.Path) -> dict[str, Any]:
    """The arguments of compile_pipeline.

    Raises:
        KubeflowError: a variable that has no default is not set.
    """
    missing = [name for name in ("SLLMR_IMAGE", "SLLMR_ROOT", "SLLMR_PIPELINE_ROOT") if not environment.get(name)]
    if missing:
        raise KubeflowError(
            f"kubeflow_runner.py needs {', '.join(missing)} in the environment; see docs/runners.md for an example"
        )
    return {
        "config_file": pathlib.Path(environment.get("SLLMR_CONFIG", default_config)),
        "image": environment["SLLMR_IMAGE"],
        "root": environment["SLLMR_ROOT"],
        "pipeline_root": environment["SLLMR_PIPELINE_ROOT"],
        "output": pathlib.Path(environment.get("SLLMR_OUTPUT", os.getcwd())),
    }

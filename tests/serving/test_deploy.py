"""What deploy/ configures."""

import pathlib

import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from sllmr.pipeline.served_versions import SERVED_VERSIONS

DEPLOY = pathlib.Path(__file__).parents[2] / "deploy"


def test_the_server_serves_as_many_versions_as_pruning_keeps():
    text = (DEPLOY / "models.config").read_text(encoding="utf-8")
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config

    assert model.model_version_policy.latest.num_versions == SERVED_VERSIONS
    assert (model.name, model.base_path) == ("ranker", "/models/ranker")


def test_the_compose_file_pins_the_image_listens_on_loopback_and_names_files_that_exist():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["serving"]

    assert "latest" not in service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    files = [argument.split("=/deploy/")[1] for argument in service["command"] if "=/deploy/" in argument]
    assert len(files) == 2
    assert all((DEPLOY / name).is_file() for name in files)

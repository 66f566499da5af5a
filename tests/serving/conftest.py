import pathlib

import pytest

from tests.models.conftest import transform_output  # noqa: F401
from tests.models.exporting import export_model
from tests.serving.server import ModelServer


@pytest.fixture(scope="session")
def pushed(transform_output, tmp_path_factory) -> pathlib.Path:  # noqa: F811
    """The folder of a pushed model with one version."""
    directory = tmp_path_factory.mktemp("pushed")
    export_model("dcnv2", transform_output, str(directory / "1"))
    return directory


@pytest.fixture(scope="module")
def server(pushed):
    with ModelServer("ranker", pushed) as running:
        yield running

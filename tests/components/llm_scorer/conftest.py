"""The real local LLM, once for all tests of this folder."""

import pathlib
from collections.abc import Iterator

import pytest

from components.llm_scorer.local_model import fetch_local_model
from components.llm_scorer.local_server import local_server
from tests.components.llm_scorer.stub_server import StubServer, running_stub

CACHE = pathlib.Path(__file__).parents[3] / "data" / "cache"


@pytest.fixture(scope="session")
def model_path() -> str:
    return fetch_local_model(str(CACHE / "models"))


@pytest.fixture(scope="session")
def llm_url(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("llm") / "server.log"
    with local_server(model_path, threads=2, slots=4, context=1024, log_path=str(log)) as url:
        yield url


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server

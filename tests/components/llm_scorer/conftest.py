"""The real local LLM, once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from sllmr.components.llm_scorer.endpoint.local_model import fetch_local_model
from sllmr.components.llm_scorer.endpoint.local_server import local_server
from sllmr.components.llm_scorer.store.postgresql import disconnect
from tests.components.llm_scorer.postgresql_server import PASSWORD, PostgresqlServer, running_postgresql
from tests.components.llm_scorer.stub_server import StubServer, running_stub
from tests.downloads import DOWNLOADS


@pytest.fixture(scope="session")
def model_path() -> str:
    return fetch_local_model(str(DOWNLOADS / "models"))


@pytest.fixture(scope="session")
def llm_url(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("llm") / "server.log"
    with local_server(model_path, threads=2, slots=4, context=1024, log_path=str(log)) as url:
        yield url


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture
def shared_store(postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty database."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    yield postgresql.new_database()
    disconnect()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path) -> str:
    """Of either kind, empty."""
    return str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("shared_store")

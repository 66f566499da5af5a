"""Which endpoints' responses count for each other."""

import apache_beam as beam
import pytest

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.stub_server import running_stub
from tests.components.llm_scorer.test_job import stub_settings, workspace


def key(**settings) -> str:
    config = LlmConfig.model_validate({"strategy": "listwise", **settings}).resolve()
    (request,) = create_strategy(config).requests(context(), market_items())
    return request.key


def test_keys_tell_hosts_ports_and_paths_apart():
    urls = (
        "https://a.example/v1",
        "https://b.example/v1",
        "https://a.example:8000/v1",
        "https://a.example/deployments/x/v1",
        "https://api.openai.com.evil.example/v1",
        "https://api.openai.com/v1",
    )
    assert len({key(model="default", base_url=url) for url in urls}) == len(urls)


def test_the_same_endpoint_has_one_key():
    same = ("https://a.example/v1", "https://A.example:443/v1/", "http://a.example:80/v1")
    assert len({key(model="default", base_url=url) for url in same}) == 1


def test_the_name_alone_is_the_key_of_openai_and_of_the_bundled_model():
    assert key(model="gpt-4o-mini") == key(model="gpt-4o-mini", base_url="https://eu.api.openai.com/v1")
    assert key(model=BUNDLED_MODEL) == key(model=BUNDLED_MODEL, base_url="http://127.0.0.1:8080/v1")


def test_a_model_id_takes_the_place_of_the_endpoint():
    first, second = ({"model": "default", "base_url": f"https://{host}.example/v1"} for host in "ab")
    assert key(**first, model_id="m") == key(**second, model_id="m") != key(**first)
    assert key(**first, model_id="a.example") == key(**first)
    assert key(**first, model_id="default") == key(model="default")


@pytest.mark.slow
def test_two_servers_with_one_model_name_do_not_answer_for_each_other(stub, tmp_path):
    settings = {**stub_settings(stub), "model": "default"}
    score(workspace(tmp_path, "one", settings), beam.Create(market_rows()))
    with running_stub() as other:
        book = score(workspace(tmp_path, "two", {**settings, "base_url": other.base_url}), beam.Create(market_rows()))
        assert book.requests.sent == len(other.received) == 10


@pytest.mark.slow
def test_responses_without_an_endpoint_stop_the_run_until_it_is_told_whether_they_count(stub, tmp_path):
    settings = {**stub_settings(stub), "model": "default"}
    # As an earlier version stored them.
    score(workspace(tmp_path, "earlier", {**settings, "model_id": "default"}), beam.Create(market_rows()))
    with pytest.raises(
        LlmError, match=r"set llm\.model_id: default to use them .* or llm\.model_id: 127\.0\.0\.1:\d+ "
    ):
        score(workspace(tmp_path, "undecided", settings), beam.Create(market_rows()))
    assert len(stub.received) == 10
    used = score(workspace(tmp_path, "used", {**settings, "model_id": "default"}), beam.Create(market_rows()))
    assert used.requests.sent == 0
    host = stub.base_url.removeprefix("http://").removesuffix("/v1")
    anew = score(workspace(tmp_path, "anew", {**settings, "model_id": host}), beam.Create(market_rows()))
    assert anew.requests.sent == 10
    assert ResponseCache(str(tmp_path / "cache")).receipt_keys() == set()

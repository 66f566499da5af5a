"""Vectors by /v1/embeddings: a stub for prices and faults, the real local server for the wire."""

import hashlib
from typing import Any

import apache_beam as beam
import numpy as np
import pytest

from sllmr.components.catalog import Item, write_catalog
from sllmr.components.item_embedder.config import EmbeddingEndpoint, ItemVectorsConfig
from sllmr.components.item_embedder.endpoint import EndpointEmbedder
from sllmr.components.item_embedder.job import EmbeddingJob
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.models.item_vectors import VECTORS_FILE, read_item_vectors
from tests.components.llm_scorer.stub_server import StubServer, failing, running_stub
from tests.downloads import link_models

TOKENS = 10
USD_PER_TOKEN = 0.02 / 1e6
"""What text-embedding-3-small costs."""


def vector_of(text: str) -> list[float]:
    return [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:4]]


def answering(handler: Any, body: dict[str, Any]) -> None:
    usage = {"prompt_tokens": TOKENS, "total_tokens": TOKENS}
    handler.send_json(200, {"data": [{"embedding": vector_of(body["input"])}], "usage": usage})


@pytest.fixture
def stub():
    with running_stub() as server:
        server.always = answering
        yield server


def items(count: int) -> list[Item]:
    return [Item(item_id=f"i{n}", title=f"Drum {n}") for n in range(count)]


def job(directory, stub: StubServer, catalog: list[Item], **endpoint) -> EmbeddingJob:
    write_catalog(str(directory / "catalog"), catalog)
    values = {
        "model": "text-embedding-3-small",
        "base_url": stub.base_url,
        "api_key_env": "NO_SUCH_KEY",
        "concurrency": 1,
        "max_retries": 0,
        **endpoint,
    }
    return EmbeddingJob(
        config=ItemVectorsConfig.model_validate({"source": "endpoint", "endpoint": values}),
        catalog_directory=str(directory / "catalog"),
        cache_directory=str(directory / "cache"),
        work_directory=str(directory),
        output_directory=str(directory / "out"),
        make_pipeline=beam.Pipeline,
    )


def sent(stub: StubServer) -> list[str]:
    return sorted(body["input"] for body in stub.received)


def test_each_text_is_paid_for_once_and_a_grown_catalog_sends_its_new_texts(tmp_path, stub):
    twins = [Item(item_id="twin", title="Drum 0"), Item(item_id="nothing")]

    first = job(tmp_path, stub, [*items(3), *twins]).run()

    assert sent(stub) == ["Drum 0", "Drum 1", "Drum 2"]
    assert (first.model, first.items, first.items_with_vector, first.dimensions) == ("text-embedding-3-small", 5, 4, 4)
    assert first.cost_usd == pytest.approx(3 * TOKENS * USD_PER_TOKEN)
    found = read_item_vectors(str(tmp_path / "out" / VECTORS_FILE))
    for item_id, title in (("i2", "Drum 2"), ("twin", "Drum 0")):
        expected = np.array(vector_of(title)) / np.linalg.norm(vector_of(title))
        np.testing.assert_allclose(found.vectors[found.row[item_id]], expected, atol=1e-6)

    again = job(tmp_path, stub, items(4)).run()

    assert sent(stub) == ["Drum 0", "Drum 1", "Drum 2", "Drum 3"]
    assert (again.texts_embedded, again.texts_cached) == (1, 3)
    assert again.cost_usd == pytest.approx(TOKENS * USD_PER_TOKEN)


def test_the_plan_tells_texts_and_cost_without_a_request(tmp_path, stub):
    planned = job(tmp_path, stub, items(3)).estimate()
    assert stub.received == []
    assert planned is not None
    assert (planned.requests, planned.cached, planned.to_send) == (3, 0, 3)
    assert planned.cost_nano_usd == round(planned.usage.prompt * USD_PER_TOKEN * 1e9)
    assert 3 * 2 <= planned.usage.prompt <= 3 * 6  # "Drum 1" has two words

    job(tmp_path, stub, items(3)).run()
    after = job(tmp_path, stub, items(3)).estimate()
    assert after is not None
    assert (after.cached, after.to_send, after.cost_nano_usd) == (3, 0, 0)
    assert after.prior_nano_usd == round(3 * TOKENS * USD_PER_TOKEN * 1e9)


def test_a_budget_that_ends_keeps_what_was_paid_for(tmp_path, stub):
    # What a request can cost at most counts, a token being a byte at least: more than TOKENS.
    budget = {"max_tokens": 4 * TOKENS + 90}
    with pytest.raises(LlmError, match=r"of 9 texts were not embedded, as item_vectors\.endpoint\.budget would have"):
        job(tmp_path, stub, items(9), budget=budget).run()
    paid = sent(stub)
    assert 0 < len(paid) < 9

    job(tmp_path, stub, items(9)).run()

    assert sent(stub) == sorted(item.title for item in items(9))


def test_a_refused_key_ends_the_step_in_the_words_of_its_section(tmp_path, stub):
    stub.always = failing(401, {"message": "Incorrect API key", "code": "invalid_api_key"})
    with pytest.raises(LlmError) as caught:
        job(tmp_path, stub, items(2)).run()
    assert "llm." not in str(caught.value)
    assert "NO_SUCH_KEY" in str(caught.value)


def test_too_many_texts_without_a_vector_end_the_step_and_few_do_not(tmp_path, stub):
    def answer_most(handler, body):
        if body["input"] == "Drum 1":
            handler.send_json(200, {"data": [{"embedding": [0, 0, 0, 0]}], "usage": {"prompt_tokens": TOKENS}})
        else:
            answering(handler, body)

    stub.always = answer_most
    with pytest.raises(LlmError, match=r"item_vectors\.endpoint\.max_failure_rate=0\.1 of the texts .* got 1 of 4"):
        job(tmp_path, stub, items(4)).run()
    report = job(tmp_path, stub, items(4), max_failure_rate=0.5).run()
    assert (report.items, report.items_with_vector) == (4, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "m", "base_url": "host/v1"}, r"base_url must be like .*; set item_vectors\.endpoint\.base_url"),
        (
            {"model": "m", "budget": {"max_cost_usd": 1}},
            r"max_cost_usd needs the price of 'm', .*set item_vectors\.endpoint\.price_per_million_tokens",
        ),
        ({"model": "m", "extra_body": {"input": "x"}}, "extra_body must not hold input"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused_when_the_configuration_is_built(values, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingEndpoint.model_validate(values)


@pytest.mark.slow
@pytest.mark.local_llm
def test_the_bundled_llm_embeds_through_a_local_server(tmp_path):
    link_models(tmp_path)
    embedder = EndpointEmbedder(EmbeddingEndpoint(model=BUNDLED_MODEL), str(tmp_path), None, str(tmp_path))
    texts = ["Red lipstick for the evening", "Red lipstick for the night", "A wooden drum"]

    embedded = embedder.embed(texts)

    first, second, other = (embedded.vectors[text] for text in texts)
    assert first @ second > first @ other
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert (embedded.sent, embedded.cost_usd) == (3, 0)

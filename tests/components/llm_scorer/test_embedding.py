import base64
import math
import os
import struct

import numpy as np
import openai
import pytest

from components.llm_scorer import exchange
from components.llm_scorer.client import CallFailed, LlmClient
from components.llm_scorer.config import BUNDLED_MODEL, LlmConfig, LlmError
from components.llm_scorer.exchange import Answer
from components.llm_scorer.local_server import local_server
from components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items
from tests.components.llm_scorer.stub_server import StubServer

CATALOG = market_items()
VECTORS = {"i1": [1, 0], "i2": [0, 2], "i20": [3, 0], "i21": [1, 1], "i22": [-1, -1]}


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def write_vectors(path, vectors: dict[str, list[float]], dtype=np.float16) -> str:
    np.savez(path, item_id=np.array(list(vectors)), vector=np.array(list(vectors.values()), dtype))
    return str(path)


def by_file(path: str, **values):
    return create_strategy(LlmConfig(strategy="embedding", embedding_file=path, **values).resolve())


def answer(vector: list[float]) -> Answer:
    packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return Answer(response={"vector": packed}, answered_at=1)


def by_endpoint(**values):
    return create_strategy(
        LlmConfig(model="m", base_url="http://127.0.0.1:9/v1", strategy="embedding", **values).resolve()
    )


def test_scores_by_a_file_lag_behind_the_newest_items_too(tmp_path):
    path = write_vectors(tmp_path / "v.npz", VECTORS)
    results = by_file(path, history_lag=1).results(context(), ())
    assert [r.raw_score for r in results] == pytest.approx(
        [cosine(VECTORS[c], VECTORS["i2"]) for c in ("i20", "i21", "i22")], abs=1e-6
    )
    assert {r.reason for r in by_file(path, history_lag=2).results(context(), ())} == {exchange.NO_VECTOR}


def test_the_score_is_the_best_cosine_to_the_history_by_either_source(tmp_path):
    expected = [max(cosine(VECTORS[c], VECTORS[h]) for h in ("i1", "i2")) for c in ("i20", "i21", "i22")]
    asked = context()
    answers = [answer(VECTORS[i]) for i in ("i1", "i2", "i20", "i21", "i22")]
    for results in (
        by_file(write_vectors(tmp_path / "v.npz", VECTORS)).results(asked, ()),
        by_endpoint().results(asked, answers),
    ):
        assert [r.item_id for r in results] == ["i20", "i21", "i22"]
        assert [r.raw_score for r in results] == pytest.approx(expected, abs=1e-6)
        assert [r.llm_score for r in results] == pytest.approx([(1 + e) / 2 for e in expected], abs=1e-6)


def test_only_the_latest_items_of_the_history_count(tmp_path):
    strategy = by_file(write_vectors(tmp_path / "v.npz", VECTORS), history_items=1)
    results = strategy.results(context(history=("i2", "i1")), ())
    assert [r.raw_score for r in results] == pytest.approx([0, math.sqrt(0.5), -math.sqrt(0.5)], abs=1e-6)


def test_a_file_asks_nothing_and_its_time_is_the_time_of_the_scores(tmp_path):
    path = write_vectors(tmp_path / "v.npz", VECTORS)
    os.utime(path, (5000, 5000))
    strategy = by_file(path)
    assert strategy.requests(context(), CATALOG) == ()
    assert {r.scored_at for r in strategy.results(context(), ())} == {5000}


def test_items_without_a_vector_fail_alone_and_count_for_no_history(tmp_path):
    vectors = {**VECTORS, "i21": [0, 0], "i2": [math.nan, 1]}
    del vectors["i22"]
    results = by_file(write_vectors(tmp_path / "v.npz", vectors)).results(context(), ())
    assert [r.reason for r in results] == ["", exchange.NO_VECTOR, exchange.NO_VECTOR]
    assert results[0].raw_score == pytest.approx(1)


def test_a_history_without_any_vector_fails_all_candidates(tmp_path):
    results = by_file(write_vectors(tmp_path / "v.npz", {"i20": [1, 0]})).results(context(), ())
    assert {r.reason for r in results} == {exchange.NO_VECTOR}


def test_another_file_is_another_version(tmp_path):
    first = by_file(write_vectors(tmp_path / "a.npz", VECTORS)).prompt_version
    assert by_file(write_vectors(tmp_path / "b.npz", {**VECTORS, "i1": [9, 9]})).prompt_version != first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"item_id": ["a"]}, "must be an .npz with `item_id`"),
        ({"item_id": [1], "vector": [[1.0]]}, r"got int64 \(1,\) and float64 \(1, 1\)"),
        ({"item_id": ["a", "b"], "vector": [[1.0]]}, r"got <U1 \(2,\)"),
        ({"item_id": ["a", "a"], "vector": [[1.0], [2.0]]}, "item_id must be unique, got 1 repeated"),
        ({"item_id": np.array(["a"], object), "vector": [[1.0]]}, "cannot be read so"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(LlmError, match=message):
        by_file(str(tmp_path / "v.npz"))


def test_a_missing_file_is_one_sentence():
    with pytest.raises(LlmError, match=r"llm\.embedding_file must be a file, got /nowhere\.npz"):
        by_file("/nowhere.npz")


def test_a_failed_history_item_fails_the_context_and_a_failed_candidate_itself():
    late = Answer(reason=exchange.TIMEOUT, detail="late")
    good = [answer(VECTORS[i]) for i in ("i1", "i2", "i20", "i21", "i22")]
    strategy = by_endpoint()
    history_failed = strategy.results(context(), [good[0], late, *good[2:]])
    assert [r.reason for r in history_failed] == [exchange.TIMEOUT] * 3
    candidate_failed = strategy.results(context(), [*good[:3], late, good[4]])
    assert [r.reason for r in candidate_failed] == ["", exchange.TIMEOUT, ""]


def test_vectors_that_do_not_fit_each_other_are_no_score():
    good = [answer(VECTORS[i]) for i in ("i1", "i2", "i20")]
    results = by_endpoint().results(context(), [*good, answer([1, 2, 3]), answer([0, 0])])
    assert [r.reason for r in results] == ["", exchange.INVALID_RESPONSE, exchange.NO_VECTOR]


def test_contexts_ask_for_the_same_item_by_the_same_request():
    strategy = by_endpoint()
    first = strategy.requests(context(name="a", items=("i20",), history=("i1",)), CATALOG)
    second = strategy.requests(context(name="b", items=("i1",), history=("i20",)), CATALOG)
    assert [r.key for r in first] == [r.key for r in reversed(second)]


def test_the_real_local_server_gives_the_vectors_that_the_openai_client_reads(model_path, tmp_path):
    settings = {"threads": 2, "slots": 2, "context": 256, "embeddings": True, "log_path": str(tmp_path / "log")}
    with local_server(model_path, **settings) as url:
        config = LlmConfig(model=BUNDLED_MODEL, base_url=url, strategy="embedding").resolve()
        client = LlmClient(config, url)
        strategy = create_strategy(config)
        requests = strategy.requests(context(), CATALOG)
        answers = [Answer(response=client.send(r), answered_at=1) for r in requests]
        client.close()
        plain = openai.OpenAI(base_url=url, api_key="none", http_client=openai.DefaultHttpxClient(trust_env=False))
        # One by one, as the strategy asks: llama.cpp's vector of a text depends a little on its company in a batch.
        answered = [plain.embeddings.create(model="m", input=r.body["input"]) for r in requests]
        vectors = [response.data[0].embedding for response in answered]
    expected = [max(cosine(c, h) for h in vectors[:2]) for c in vectors[2:]]
    assert [r.raw_score for r in strategy.results(context(), answers)] == pytest.approx(expected, abs=1e-3)
    assert answers[0].response["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("data", [[], [{}], [{"embedding": ["x"]}], [{"embedding": None}], None])
def test_an_answer_without_a_vector_is_none(stub: StubServer, data):
    stub.always = lambda handler, body: handler.send_json(200, {"data": data})
    config = LlmConfig(model="m", base_url=stub.base_url, strategy="embedding").resolve()
    (request, *_) = create_strategy(config).requests(context(), CATALOG)
    with pytest.raises(CallFailed, match=r"data\[0\]\.embedding") as caught:
        LlmClient(config, stub.base_url).send(request)
    assert caught.value.reason == exchange.INVALID_RESPONSE

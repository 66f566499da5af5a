import math
import os

import numpy as np
import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items

CATALOG = market_items()
VECTORS = {"i1": [1, 0], "i2": [0, 2], "i20": [3, 0], "i21": [1, 1], "i22": [-1, -1]}


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def write_vectors(path, vectors: dict[str, list[float]], dtype=np.float16) -> str:
    np.savez(path, item_id=np.array(list(vectors)), vector=np.array(list(vectors.values()), dtype))
    return str(path)


def by_file(path: str, **values):
    return create_strategy(LlmConfig(strategy="embedding", **values).with_item_vectors(path).resolve())


def test_scores_by_a_file_lag_behind_the_newest_items_too(tmp_path):
    path = write_vectors(tmp_path / "v.npz", VECTORS)
    results = by_file(path, history_lag=1).results(context(), ())
    assert [r.raw_score for r in results] == pytest.approx(
        [cosine(VECTORS[c], VECTORS["i2"]) for c in ("i20", "i21", "i22")], abs=1e-6
    )
    assert {r.reason for r in by_file(path, history_lag=2).results(context(), ())} == {messages.NO_VECTOR}


def test_the_score_is_the_best_cosine_to_the_history(tmp_path):
    expected = [max(cosine(VECTORS[c], VECTORS[h]) for h in ("i1", "i2")) for c in ("i20", "i21", "i22")]
    results = by_file(write_vectors(tmp_path / "v.npz", VECTORS)).results(context(), ())
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
    assert [r.reason for r in results] == ["", messages.NO_VECTOR, messages.NO_VECTOR]
    assert results[0].raw_score == pytest.approx(1)


def test_a_history_without_any_vector_fails_all_candidates(tmp_path):
    results = by_file(write_vectors(tmp_path / "v.npz", {"i20": [1, 0]})).results(context(), ())
    assert {r.reason for r in results} == {messages.NO_VECTOR}


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
    with pytest.raises(LlmError, match=r"item_vectors: the vectors must be in /nowhere\.npz, which is no file"):
        by_file("/nowhere.npz")

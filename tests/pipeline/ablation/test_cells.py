import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from models import features
from pipeline.ablation.arms import ARMS, Arm
from pipeline.ablation.cells import (
    BaselineScores,
    Scores,
    differences,
    fingerprint,
    fuse,
    share_of_contexts,
    with_shuffled_scores,
)
from pipeline.ablation.domain import SLICES, Domain, filled
from pipeline.baseline import auc_by_slice
from pipeline.config import ConfigError


def domain(rows: int = 400, teacher: bool = True) -> Domain:
    source = np.random.default_rng(0)
    label = source.integers(0, 2, rows)
    columns = {
        features.LABEL: label,
        features.IS_COLD: source.integers(0, 2, rows),
        features.IS_TAIL: (np.arange(rows) < 10).astype(int),
    }
    columns[features.LABEL][:10] = 1  # the tail holds one class only
    scores = (0.3 * columns[features.LABEL] + source.normal(size=rows)).astype(np.float32)
    return Domain(
        name="shop",
        vocabulary=features.VocabularySizes(items=1, categories=1, brands=1),
        item_ids=("a",),
        train={},
        valid=columns,
        test=columns,
        pairs={},
        teacher={"valid": scores, "test": scores} if teacher else None,
        baselines={},
        definitions={},
        hashes={},
    )


def test_metrics_count_each_slice_and_say_where_there_is_one_class_only():
    made = domain()
    scores = np.random.default_rng(1).normal(size=400)
    metrics = auc_by_slice(made.test, scores, SLICES)
    cold = np.asarray(made.test[features.IS_COLD]) == 1
    labels = np.asarray(made.test[features.LABEL])

    assert metrics["cold"]["auc"] == pytest.approx(roc_auc_score(labels[cold], scores[cold]))
    assert metrics["cold"]["examples"] == cold.sum()
    assert metrics["tail"] == {"auc": None, "examples": 10, "positives": 10}
    assert differences(made, scores, scores)["tail"] is None


def test_a_model_against_itself_differs_by_nothing_without_error():
    scores = np.random.default_rng(1).normal(size=400)
    assert differences(domain(), scores, scores)["overall"] == {"difference": 0.0, "standard_error": 0.0}


def test_late_fusion_weighs_by_validation_and_beats_a_model_of_noise():
    made = domain()
    noise = np.random.default_rng(2).normal(size=400).astype(np.float32)
    fused = fuse(made, Scores(valid=noise, test=noise))

    weights = fused.training["fusion"]
    expected = weights["logit"] * noise + weights["teacher"] * made.teacher["test"] + weights["bias"]
    np.testing.assert_allclose(fused.scores.test, expected, rtol=1e-4)
    assert weights["teacher"] > 5 * abs(weights["logit"]) or weights["teacher"] > 0.2


def test_late_fusion_without_the_teachers_scores_is_refused():
    with pytest.raises(ConfigError, match=r"late_fusion needs the teacher's scores of shop's .* llm.embedding_file"):
        fuse(domain(teacher=False), Scores(valid=np.zeros(400), test=np.zeros(400)))


def test_a_row_that_the_teacher_did_not_score_counts_as_its_mean():
    like = np.array([1.0, 3.0, np.nan])
    np.testing.assert_array_equal(filled(np.array([np.nan, 5.0]), like=like), [2.0, 5.0])


def test_a_smaller_share_of_contexts_is_part_of_a_larger_and_keeps_contexts_whole():
    history = np.repeat(np.arange(1, 501, dtype=np.int32)[:, np.newaxis], 3, axis=0) * np.ones((1, 4), np.int32)
    pairs = {features.HISTORY_ITEM_INDICES: tf.constant(history), features.PROBE_LABEL: tf.range(1500)}

    tenth, half, whole = (share_of_contexts(pairs, share) for share in (0.1, 0.5, 1.0))
    kept = [set(np.asarray(part[features.PROBE_LABEL]).tolist()) for part in (tenth, half, whole)]
    assert kept[0] < kept[1] < kept[2]
    assert len(kept[1]) == pytest.approx(750, abs=120)
    for number in kept[0]:
        assert {3 * (number // 3) + n for n in range(3)} <= kept[0]
    row = history[0].tobytes()
    fraction = int.from_bytes(hashlib.sha256(row).digest()[:7]) / 2**56
    assert (0 in kept[1]) == (fraction < 0.5)


def test_shuffled_scores_are_the_same_scores_of_other_items_and_the_higher_is_preferred():
    source = np.random.default_rng(4)
    scores = np.sort(source.random((300, 2)).astype(np.float32), axis=1)
    item = source.integers(1, 1000, (300, 2)).astype(np.int32)
    label = source.integers(-1, 2, 300).astype(np.int32)
    pairs = {features.PROBE_LABEL: tf.constant(label), features.HISTORY_LENGTH: tf.range(300)}
    for side, prefix in ((1, features.PREFERRED), (0, features.OTHER)):
        pairs[prefix + features.LLM_SCORE] = tf.constant(scores[:, side])
        pairs[prefix + features.ITEM_INDEX] = tf.constant(item[:, side])

    dealt = {name: np.asarray(values) for name, values in with_shuffled_scores(pairs, seed=1).items()}

    higher, lower = (dealt[prefix + features.LLM_SCORE] for prefix in (features.PREFERRED, features.OTHER))
    assert np.all(higher >= lower)
    np.testing.assert_array_equal(np.sort(np.concatenate([higher, lower])), np.sort(scores.ravel()))
    turned = 0
    for n in range(300):
        now = dealt[features.PREFERRED + features.ITEM_INDEX][n], dealt[features.OTHER + features.ITEM_INDEX][n]
        is_turned = now == (item[n, 0], item[n, 1])
        assert is_turned or now == (item[n, 1], item[n, 0])
        expected = 1 - label[n] if is_turned and label[n] != features.NOT_A_PROBE else label[n]
        assert dealt[features.PROBE_LABEL][n] == expected
        turned += is_turned
    assert 110 < turned < 190
    np.testing.assert_array_equal(dealt[features.HISTORY_LENGTH], np.arange(300))


def test_a_mark_changes_with_what_decides_the_result_and_not_with_where_else_the_arm_is_trained():
    marks = [
        fingerprint(domain(), {"loss": {}}, arm)
        for arm in (Arm(), Arm(backbones=("dcn",)), Arm(shuffled_scores=True), Arm(scored_share=0.5))
    ]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 3


@pytest.mark.parametrize("name", ["none", "text_features"])
def test_the_mark_of_none_does_not_change_with_what_it_does_not_read(name):
    def mark(pairs: str = "ab", rows: str = "cd", l2: float = 0.1, **changes: Any) -> str:
        hashes = {"pairs": pairs, "train_rows": rows}
        train = {"patience": 3, "pairs_per_batch": 64} | changes
        values = {"model": {"embedding_l2": l2}, "gate": {}, "loss": {"llm_weight": 0.0}, "train": train}
        return fingerprint(dataclasses.replace(domain(), hashes=hashes), values, ARMS[name])

    assert (mark() == mark(pairs="xy")) == (name == "none")
    assert (mark() == mark(pairs_per_batch=256)) == (name == "none")
    assert len({mark(), mark(rows="xy"), mark(l2=0.2), mark(patience=2)}) == 4


def test_the_mark_of_late_fusion_changes_with_the_scores_that_it_adds_to():
    def mark(**changes: np.ndarray) -> str:
        scores = {"valid": np.array([1.0, 2.0]), "test": np.array([3.0])} | changes
        return fingerprint(domain(), {"loss": {}}, ARMS["late_fusion"], adds_to=Scores(**scores))

    assert mark() == mark()
    assert len({mark(), mark(valid=np.array([1.0, 2.5])), mark(test=np.array([3.5]))}) == 3


def test_scores_of_the_baseline_survive_and_absent_ones_are_none(tmp_path):
    store = BaselineScores(tmp_path / "store")
    assert store.load("abc") is None
    store.save("abc", Scores(valid=np.array([1.0]), test=np.array([2.0, 3.0])))

    again = store.load("abc")
    assert again is not None
    np.testing.assert_array_equal(again.test, [2.0, 3.0])

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from sllmr.models import features
from sllmr.pipeline.ablation.arms import ARMS, Arm
from sllmr.pipeline.ablation.cells import (
    CellScores,
    Scores,
    differences,
    fingerprint,
    fraction_of_contexts,
    fuse,
    with_permuted_scores,
)
from sllmr.pipeline.ablation.config import load_ablation
from sllmr.pipeline.ablation.domain import SLICES, Domain, filled
from sllmr.pipeline.baseline import auc_by_slice
from sllmr.pipeline.config import ConfigError

ROOT = pathlib.Path(__file__).parents[3]


def domain(rows: int = 400, llm_scorer: bool = True) -> Domain:
    source = np.random.default_rng(0)
    label = source.integers(0, 2, rows)
    columns = {
        features.LABEL: label,
        features.IS_COLD: source.integers(0, 2, rows),
        features.IS_TAIL: (np.arange(rows) < 10).astype(int),
        features.USER_HASH: np.arange(rows),
        features.ITEM_TRAIN_COUNT: source.integers(0, 9, rows),
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
        llm_scorer={"valid": scores, "test": scores} if llm_scorer else None,
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


def test_rows_of_one_user_count_once():
    made = domain()
    scores, other = np.random.default_rng(1).normal(size=(2, 400))
    twice = dataclasses.replace(made, test={name: np.repeat(column, 2) for name, column in made.test.items()})
    once = differences(made, scores, other)["overall"]
    assert differences(twice, np.repeat(scores, 2), np.repeat(other, 2))["overall"] == pytest.approx(once)
    rows = dataclasses.replace(twice, test=twice.test | {features.USER_HASH: np.arange(800)})
    over_rows = differences(rows, np.repeat(scores, 2), np.repeat(other, 2))["overall"]
    assert over_rows["standard_error"] == pytest.approx(once["standard_error"] / 2**0.5, rel=0.01)


def test_late_fusion_weighs_by_validation_and_beats_a_model_of_noise():
    made = domain()
    noise = np.random.default_rng(2).normal(size=400).astype(np.float32)
    fused = fuse(made, Scores(valid=noise, test=noise))

    weights = fused.training["fusion"]
    expected = weights["logit"] * noise + weights["llm_scorer"] * made.llm_scorer["test"] + weights["bias"]
    np.testing.assert_allclose(fused.scores.test, expected, rtol=1e-4)
    assert weights["llm_scorer"] > 5 * abs(weights["logit"]) or weights["llm_scorer"] > 0.2


def test_late_fusion_without_the_scores_of_the_llm_scorer_is_refused():
    with pytest.raises(ConfigError, match=r"late_fusion needs the LLM's scores of shop.* llm.strategy: embedding"):
        fuse(domain(llm_scorer=False), Scores(valid=np.zeros(400), test=np.zeros(400)))


def test_a_row_that_the_llm_scorer_did_not_score_counts_as_its_mean():
    like = np.array([1.0, 3.0, np.nan])
    np.testing.assert_array_equal(filled(np.array([np.nan, 5.0]), like=like), [2.0, 5.0])


def test_a_smaller_fraction_of_contexts_is_part_of_a_larger_and_keeps_contexts_whole():
    history = np.repeat(np.arange(1, 501, dtype=np.int32)[:, np.newaxis], 3, axis=0) * np.ones((1, 4), np.int32)
    pairs = {features.HISTORY_ITEM_INDICES: tf.constant(history), features.CALIBRATION_LABEL: tf.range(1500)}

    tenth, half, whole = (fraction_of_contexts(pairs, fraction) for fraction in (0.1, 0.5, 1.0))
    kept = [set(np.asarray(part[features.CALIBRATION_LABEL]).tolist()) for part in (tenth, half, whole)]
    assert kept[0] < kept[1] < kept[2]
    assert len(kept[1]) == pytest.approx(750, abs=120)
    for number in kept[0]:
        assert {3 * (number // 3) + n for n in range(3)} <= kept[0]
    row = history[0].tobytes()
    fraction = int.from_bytes(hashlib.sha256(row).digest()[:7]) / 2**56
    assert (0 in kept[1]) == (fraction < 0.5)


def test_permuted_scores_are_the_same_scores_of_other_items_and_the_higher_is_preferred():
    source = np.random.default_rng(4)
    scores = np.sort(source.random((300, 2)).astype(np.float32), axis=1)
    item = source.integers(1, 1000, (300, 2)).astype(np.int32)
    label = source.integers(-1, 2, 300).astype(np.int32)
    pairs = {features.CALIBRATION_LABEL: tf.constant(label), features.HISTORY_LENGTH: tf.range(300)}
    for side, prefix in ((1, features.PREFERRED), (0, features.OTHER)):
        pairs[prefix + features.LLM_SCORE] = tf.constant(scores[:, side])
        pairs[prefix + features.ITEM_INDEX] = tf.constant(item[:, side])

    permuted = {name: np.asarray(values) for name, values in with_permuted_scores(pairs, seed=1).items()}

    higher, lower = (permuted[prefix + features.LLM_SCORE] for prefix in (features.PREFERRED, features.OTHER))
    assert np.all(higher >= lower)
    np.testing.assert_array_equal(np.sort(np.concatenate([higher, lower])), np.sort(scores.ravel()))
    turned = 0
    for n in range(300):
        now = permuted[features.PREFERRED + features.ITEM_INDEX][n], permuted[features.OTHER + features.ITEM_INDEX][n]
        is_turned = now == (item[n, 0], item[n, 1])
        assert is_turned or now == (item[n, 1], item[n, 0])
        expected = 1 - label[n] if is_turned and label[n] != features.NOT_CALIBRATION else label[n]
        assert permuted[features.CALIBRATION_LABEL][n] == expected
        turned += is_turned
    assert 110 < turned < 190
    np.testing.assert_array_equal(permuted[features.HISTORY_LENGTH], np.arange(300))


def test_a_fraction_of_the_scores_is_permuted_and_a_smaller_one_is_part_of_a_larger():
    scores = np.arange(2000, dtype=np.float32)
    pairs = {
        features.CALIBRATION_LABEL: tf.fill([1000], features.NOT_CALIBRATION),
        features.PREFERRED + features.LLM_SCORE: tf.constant(scores[:1000]),
        features.OTHER + features.LLM_SCORE: tf.constant(scores[1000:]),
        features.PREFERRED + features.ITEM_INDEX: tf.range(1000),
        features.OTHER + features.ITEM_INDEX: tf.range(1000, 2000),
    }

    def moved(fraction: float) -> set[int]:
        """The items, numbered as their scores are, whose score is another one now."""
        permuted = {name: np.asarray(v) for name, v in with_permuted_scores(pairs, seed=3, fraction=fraction).items()}
        now = {}
        for prefix in (features.PREFERRED, features.OTHER):
            items, values = permuted[prefix + features.ITEM_INDEX], permuted[prefix + features.LLM_SCORE]
            now |= dict(zip(items.tolist(), values.tolist(), strict=True))
        assert sorted(now.values()) == scores.tolist()
        return {item for item, score in now.items() if item != score}

    quarter, half, whole = moved(0.25), moved(0.5), moved(1.0)
    assert len(quarter) == pytest.approx(500, abs=60)
    assert len(half) == pytest.approx(1000, abs=80)
    assert len(whole) > 1990
    assert len(quarter - half) <= 2  # a permutation may leave a score where it is


def test_a_fingerprint_changes_with_what_decides_the_result_and_not_with_where_else_the_arm_is_trained():
    fingerprints = [
        fingerprint(domain(), {"loss": {}}, arm)
        for arm in (
            Arm(),
            Arm(backbones=("dcn",)),
            Arm(scores="permuted"),
            Arm(scores="constant"),
            Arm(scored_fraction=0.5),
        )
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


def test_the_committed_results_have_the_fingerprints_of_todays_configuration():
    """So that `sllmr ablate --config configs/amazon.yaml` trains no committed cell again, also after renames."""
    ablation = load_ablation(ROOT / "configs" / "amazon.yaml")
    lines = (ROOT / "benchmarks" / "results" / "amazon.jsonl").read_text().splitlines()
    # One line of each domain, backbone and arm: the seed is one more value in the same place.
    cells = {(line["domain"], line["backbone"], line["arm"]): line for line in map(json.loads, lines)}
    assert len(cells) > 100
    for (name, backbone, arm_name), line in cells.items():
        arm = ablation.config.arm(arm_name)
        if arm.late_fusion:  # its fingerprint covers scores that only a training leaves; it trains nothing
            continue
        hashes = {split: value for split, value in line["hashes"].items() if split != "cell"}
        values = ablation.hyperparameters(ablation.cell(name, backbone, arm_name, line["seed"]))
        assert line["hyperparameters"] == values
        assert line["hashes"]["cell"] == fingerprint(dataclasses.replace(domain(), hashes=hashes), values, arm)


@pytest.mark.parametrize("name", ["none", "text_features"])
def test_the_fingerprint_of_none_does_not_change_with_what_it_does_not_read(name):
    def fingerprint_with(pairs: str = "ab", rows: str = "cd", l2: float = 0.1, **changes: Any) -> str:
        hashes = {"pairs": pairs, "train_rows": rows}
        train = {"patience": 3, "pairs_per_batch": 64} | changes
        values = {"model": {"embedding_l2": l2}, "gate": {}, "loss": {"llm_weight": 0.0}, "train": train}
        return fingerprint(dataclasses.replace(domain(), hashes=hashes), values, ARMS[name])

    assert (fingerprint_with() == fingerprint_with(pairs="xy")) == (name == "none")
    assert (fingerprint_with() == fingerprint_with(pairs_per_batch=256)) == (name == "none")
    assert (
        len({fingerprint_with(), fingerprint_with(rows="xy"), fingerprint_with(l2=0.2), fingerprint_with(patience=2)})
        == 4
    )


def test_the_fingerprint_of_late_fusion_changes_with_the_scores_that_it_adds_to():
    def fingerprint_with(**changes: np.ndarray) -> str:
        scores = {"valid": np.array([1.0, 2.0]), "test": np.array([3.0])} | changes
        return fingerprint(domain(), {"loss": {}}, ARMS["late_fusion"], adds_to=Scores(**scores))

    assert fingerprint_with() == fingerprint_with()
    assert (
        len({fingerprint_with(), fingerprint_with(valid=np.array([1.0, 2.5])), fingerprint_with(test=np.array([3.5]))})
        == 3
    )


def test_scores_of_a_cell_survive_and_absent_ones_are_none(tmp_path):
    store = CellScores(tmp_path / "store")
    assert store.load("none", "abc") is None
    store.save("none", "abc", Scores(valid=np.array([1.0]), test=np.array([2.0, 3.0])))

    again = store.load("none", "abc")
    assert again is not None
    assert store.load("global", "abc") is None
    np.testing.assert_array_equal(again.test, [2.0, 3.0])

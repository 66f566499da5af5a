import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models.config import TrainConfig
from sllmr.models.errors import UserError
from sllmr.models.inputs import replica_slices
from sllmr.models.replicas import distribution
from tests.models import distributed_training


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By case: what training on one device gave, and what it gave on two."""
    file = tmp_path_factory.mktemp("distributed") / "results.json"
    command = [sys.executable, "-m", distributed_training.__name__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", distributed_training.CASES)
def test_two_devices_give_the_model_that_one_gives(results, case):
    one, two = results[case]

    for a, b in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # a step moves a weight by up to 0.01
    np.testing.assert_allclose(one["logits"], two["logits"], atol=1e-4)
    assert two["auc"] == pytest.approx(one["auc"], abs=1e-4)
    assert two["gate_weights"] == pytest.approx(one["gate_weights"], abs=1e-3)
    assert two["rows"] == one["rows"] == distributed_training.ROWS
    for a, b in zip(one["losses"], two["losses"], strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert two["devices"] == one["devices"]


def test_the_slices_of_a_batch_are_its_rows_and_pairs_each_once_and_even():
    batch = {"rows": {"a": tf.range(5), "b": tf.reshape(tf.range(10), [5, 2])}, "pairs": {"c": tf.range(3)}}
    slices = list(replica_slices(tf.data.Dataset.from_tensors(batch), 2))

    assert [s["rows"]["a"].numpy().tolist() for s in slices] == [[0, 1], [2, 3, 4]]
    assert [s["rows"]["b"].numpy().tolist() for s in slices] == [[[0, 1], [2, 3]], [[4, 5], [6, 7], [8, 9]]]
    assert [s["pairs"]["c"].numpy().tolist() for s in slices] == [[0], [1, 2]]


def test_one_row_leaves_a_replica_without_rows():
    slices = replica_slices(tf.data.Dataset.from_tensors({"a": tf.constant([7])}), 2)

    assert [s["a"].numpy().tolist() for s in slices] == [[], [7]]


def test_mirrored_needs_two_devices_and_no_strategy_needs_none():
    with pytest.raises(UserError, match=r"mirrored needs at least two devices .*; remove train.strategy"):
        distribution(TrainConfig(strategy="mirrored"))

    assert distribution(TrainConfig()).num_replicas_in_sync == 1

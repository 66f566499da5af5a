"""The metric inside real TFMA: exact, the same for model, last blessed model, reference and popularity; counts."""

import math
import random

import apache_beam as beam
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from sklearn.metrics import roc_auc_score
from tfx_bsl.tfxio import tf_example_record

from sllmr.components.evaluator.decision import SliceMetrics
from sllmr.components.evaluator.metric import CANDIDATE, LAST_BLESSED, REFERENCE, eval_config, read_slices
from sllmr.models import features
from sllmr.models.clustered_auc import compare_auc, estimate_auc
from sllmr.models.metrics import Rows

pytestmark = pytest.mark.slow

MODEL, BASELINE, OLDEST = "model_logit", "baseline_logit", "oldest_logit"
USERS = 60


def rows() -> list[dict]:
    """Four rows a user. No row is cold; a tail row is a positive; most logits lie far below log(1e-4)."""
    generator = random.Random(3)
    result = []
    for i in range(USERS * 4):
        label = i % 2
        result.append(
            {
                features.USER_ID: f"user {i // 4}",
                features.LABEL: label,
                features.IS_COLD: 0,
                features.IS_TAIL: int(label == 1 and generator.random() < 0.3),
                features.ITEM_TRAIN_COUNT: generator.randrange(4 + 2 * label),
                MODEL: generator.gauss(-13 + label, 1.5),
                BASELINE: generator.gauss(-3 + 0.7 * label, 1.0),
                OLDEST: generator.gauss(0.4 * label, 1.0),
            }
        )
    return result


def evaluate(examples: list[dict], directory: str, model: str = MODEL, *, baseline: bool) -> dict[str, SliceMetrics]:
    """TFMA with the Evaluator's own EvalConfig, on logits that stand in the rows instead of in a SavedModel."""
    keys = {CANDIDATE: model} | ({LAST_BLESSED: BASELINE, REFERENCE: OLDEST} if baseline else {})
    config = eval_config(list(keys))
    for spec in config.model_specs:
        spec.prediction_key = keys[spec.name or CANDIDATE]
        spec.ClearField("signature_name")
    serialized = []
    for row in examples:
        example = tf.train.Example()
        for name, value in row.items():
            feature = example.features.feature[name]
            if isinstance(value, str):
                feature.bytes_list.value.append(value.encode())
            elif isinstance(value, float):
                feature.float_list.value.append(value)
            else:
                feature.int64_list.value.append(value)
        serialized.append(example.SerializeToString())
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create(serialized)
            | tf_example_record.TFExampleBeamRecord(
                physical_format="memory", raw_record_column_name=tfma.ARROW_INPUT_COLUMN
            ).BeamSource()
            | tfma.ExtractEvaluateAndWriteResults(eval_config=config, output_path=directory)
        )
    return read_slices(directory)


def column(name: str, part: list[dict]) -> list:
    return [row[name] for row in part]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, SliceMetrics]:
    return evaluate(rows(), str(tmp_path_factory.mktemp("evaluation")), baseline=True)


def test_aucs_of_model_baseline_reference_and_popularity_are_exact(found):
    for name, part in (("overall", rows()), ("head", [row for row in rows() if not row[features.IS_TAIL]])):
        labels = column(features.LABEL, part)
        m = found[name]
        auc = m.metrics["auc"]
        assert auc.value == pytest.approx(roc_auc_score(labels, column(MODEL, part)), abs=1e-6)
        assert auc.last_blessed.value == pytest.approx(roc_auc_score(labels, column(BASELINE, part)), abs=1e-6)
        assert auc.reference.value == pytest.approx(roc_auc_score(labels, column(OLDEST, part)), abs=1e-6)
        popularity = roc_auc_score(labels, column(features.ITEM_TRAIN_COUNT, part))
        assert auc.popularity.value == pytest.approx(popularity)
        assert (m.examples, m.positives, m.users) == (len(part), sum(labels), USERS)


def test_intervals_resample_users_and_the_change_is_paired(found):
    users, labels = column(features.USER_ID, rows()), column(features.LABEL, rows())
    alone = estimate_auc(users, labels, column(MODEL, rows()))
    auc = found["overall"].metrics["auc"]
    assert (auc.lower, auc.upper) == pytest.approx((alone.lower, alone.upper), abs=1e-6)
    for change, other in ((auc.last_blessed, BASELINE), (auc.reference, OLDEST)):
        expected = compare_auc(users, labels, column(MODEL, rows()), column(other, rows()))
        assert change.difference == pytest.approx(expected.difference, abs=1e-6)
        assert (change.lower, change.upper) == pytest.approx((expected.lower, expected.upper), abs=1e-6)


def test_every_other_metric_is_that_of_the_same_rows(found):
    users, labels = column(features.USER_ID, rows()), column(features.LABEL, rows())
    scores = {name: column(name, rows()) for name in (MODEL, BASELINE, features.ITEM_TRAIN_COUNT)}
    expected = Rows(users, labels, scores)
    metrics = found["overall"].metrics
    for metric in ("per_user_auc", "ndcg_at_10", "log_loss", "calibration_error"):
        alone = expected.estimate(metric, MODEL)
        m = metrics[metric]
        assert (m.value, m.lower, m.upper, m.users) == pytest.approx(tuple(alone), abs=1e-5), metric
        change = (m.last_blessed.difference, m.last_blessed.lower, m.last_blessed.upper)
        assert change == pytest.approx(tuple(expected.compare(metric, MODEL, BASELINE)), abs=1e-5), metric
    popularity = expected.compare("per_user_auc", MODEL, features.ITEM_TRAIN_COUNT)
    assert metrics["per_user_auc"].popularity.difference == pytest.approx(popularity.difference)
    assert metrics["log_loss"].popularity is None
    assert metrics["hit_rate_at_10"].value is None  # four candidates a user


def test_a_slice_of_one_class_has_counts_and_no_metric_and_one_without_rows_is_absent(found):
    tail = found["tail"]
    for m in tail.metrics.values():
        assert (m.value, m.lower, m.last_blessed.value, m.last_blessed.difference) == (None,) * 4
    assert tail.metrics["auc"].popularity.value is None
    assert tail.examples == tail.positives == sum(column(features.IS_TAIL, rows())) > 0
    assert "cold" not in found


def test_shifted_and_scaled_logits_have_the_same_auc_without_a_baseline(found, tmp_path):
    """A probability binned as TFMA's AUC does it ties most of these rows: .5 instead of .68."""
    moved = [row | {MODEL: row[MODEL] * 2.5 - 40} for row in rows()]
    m, before = (
        evaluate(moved, str(tmp_path), baseline=False)["overall"].metrics["auc"],
        found["overall"].metrics["auc"],
    )
    assert m.value == pytest.approx(before.value, abs=1e-6)
    assert (m.lower, m.upper) == pytest.approx((before.lower, before.upper), abs=1e-6)
    assert m.last_blessed is m.reference is None


def test_logits_that_are_not_finite_stop_the_evaluation(tmp_path):
    broken = [row | {MODEL: math.nan} if i < 3 else row for i, row in enumerate(rows())]
    with pytest.raises(
        Exception, match=r"the model must give finite logits, got \d of \d+ rows of a slice .*training diverged"
    ):
        evaluate(broken, str(tmp_path), baseline=False)

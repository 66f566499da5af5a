"""The Evaluator's rules on real TFMA: the same AUCs as scikit-learn, and a blessing that can be refused."""

import random

import apache_beam as beam
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from sklearn.metrics import roc_auc_score
from tfx_bsl.tfxio import tf_example_record

from models import features
from pipeline import evaluation
from pipeline.config import EvaluationConfig


def rows(count: int = 400) -> list[dict[str, int | float]]:
    generator = random.Random(3)
    result = []
    for i in range(count):
        label = i % 2
        # Better than chance on the head, worse on the tail.
        is_tail = int(generator.random() < 0.3)
        shift = -0.15 if is_tail else 0.2
        score = min(max(0.5 + (label - 0.5) * 2 * shift + generator.gauss(0, 0.2), 0.0), 1.0)
        result.append(
            {
                features.LABEL: label,
                features.IS_COLD: 0,
                features.IS_TAIL: is_tail,
                "score": float(tf.constant(score, tf.float32)),
            }
        )
    return result


def evaluate(config: EvaluationConfig, examples, directory: str) -> str:
    """Runs TFMA on scores that stand in the rows, with the pipeline's own EvalConfig otherwise."""
    eval_config = evaluation.eval_config(config)
    eval_config.model_specs[0].prediction_key = "score"
    eval_config.model_specs[0].ClearField("signature_name")
    eval_config = tfma.utils.update_eval_config_with_defaults(eval_config, has_baseline=False, rubber_stamp=True)
    serialized = []
    for row in examples:
        example = tf.train.Example()
        for name, value in row.items():
            if name == "score":
                example.features.feature[name].float_list.value.append(value)
            else:
                example.features.feature[name].int64_list.value.append(value)
        serialized.append(example.SerializeToString())
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create(serialized)
            | tf_example_record.TFExampleBeamRecord(
                physical_format="memory", raw_record_column_name=tfma.ARROW_INPUT_COLUMN
            ).BeamSource()
            | tfma.ExtractEvaluateAndWriteResults(eval_config=eval_config, output_path=directory)
        )
    return directory


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> str:
    config = EvaluationConfig(min_auc={"overall": 0.55, "tail": 0.5, "cold": 0.5})
    return evaluate(config, rows(), str(tmp_path_factory.mktemp("evaluation")))


def test_auc_and_counts_by_slice_are_scikit_learns(evaluated):
    metrics = evaluation.slice_metrics(evaluated)
    assert list(metrics) == ["overall", "warm", "tail", "head"]
    for name, flag in (("tail", 1), ("head", 0)):
        part = [row for row in rows() if row[features.IS_TAIL] == flag]
        expected = roc_auc_score([r[features.LABEL] for r in part], [r["score"] for r in part])
        assert metrics[name]["auc"] == pytest.approx(expected, abs=2e-3)
        assert metrics[name]["examples"] == len(part)
        assert metrics[name]["positives"] == sum(r[features.LABEL] for r in part)
        assert metrics[name]["lower"] < metrics[name]["auc"] < metrics[name]["upper"]


def test_a_slice_below_its_threshold_and_one_without_rows_block_the_model(evaluated):
    reasons = evaluation.validation_failures(evaluated)
    assert any("auc on slice tail" in reason for reason in reasons)
    assert any("slice cold has no test rows" in reason for reason in reasons)
    assert not any("overall" in reason for reason in reasons)


def test_a_model_above_every_threshold_passes(tmp_path):
    uri = evaluate(EvaluationConfig(min_auc={"overall": 0.55}, confidence_intervals=False), rows(), str(tmp_path / "e"))
    assert evaluation.validation_failures(uri) == []
    assert evaluation.slice_metrics(uri)["overall"]["lower"] is None

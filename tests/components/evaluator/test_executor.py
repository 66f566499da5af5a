"""Evaluator and Pusher on SavedModels and real TFMA, without cold rows: a better second model is blessed and pushed, a
worse one is refused with numbers."""

import pathlib
import random

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tfx.components.evaluator import constants
from tfx.components.pusher import executor as pusher_executor
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from sllmr.components import examples as record_files
from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.decision import EvaluationResult, read_result
from sllmr.components.evaluator.executor import CONFIG, REFERENCE_MODEL, Executor
from sllmr.models import features, signatures
from sllmr.models import schema as curated
from sllmr.models.tf_examples import to_example

SIZES = features.FeatureSizes(history=1, categories=1)
USERS, TAIL_FROM = 100, 150


def save_model(directory: pathlib.Path, noise: float, tail_sign: float = 1.0) -> None:
    """A ranking model whose logit is the item's number plus noise; on tail items times `tail_sign`."""
    generator = tf.random.Generator.from_seed(4)
    errors = tf.constant(noise * generator.normal([200]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {features.ITEM_ID: tf.io.FixedLenFeature((), tf.string)}
        number = tf.strings.to_number(tf.io.parse_example(examples, spec)[features.ITEM_ID], tf.int32)
        logits = tf.cast(number, tf.float32) / 50 + tf.gather(errors, number)
        logits = tf.where(number >= TAIL_FROM, tail_sign * logits, logits)
        return {signatures.LOGITS: logits, signatures.SCORES: tf.sigmoid(logits)}

    tf.saved_model.save(tf.Module(), str(directory / "Format-Serving"), signatures={"serving_default": score})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """The curated schema and four test rows a user, of which none is cold."""
    directory = tmp_path_factory.mktemp("inputs")
    rows = features.row_features(SIZES)
    schema = standard_artifacts.Schema()
    schema.uri = str(directory / "schema")
    (directory / "schema").mkdir()
    (directory / "schema" / "schema.pbtxt").write_text(text_format.MessageToString(curated.schema(rows)))
    examples = standard_artifacts.Examples()
    examples.uri = str(directory / "examples")
    record_files.prepare(examples, ["test"])
    (directory / "examples" / "Split-test").mkdir(parents=True)
    generator = random.Random(5)
    path = directory / "examples" / "Split-test" / "examples-00000-of-00001.tfrecord.gz"
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for i in range(USERS * 4):
            item = generator.randrange(200)
            values = {f.name: "" if f.dtype == "string" else 0 for f in rows} | {
                features.HISTORY_ITEM_IDS: [""],
                features.USER_ID: f"user {i // 4}",
                features.ITEM_ID: str(item),
                features.IS_TAIL: int(item >= TAIL_FROM),
                features.LABEL: int(item + generator.gauss(0, 30) > (175 if item >= TAIL_FROM else 75)),
            }
            values = {name: [value] if name == features.HISTORY_CATEGORIES else value for name, value in values.items()}
            writer.write(to_example(values, rows).SerializeToString())
    return examples, schema


class Folder:
    """One pipeline root: evaluates each model against the last blessed one, as Resolver would find it."""

    def __init__(self, directory: pathlib.Path, artifacts):
        self.directory = directory
        self.serving = directory / "serving"
        self.examples, self.schema = artifacts
        self.blessed: list[standard_artifacts.Model] = []

    def evaluate_and_push(self, name: str, config: EvaluationConfig, **model: float) -> EvaluationResult:
        trained = standard_artifacts.Model()
        trained.uri = str(self.directory / name / "model")
        save_model(pathlib.Path(trained.uri), **model)
        evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
        evaluation.uri, blessing.uri = (str(self.directory / name / part) for part in ("evaluation", "blessing"))
        (self.directory / name / "evaluation").mkdir()
        context = BaseBeamExecutor.Context(beam_pipeline_args=[], tmp_dir=str(self.directory / name), unique_id="1")
        Executor(context).Do(
            {
                "examples": [self.examples],
                "schema": [self.schema],
                "model": [trained],
                "baseline_model": self.blessed[-1:],
                REFERENCE_MODEL: self.blessed[:1],
            },
            {"evaluation": [evaluation], "blessing": [blessing]},
            {CONFIG: config.model_dump_json()},
        )
        if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY):  # what Resolver looks at
            self.blessed.append(trained)
        pushed = standard_artifacts.PushedModel()
        pushed.uri = str(self.directory / name / "pushed")
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(self.serving))
        )
        pusher_executor.Executor().Do(
            {"model": [trained], "model_blessing": [blessing]},
            {"pushed_model": [pushed]},
            {"push_destination": proto_utils.proto_to_json(destination), "custom_config": "null"},
        )
        return read_result(evaluation.uri)

    def versions(self) -> int:
        return len(list(self.serving.glob("*")))


@pytest.mark.slow
def test_without_cold_rows_a_better_second_model_is_pushed_and_a_worse_third_is_refused(artifacts, tmp_path):
    folder, config = Folder(tmp_path, artifacts), EvaluationConfig()
    assert set(config.max_drop) == {"overall", "cold", "tail"}

    first = folder.evaluate_and_push("first", config, noise=1.0)
    assert first.decision.blessed
    assert first.decision.baseline_model is None
    assert folder.versions() == 1

    second = folder.evaluate_and_push("second", config, noise=0.5)
    assert second.slices["overall"].metrics["auc"].last_blessed.difference > 0.05
    assert second.slices["cold"].examples == 0
    assert second.decision.blessed
    assert second.decision.baseline_model == folder.blessed[0].uri
    assert folder.versions() == 2
    assert [line for line in second.decision.sentences("not_measurable") if "max_drop" in line] == [
        "auc on slice cold: not measurable on 0 rows (0 positive) of 0 users; evaluation.max_drop.cold skipped"
    ]

    # A regression planted on the smallest slice alone.
    third = folder.evaluate_and_push("third", config, noise=0.5, tail_sign=-1.0)
    assert not third.decision.blessed
    assert folder.versions() == 2
    failed = {
        check.rule: check for check in third.decision.checks if check.outcome == "failed" and check.slice == "tail"
    }
    auc = third.slices["tail"].metrics["auc"]
    drop, drift = failed["max_drop"], failed["max_drift"]
    assert drop.baseline == pytest.approx(second.slices["tail"].metrics["auc"].value)
    assert drift.baseline == pytest.approx(first.slices["tail"].metrics["auc"].value)
    assert drop.difference == pytest.approx(auc.value - drop.baseline)
    assert drift.difference == pytest.approx(auc.value - drift.baseline)
    assert drop.lower < drop.difference < drop.bound == -0.02
    assert 0 < drop.users < USERS
    assert (tmp_path / "third" / "blessing" / constants.NOT_BLESSED_FILE_NAME).exists()

"""The Trainer on real artifacts, without an orchestrator."""

import numpy as np
import pytest
import tensorflow as tf
from tfx.dsl.components.base import base_executor
from tfx.proto import trainer_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts
from tfx.utils import json_utils, proto_utils

from components.trainer import executor
from components.trainer.component import RUN_FN, Trainer
from components.trainer.config import TrainerConfig
from components.trainer.run_fn import REPORT_FILE
from models import features
from models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from models.training import TrainingReport
from tests.models import market

CONFIG = TrainerConfig(
    sizes=market.SIZES,
    model=ModelConfig(embedding_dim=4, mlp=(8,)),
    train=TrainConfig(batch_size=32, pairs_per_batch=8, epochs=2, patience=1, learning_rate=0.01),
)


def examples(directory, splits: dict[str, list[bytes]]) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(directory)
    artifact.split_names = artifact_utils.encode_split_names(list(splits))
    for split, records in splits.items():
        market.write_records(directory / f"Split-{split}" / "part-0.gz", records)
    return artifact


def channels(directory, transform_output) -> dict:
    layer = transform_output.transform_features_layer()
    columns = features.transformed_features(market.SIZES, use_user_id=False)

    def transformed(number: int, seed: int) -> list[bytes]:
        batch = layer(market.parse(market.rows(number, seed), features.row_features(market.SIZES)))
        return market.serialize(
            [{n: t.numpy()[row].tolist() for n, t in batch.items()} for row in range(number)], columns
        )

    graph = standard_artifacts.TransformGraph()
    graph.uri = str(transform_output.transform_savedmodel_dir).rsplit("/", 1)[0]
    pairs = market.serialize(market.pairs(20), features.pair_features(market.SIZES))
    return {
        "examples": [examples(directory / "rows", {"train": transformed(96, 1), "valid": transformed(48, 2)})],
        "transform_graph": [graph],
        "pairs": [examples(directory / "pairs", {"train": pairs})],
    }


def run(directory, inputs: dict, config: TrainerConfig) -> tuple[standard_artifacts.Model, TrainingReport]:
    model, model_run = standard_artifacts.Model(), standard_artifacts.ModelRun()
    model.uri, model_run.uri = str(directory / "model"), str(directory / "model_run")
    properties = {
        "train_args": proto_utils.proto_to_json(trainer_pb2.TrainArgs(splits=["train"])),  # type: ignore[attr-defined]
        "eval_args": proto_utils.proto_to_json(trainer_pb2.EvalArgs(splits=["valid"])),  # type: ignore[attr-defined]
        "run_fn": RUN_FN,
        "custom_config": json_utils.dumps({executor.CONFIG: config.model_dump_json()}),
    }
    context = base_executor.BaseExecutor.Context(tmp_dir=str(directory / "tmp"), unique_id="1")
    outputs: dict = {"model": [model], "model_run": [model_run]}
    executor.Executor(context).Do(inputs, outputs, properties)
    report = (directory / "model_run" / REPORT_FILE).read_text()
    return model, TrainingReport.model_validate_json(report)


def test_it_trains_on_rows_and_pairs_exports_and_reports(tmp_path, transform_output):
    model, report = run(tmp_path, channels(tmp_path, transform_output), CONFIG)

    loaded = tf.saved_model.load(f"{model.uri}/Format-Serving")
    records = market.serialize(market.rows(5), features.row_features(market.SIZES))
    scores = loaded.signatures["serving_default"](examples=tf.constant(records))["scores"].numpy()
    assert np.all((scores > 0) & (scores < 1))
    assert report.train_rows == 96
    assert report.gate[0].pairs == 20
    assert "llm_loss" in report.epochs[0].losses
    assert list((tmp_path / "model_run").rglob("events.*"))


def test_without_pairs_it_trains_the_arm_none(tmp_path, transform_output):
    inputs = {name: value for name, value in channels(tmp_path, transform_output).items() if name != "pairs"}
    config = CONFIG.model_copy(update={"loss": LossConfig(llm_weight=0.0)})

    _, report = run(tmp_path, inputs, config)

    assert report.gate == []
    assert set(report.epochs[0].losses) == {"loss", "rec_loss", "embedding_l2"}


def test_the_component_takes_pairs_as_a_channel_and_its_configuration_as_json():
    pairs = channel_utils.as_channel([standard_artifacts.Examples()])
    trainer = Trainer(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
        pairs=pairs,
        config=CONFIG,
        code_fingerprint="abc",
    )

    custom_config = json_utils.loads(trainer.spec.exec_properties["custom_config"])
    assert trainer.inputs["pairs"] is pairs
    assert TrainerConfig.model_validate_json(custom_config[executor.CONFIG]) == CONFIG
    assert custom_config["code_fingerprint"] == "abc"
    assert set(trainer.outputs) == {"model", "model_run"}


def test_a_file_that_is_written_anew_changes_the_cache_key(tmp_path):
    file = tmp_path / "training.json"

    def files() -> list[str]:
        gate = GateConfig(mode="fused", weights_from=str(file))
        trainer = Trainer(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
            pairs=channel_utils.as_channel([standard_artifacts.Examples()]),
            config=CONFIG.model_copy(update={"gate": gate}),
        )
        return json_utils.loads(trainer.spec.exec_properties["custom_config"])["files"]

    file.write_text("{}")
    before, again = files(), files()
    file.write_text("{ }")
    assert before == again != files()


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_gate_that_cannot_be_taken_from_its_file_is_named(tmp_path, transform_output, content):
    file = tmp_path / "gate.json"
    if content is not None:
        file.write_text(content)
    gate = GateConfig(mode="fused", weights_from=str(file))
    config = CONFIG.model_copy(update={"gate": gate, "loss": LossConfig(form="distillation")})
    with pytest.raises(ValueError, match=rf"gate.weights_from must name the training.json of another run, got {file}"):
        run(tmp_path, channels(tmp_path, transform_output), config)


def test_a_weight_without_pairs_is_refused_when_the_pipeline_is_built():
    with pytest.raises(ValueError, match=r"needs pairs with llm_weight above 0, got llm_weight 0.1"):
        Trainer(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
            config=CONFIG,
        )

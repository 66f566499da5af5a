"""The Trainer on real artifacts, without an orchestrator."""

import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tfx.dsl.components.base import base_executor
from tfx.proto import trainer_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts
from tfx.utils import json_utils, proto_utils

from sllmr.components.artifacts import DataReport, ItemCatalog, ItemVectors
from sllmr.components.catalog import Item, write_catalog
from sllmr.components.interactions_example_gen.data_report import FILE_NAME as DATA_REPORT_FILE
from sllmr.components.model_info import read_model_info
from sllmr.components.trainer import executor
from sllmr.components.trainer.component import RUN_FN, Trainer
from sllmr.components.trainer.config import TrainerConfig
from sllmr.components.trainer.run_fn import REPORT_FILE
from sllmr.models import features, preprocessing
from sllmr.models.config import GateConfig, LossConfig, ModelConfig, TrainConfig
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import VECTORS_FILE
from sllmr.models.training.report import TrainingReport
from tests.components.data_reports import data_report
from tests.models import market

pytestmark = pytest.mark.slow

CONFIG = TrainerConfig(
    sizes=market.SIZES,
    model=ModelConfig(embedding_dim=4, mlp=(8,)),
    train=TrainConfig(batch_size=32, pairs_per_batch=8, epochs=2, patience=1, learning_rate=0.01),
)

DATA = data_report(("2024-01-01", "2024-02-01"), ("2024-02-02", "2024-02-09"), ("2024-02-10", "2024-02-20"))


def examples(directory, splits: dict[str, list[bytes]]) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(directory)
    artifact.split_names = artifact_utils.encode_split_names(list(splits))
    for split, records in splits.items():
        market.write_records(directory / f"Split-{split}" / "part-0.gz", records)
    return artifact


def catalog(directory) -> ItemCatalog:
    artifact = ItemCatalog()
    artifact.uri = str(directory)
    values = {item: market.item_values(item) for item in market.ITEMS}
    write_catalog(
        artifact.uri,
        (
            Item(
                item_id=item,
                categories=tuple(filter(None, of[features.ITEM_CATEGORIES])),
                brand=of[features.ITEM_BRAND],
                train_count=of[features.ITEM_TRAIN_COUNT],
            )
            for item, of in values.items()
        ),
    )
    return artifact


def report(directory) -> DataReport:
    artifact = DataReport()
    artifact.uri = str(directory)
    directory.mkdir(parents=True)
    (directory / DATA_REPORT_FILE).write_text(DATA.model_dump_json())
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
        "catalog": [catalog(directory / "catalog")],
        "report": [report(directory / "report")],
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
    rows = market.rows(5)
    for row, score in zip(rows, scores, strict=True):
        ranked = loaded.signatures["rank"](
            history_item_ids=tf.constant([row[features.HISTORY_ITEM_IDS]]),
            candidate_item_ids=tf.constant([[row[features.ITEM_ID]]]),
        )
        assert ranked["scores"].numpy() == pytest.approx(score, abs=1e-6)
    assert report.train_rows == 96
    info = read_model_info(f"{model.uri}/Format-Serving")
    assert (info.seed, info.sizes, info.trained_until) == (CONFIG.train.seed, market.SIZES, "2024-02-09")
    assert report.gate[0].pairs == 20
    assert "llm_loss" in report.epochs[0].losses
    assert list((tmp_path / "model_run").rglob("events.*"))


def test_it_weighs_train_rows_by_the_weights_that_transform_passes_on(tmp_path, transform_output):
    made = [row | {features.EXAMPLE_WEIGHT: 1.0} for row in market.rows(200, seed=1)]
    wrong = [row | {features.LABEL: 1 - row[features.LABEL], features.EXAMPLE_WEIGHT: 0.0} for row in made]
    valid = [row | {features.EXAMPLE_WEIGHT: 1.0} for row in market.rows(100, seed=2)]
    config = CONFIG.model_copy(
        update={
            "loss": LossConfig(llm_weight=0.0),
            "model": ModelConfig(embedding_dim=4, mlp=(8,), dropout=0.0, embedding_l2=0.0),
            "train": TrainConfig(batch_size=40, epochs=20, patience=20, learning_rate=0.02),
        }
    )
    output = market.write_transform(tmp_path / "transform", made, use_user_id=False, has_weights=True)
    raw = features.row_features(market.SIZES, has_weights=True)
    without, columns = (
        preprocessing.transformed_columns(of, market.SIZES, use_user_id=False) for of in (transform_output, output)
    )
    assert features.EXAMPLE_WEIGHT not in {f.name for f in without}
    assert features.EXAMPLE_WEIGHT in {f.name for f in columns}
    layer = output.transform_features_layer()
    graph = standard_artifacts.TransformGraph()
    graph.uri = str(output.transform_savedmodel_dir).rsplit("/", 1)[0]

    def auc(directory: pathlib.Path, train: list[dict]) -> float:
        splits = {}
        for split, values in (("train", train), ("valid", valid)):
            batch = {n: t.numpy() for n, t in layer(market.parse(values, raw)).items()}
            records = [{n: t[row].tolist() for n, t in batch.items()} for row in range(len(values))]
            splits[split] = market.serialize(records, columns)
        inputs = {
            "examples": [examples(directory / "rows", splits)],
            "transform_graph": [graph],
            "catalog": [catalog(directory / "catalog")],
            "report": [report(directory / "report")],
        }
        return run(directory, inputs, config)[1].best_valid_auc

    assert auc(tmp_path / "wrong rows weigh nothing", made + wrong) > 0.95
    # each row stands there with either label
    assert auc(tmp_path / "all weigh the same", made + [row | {features.EXAMPLE_WEIGHT: 1.0} for row in wrong]) < 0.75


def test_without_pairs_it_trains_the_arm_none(tmp_path, transform_output):
    inputs = {name: value for name, value in channels(tmp_path, transform_output).items() if name != "pairs"}
    config = CONFIG.model_copy(update={"loss": LossConfig(llm_weight=0.0)})

    _, report = run(tmp_path, inputs, config)

    assert report.gate == []
    assert set(report.epochs[0].losses) == {"loss", "rec_loss", "embedding_l2"}


def test_a_positive_rate_shifts_the_scores_of_every_signature_and_changes_no_order(tmp_path, transform_output):
    plain = CONFIG.model_copy(update={"loss": LossConfig(llm_weight=0.0)})
    outputs = []
    for config in (plain, plain.model_copy(update={"positive_rate": 0.02})):
        directory = tmp_path / str(config.positive_rate)
        inputs = {n: value for n, value in channels(directory, transform_output).items() if n != "pairs"}
        model, _ = run(directory, inputs, config)
        path = f"{model.uri}/Format-Serving"
        assert read_model_info(path).positive_rate == config.positive_rate
        loaded = tf.saved_model.load(path)
        records = market.serialize(market.rows(5), features.row_features(market.SIZES))
        rows = loaded.signatures["serving_default"](examples=tf.constant(records))
        request = {"history_item_ids": tf.constant([["item2"]]), "candidate_item_ids": tf.constant([market.ITEMS])}
        outputs.append((rows, loaded.signatures["rank"](**request)))

    in_train = [row[features.LABEL] for row in market.rows(96, 1)]
    odds = sum(in_train) / (len(in_train) - sum(in_train))
    shift = math.log(0.02 / 0.98 / odds)
    (rows, ranked), (shifted_rows, shifted_ranked) = outputs
    np.testing.assert_allclose(shifted_rows["logits"], rows["logits"] + shift, atol=1e-5)
    for one, other in ((rows, shifted_rows), (ranked, shifted_ranked)):
        logits = np.log(one["scores"] / (1 - one["scores"]))
        np.testing.assert_allclose(other["scores"], 1 / (1 + np.exp(-logits - shift)), rtol=1e-4)
    np.testing.assert_array_equal(shifted_ranked["order"], ranked["order"])


def test_item_vectors_of_the_artifact_are_inputs_of_the_served_model(tmp_path, transform_output):
    directory = tmp_path / "vectors"
    directory.mkdir()
    given = np.random.default_rng(1).normal(size=(len(market.ITEMS), 5)).astype(np.float32)
    np.savez(directory / VECTORS_FILE, item_id=list(market.ITEMS), vector=given)
    vectors = ItemVectors()
    vectors.uri = str(directory)
    inputs = {**channels(tmp_path, transform_output), "item_vectors": [vectors]}
    config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"item_vectors": True})})

    model, _ = run(tmp_path, inputs, config)

    loaded = tf.saved_model.load(f"{model.uri}/Format-Serving")
    (table,) = (v for v in loaded.signatures["serving_default"].variables if v.shape[-1] == 5)
    index = [i.decode() for i in transform_output.vocabulary_by_name(features.ITEMS)].index(market.ITEMS[0]) + 1
    np.testing.assert_allclose(table[index], given[0] / np.linalg.norm(given[0]), atol=1e-6)


def test_item_vectors_as_inputs_without_vectors_are_refused_when_the_pipeline_is_built():
    with pytest.raises(ValueError, match=r"needs item vectors with model.item_vectors, got none"):
        Trainer(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
            catalog=channel_utils.as_channel([ItemCatalog()]),
            report=channel_utils.as_channel([DataReport()]),
            pairs=channel_utils.as_channel([standard_artifacts.Examples()]),
            config=CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"item_vectors": True})}),
        )


def test_the_component_takes_pairs_as_a_channel_and_its_configuration_as_json():
    pairs = channel_utils.as_channel([standard_artifacts.Examples()])
    trainer = Trainer(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
        catalog=channel_utils.as_channel([ItemCatalog()]),
        report=channel_utils.as_channel([DataReport()]),
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
        gate = GateConfig(mode="stacked", weights_from=str(file))
        trainer = Trainer(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
            catalog=channel_utils.as_channel([ItemCatalog()]),
            report=channel_utils.as_channel([DataReport()]),
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
    gate = GateConfig(mode="stacked", weights_from=str(file))
    config = CONFIG.model_copy(update={"gate": gate, "loss": LossConfig(form="distillation")})
    with pytest.raises(UserError, match=rf"gate.weights_from must name the training.json of another run, got {file}"):
        run(tmp_path, channels(tmp_path, transform_output), config)


def test_a_weight_without_pairs_is_refused_when_the_pipeline_is_built():
    with pytest.raises(ValueError, match=r"needs pairs with llm_weight above 0, got llm_weight 0.1"):
        Trainer(
            examples=channel_utils.as_channel([standard_artifacts.Examples()]),
            transform_graph=channel_utils.as_channel([standard_artifacts.TransformGraph()]),
            catalog=channel_utils.as_channel([ItemCatalog()]),
            report=channel_utils.as_channel([DataReport()]),
            config=CONFIG,
        )


def test_a_warm_start_takes_the_weights_of_the_base_model_and_the_report_says_so(tmp_path, transform_output):
    """The second training has one epoch with a learning rate of next to nothing."""
    inputs = channels(tmp_path, transform_output)
    first, _ = run(tmp_path / "first", inputs, CONFIG)
    train = CONFIG.train.model_copy(update={"warm_start": True, "epochs": 1, "learning_rate": 1e-12, "seed": 99})
    second, report = run(
        tmp_path / "second", {**inputs, "base_model": [first]}, CONFIG.model_copy(update={"train": train})
    )

    records = tf.constant(market.serialize(market.rows(9), features.row_features(market.SIZES)))
    logits = [
        tf.saved_model.load(f"{model.uri}/Format-Serving").signatures["serving_default"](examples=records)["logits"]
        for model in (first, second)
    ]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    assert report.warm_start.model == f"{first.uri}/Format-Serving"
    assert report.warm_start.copied == {"items": 12, "categories": 3, "brands": 2}
    assert set(report.warm_start.new.values()) == {0}


def test_without_a_base_model_or_with_one_of_another_backbone_it_starts_cold_and_says_why(tmp_path, transform_output):
    inputs = channels(tmp_path, transform_output)
    train = CONFIG.train.model_copy(update={"warm_start": True, "epochs": 1})
    config = CONFIG.model_copy(update={"train": train})
    first, report = run(tmp_path / "first", inputs, config)
    assert report.warm_start.cold_because.startswith("no earlier blessed run has a model of each arm")

    other = config.model_copy(update={"model": config.model.model_copy(update={"backbone": "dcn"})})
    _, report = run(tmp_path / "second", {**inputs, "base_model": [first]}, other)
    assert report.warm_start.model is None
    assert report.warm_start.cold_because == "the earlier model has the backbone dcnv2"

"""The TFX graph: which component feeds which, in order."""

import hashlib
import itertools
import pathlib
from typing import NamedTuple

from google.protobuf import text_format

# Not from tfx.v1, which imports every cloud client: a third of the time to start.
from tfx.components import Evaluator, Pusher, StatisticsGen, Transform
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.dsl.components.base import base_component
from tfx.dsl.components.common import resolver
from tfx.dsl.experimental import latest_blessed_model_resolver
from tfx.orchestration import metadata, pipeline
from tfx.proto import pusher_pb2, transform_pb2
from tfx.types import Channel, standard_artifacts

from components.example_validator.component import StrictExampleValidator
from components.interactions_example_gen.component import InteractionsExampleGen
from components.llm_scorer.component import LlmScorer
from components.pair_builder.component import PairBuilder
from components.trainer.component import Trainer
from components.trainer.config import TrainerConfig
from models import preprocessing
from models.features import row_features, schema
from pipeline import evaluation
from pipeline.code_version import code_version
from pipeline.config import Config

METADATA_FILE = "metadata.sqlite"
ARTIFACTS_DIRECTORY = "artifacts"
SERVING_DIRECTORY = "serving"


class _DataSteps(NamedTuple):
    """The steps in front of training, and the three among them that others read."""

    steps: tuple[base_component.BaseComponent, ...]
    example_gen: InteractionsExampleGen
    schema_gen: ImportSchemaGen
    transform: Transform
    pairs: Channel | None


def build_pipeline(config: Config, output: pathlib.Path) -> pipeline.Pipeline:
    """The eleven steps for one configuration; nine where loss.llm_weight is 0.

    Args:
        config: checked, with absolute paths.
        output: the run's folder; holds metadata, artifacts and the pushed models.
    """
    data = _data_steps(config, output)
    trainer = Trainer(
        examples=data.transform.outputs["transformed_examples"],
        transform_graph=data.transform.outputs["transform_graph"],
        pairs=data.pairs,
        config=TrainerConfig(
            sizes=config.data.sizes, model=config.model, gate=config.gate, loss=config.loss, train=config.train
        ),
        code_fingerprint=code_version(),
    )
    model_resolver = resolver.Resolver(
        strategy_class=latest_blessed_model_resolver.LatestBlessedModelResolver,
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("Resolver")
    evaluator = Evaluator(
        examples=data.example_gen.outputs["examples"],
        example_splits=["test"],
        schema=data.schema_gen.outputs["schema"],
        model=trainer.outputs["model"],
        baseline_model=model_resolver.outputs["model"],
        eval_config=evaluation.eval_config(config.evaluation),
    )
    pusher = Pusher(
        model=trainer.outputs["model"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=str(output / SERVING_DIRECTORY / config.name)
            )
        ),
    )
    return _in_order([*data.steps, trainer, model_resolver, evaluator, pusher], config, output)


def build_data_pipeline(config: Config, output: pathlib.Path) -> pipeline.Pipeline:
    """The steps of build_pipeline up to PairBuilder: rows, transform graph, scores and pairs, but no model."""
    return _in_order([*_data_steps(config, output).steps], config, output)


def _data_steps(config: Config, output: pathlib.Path) -> _DataSteps:
    code = code_version()
    example_gen = InteractionsExampleGen(config=config.data, code_fingerprint=code)
    statistics_gen = StatisticsGen(examples=example_gen.outputs["examples"])
    schema_gen = ImportSchemaGen(schema_file=str(_write_schema(config, output)))
    example_validator = StrictExampleValidator(
        statistics=statistics_gen.outputs["statistics"], schema=schema_gen.outputs["schema"]
    )
    transform = Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn="models.preprocessing.preprocessing_fn",
        # Vocabularies come from train alone; test is never transformed ahead, only by the exported model.
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "valid"]),
        custom_config={preprocessing.USE_USER_ID: config.model.use_user_id, "code_fingerprint": code},
    )
    steps = (example_gen, statistics_gen, schema_gen, example_validator, transform)
    if config.loss.llm_weight == 0:  # nothing reads the answers, so nothing is asked
        return _DataSteps(steps, example_gen, schema_gen, transform, pairs=None)
    llm_scorer = LlmScorer(
        examples=example_gen.outputs["examples"],
        catalog=example_gen.outputs["catalog"],
        config=config.llm,
        cache_directory=config.cache_dir,
        code_fingerprint=code,
    )
    pair_builder = PairBuilder(
        scores=llm_scorer.outputs["scores"],
        catalog=example_gen.outputs["catalog"],
        config=config.pairs,
        sizes=config.data.sizes,
        code_fingerprint=code,
    )
    asked = (*steps, llm_scorer, pair_builder)
    return _DataSteps(asked, example_gen, schema_gen, transform, pairs=pair_builder.outputs["pairs"])


def _in_order(steps: list[base_component.BaseComponent], config: Config, output: pathlib.Path) -> pipeline.Pipeline:
    # One after the other in this order: a schema's anomaly stops the run before anything else is spent on it.
    for earlier, later in itertools.pairwise(steps):
        later.add_upstream_node(earlier)
    return pipeline.Pipeline(
        pipeline_name=f"sllmr-{config.name}",
        pipeline_root=str(output / ARTIFACTS_DIRECTORY),
        components=steps,
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(output / METADATA_FILE)),
        beam_pipeline_args=list(config.beam.pipeline_args),
    )


def _write_schema(config: Config, output: pathlib.Path) -> pathlib.Path:
    """Writes the curated schema where ImportSchemaGen finds it; the name changes with the content, since TFX's cache
    looks at the name alone."""
    text = text_format.MessageToString(schema(row_features(config.data.sizes)))
    file = output / "schema" / f"schema-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pbtxt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file

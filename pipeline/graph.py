"""The TFX graph: which component feeds which, in order."""

import itertools
import pathlib
import re
from typing import NamedTuple

from google.protobuf import text_format
from tfx import types

# Not from tfx.v1, which imports every cloud client: a third of the time to start.
from tfx.components import InfraValidator, StatisticsGen, Transform
from tfx.dsl.components.base import base_component
from tfx.dsl.components.common import resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
from tfx.orchestration import metadata, pipeline
from tfx.proto import infra_validator_pb2, pusher_pb2, transform_pb2
from tfx.types import Channel, standard_artifacts

from sllmr.components.curated_schema.component import CuratedSchema
from sllmr.components.evaluator.component import Evaluator
from sllmr.components.evaluator.slices import SLICES, slice_rule
from sllmr.components.example_validator.component import StrictExampleValidator
from sllmr.components.interactions_example_gen.component import InteractionsExampleGen
from sllmr.components.item_embedder.component import ItemEmbedder
from sllmr.components.leakage_guard.component import LeakageGuard
from sllmr.components.llm_comparison.component import LlmComparison
from sllmr.components.llm_scorer.component import LlmScorer
from sllmr.components.llm_scorer.config import EMBEDDING, LlmConfig
from sllmr.components.pair_builder.component import PairBuilder
from sllmr.components.trainer.component import Trainer
from sllmr.components.trainer.config import TrainerConfig
from sllmr.models import preprocessing
from sllmr.models.config import GateConfig, LossConfig
from sllmr.models.features import RowLengths, row_features
from sllmr.models.schema import schema
from sllmr.pipeline.blessed_models import FIRST_BLESSED, LAST_BLESSED, blessed_models
from sllmr.pipeline.code_version import code_version
from sllmr.pipeline.config import Config, ConfigError
from sllmr.pipeline.last_scores import LAST as LAST_SCORES
from sllmr.pipeline.last_scores import last_scores
from sllmr.pipeline.last_statistics import LAST, last_statistics
from sllmr.pipeline.pusher import Pusher
from sllmr.pipeline.run_folder import ARTIFACTS_DIRECTORY, METADATA_FILE
from sllmr.pipeline.warm_start import (
    BASE_MODEL,
    BASE_MODEL_WITH_VECTOR_PAIRS,
    BASE_MODEL_WITHOUT_PAIRS,
    warm_start_model,
    warm_start_of_arms,
)

SERVING_DIRECTORY = "serving"

_VECTOR_COMPARISON = "VectorComparison"


class _DataSteps(NamedTuple):
    """The steps in front of training, and those among them, or their outputs, that others read."""

    steps: tuple[base_component.BaseComponent, ...]
    example_gen: InteractionsExampleGen
    schema_gen: base_component.BaseComponent
    transform: Transform
    item_vectors: Channel | None
    pairs: Channel | None
    vector_pairs: Channel | None


class Cluster(NamedTuple):
    """Where an orchestrator of many machines, Kubeflow Pipelines or Vertex AI, keeps the artifacts.

    Attributes:
        pipeline_root: a URI.
    """

    pipeline_root: str


def build_pipeline(config: Config, output: pathlib.Path, cluster: Cluster | None = None) -> pipeline.Pipeline:
    """The sixteen steps for one configuration; fourteen without train.compare, eleven if loss.llm_weight is 0.

    ItemEmbedder comes on top where item vectors are used, InfraValidator with serving.infra_validation_tag, LastScores
    with llm.rescore, WarmStart with train.warm_start, and five steps with train.compare_vectors.

    Args:
        config: checked, with absolute paths.
        output: the run's folder; holds metadata, artifacts and the pushed models.
        cluster: None for TFX's local runner. On a cluster, rows are not compared with those of the last run, and the
            Resolver finds only the last blessed model, by TFX's strategy, the only one that Kubeflow's runner knows.
    """
    data = _data_steps(config, cluster)
    # Whether models are compared changes nothing in them.
    training = TrainerConfig(
        sizes=config.data.feature_sizes,
        model=config.model,
        gate=config.gate,
        loss=config.loss,
        train=config.train.model_copy(update={"compare": True, "compare_vectors": False}),
        positive_rate=config.evaluation.positive_rate,
    )
    warm_start = _warm_start(config, data, cluster)
    base_models = {} if warm_start is None else warm_start.outputs
    trainer = _trainer(data, training, data.pairs, base_models.get(BASE_MODEL))
    training_steps: tuple[base_component.BaseComponent, ...] = (trainer,)
    model = trainer.outputs["model"]
    if data.pairs is not None and config.train.compare:
        # Nothing of the LLM, the gate or the pairs is in its inputs: TFX takes it from the cache when these change. A
        # warm start gives it the weights of this arm alone; a blessing only decides which earlier run they are from.
        without = training.model_copy(update={"gate": GateConfig(), "loss": LossConfig(llm_weight=0)})
        base_model = base_models.get(BASE_MODEL_WITHOUT_PAIRS)
        trainer_without_pairs = _trainer(data, without, None, base_model).with_id("TrainerWithoutPairs")
        comparison = _comparison(config, data, trainer, trainer_without_pairs)
        training_steps = (trainer_without_pairs, trainer, comparison)
        model = comparison.outputs["model"]
        if data.vector_pairs is not None:
            base_model = base_models.get(BASE_MODEL_WITH_VECTOR_PAIRS)
            by_vectors = _trainer(data, training, data.vector_pairs, base_model).with_id("TrainerWithVectorPairs")
            of_vectors = _comparison(config, data, by_vectors, trainer_without_pairs).with_id(_VECTOR_COMPARISON)
            training_steps = (*training_steps, by_vectors, of_vectors)
    if warm_start is not None:
        training_steps = (warm_start, *training_steps)
    model_resolver = blessed_models(model) if cluster is None else _last_blessed_model()
    evaluator = Evaluator(
        examples=data.example_gen.outputs["examples"],
        schema=data.schema_gen.outputs["schema"],
        model=model,
        baseline_model=model_resolver.outputs[LAST_BLESSED if cluster is None else "model"],
        reference_model=model_resolver.outputs[FIRST_BLESSED] if cluster is None else None,
        config=config.evaluation,
        code_fingerprint=_code_of(Evaluator),
    )
    infra_validators: tuple[base_component.BaseComponent, ...] = ()
    infra_blessing = None
    if config.serving.infra_validation_tag is not None:
        infra_validator = _infra_validator(model, config.serving.infra_validation_tag)
        infra_validators, infra_blessing = (infra_validator,), infra_validator.outputs["blessing"]
    pusher = Pusher(
        model=model,
        model_blessing=evaluator.outputs["blessing"],
        infra_blessing=infra_blessing,
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=str(output / SERVING_DIRECTORY / config.name)
            )
        ),
    )
    steps = [*data.steps, *training_steps, model_resolver, evaluator, *infra_validators, pusher]
    return _in_order(steps, config, output, cluster)


def _comparison(config: Config, data: _DataSteps, with_pairs: Trainer, without_pairs: Trainer) -> LlmComparison:
    return LlmComparison(
        with_llm=with_pairs.outputs["model"],
        without_llm=without_pairs.outputs["model"],
        examples=data.example_gen.outputs["examples"],
        slices={name: slice_rule(name) for name in SLICES},
        by_features=config.evaluation.slices,
        min_users=config.evaluation.min_slice_users,
        code_fingerprint=_code_of(LlmComparison),
    )


def _infra_validator(model: Channel, tag: str) -> InfraValidator:
    return InfraValidator(
        model=model,
        serving_spec=infra_validator_pb2.ServingSpec(
            tensorflow_serving=infra_validator_pb2.TensorFlowServing(tags=[tag]),
            local_docker=infra_validator_pb2.LocalDockerConfig(),
        ),
    )


def _last_blessed_model() -> resolver.Resolver:
    return resolver.Resolver(
        strategy_class=LatestBlessedModelStrategy,
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("Resolver")


def _warm_start(config: Config, data: _DataSteps, cluster: Cluster | None) -> resolver.Resolver | None:
    if not config.train.warm_start:
        return None
    if cluster is not None:
        raise ConfigError(
            "train.warm_start needs TFX's local runner, got a cluster, which has no Resolver for it; set "
            "train.warm_start: false"
        )
    report = data.example_gen.outputs["report"]
    if data.pairs is None or not config.train.compare:
        return warm_start_model(report)
    return warm_start_of_arms(report, _VECTOR_COMPARISON)


def _trainer(
    data: _DataSteps, config: TrainerConfig, pairs: Channel | None, base_model: types.BaseChannel | None
) -> Trainer:
    return Trainer(
        examples=data.transform.outputs["transformed_examples"],
        transform_graph=data.transform.outputs["transform_graph"],
        catalog=data.example_gen.outputs["catalog"],
        report=data.example_gen.outputs["report"],
        pairs=pairs,
        item_vectors=data.item_vectors if config.model.item_vectors else None,
        base_model=base_model,
        config=config,
        code_fingerprint=_code_of(Trainer),
    )


def _code_of(component: type[base_component.BaseComponent]) -> str:
    return code_version(component.__module__)


def build_data_pipeline(config: Config, output: pathlib.Path) -> pipeline.Pipeline:
    """The steps of build_pipeline up to PairBuilder: rows, transform graph, scores and pairs, but no model."""
    return _in_order([*_data_steps(config).steps], config, output)


def build_rows_pipeline(config: Config, output: pathlib.Path) -> pipeline.Pipeline:
    """The steps of build_pipeline before LlmScorer: rows, transform graph and item vectors, but no request."""
    return _in_order([*_row_steps(config).steps], config, output)


def _row_steps(config: Config, cluster: Cluster | None = None) -> _DataSteps:
    sizes = config.data.feature_sizes
    example_gen = InteractionsExampleGen(config=config.data, code_fingerprint=_code_of(InteractionsExampleGen))
    statistics_gen = StatisticsGen(examples=example_gen.outputs["examples"])
    rows = row_features(sizes, has_weights=config.data.has_weights)
    schema_gen = CuratedSchema(text=text_format.MessageToString(schema(rows)))
    last = last_statistics(statistics_gen.outputs["statistics"]) if cluster is None else None
    example_validator = StrictExampleValidator(
        statistics=statistics_gen.outputs["statistics"],
        schema=schema_gen.outputs["schema"],
        last_statistics=None if last is None else last.outputs[LAST],
        config=config.drift,
        code_fingerprint=_code_of(StrictExampleValidator),
    )
    transform = Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn=f"{preprocessing.__name__}.preprocessing_fn",
        # Vocabularies come from train alone; test is never transformed ahead, only by the exported model.
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=["train", "valid"]),
        custom_config={
            preprocessing.USE_USER_ID: config.model.use_user_id,
            "code_fingerprint": code_version(preprocessing.__name__),
            **({preprocessing.SIZES: sizes.model_dump_json()} if sizes.declared else {}),
        },
        # Nothing reads Transform's own statistics or its analyzer cache.
        disable_statistics=True,
        disable_analyzer_cache=True,
    )
    leakage_guard = _leakage_guard(config, example_gen, transform)
    steps: tuple[base_component.BaseComponent, ...] = (
        example_gen,
        statistics_gen,
        schema_gen,
        *(() if last is None else (last,)),
        example_validator,
        transform,
        leakage_guard,
    )
    item_vectors = None
    if config.uses_item_vectors:
        item_embedder = ItemEmbedder(
            catalog=example_gen.outputs["catalog"],
            config=config.item_vectors,
            cache_directory=config.cache_dir,
            store_url=config.store,
            code_fingerprint=_code_of(ItemEmbedder),
        )
        steps = (*steps, item_embedder)
        item_vectors = item_embedder.outputs["item_vectors"]
    return _DataSteps(steps, example_gen, schema_gen, transform, item_vectors, pairs=None, vector_pairs=None)


def _data_steps(config: Config, cluster: Cluster | None = None) -> _DataSteps:
    rows = _row_steps(config, cluster)
    if config.loss.llm_weight == 0:  # nothing would read the scores
        return rows
    if config.llm.rescore and cluster is not None:
        raise ConfigError(
            "llm.rescore needs TFX's local runner, got a cluster, which has no Resolver for it; set llm.rescore: false"
        )
    steps, pairs = _scored(config, config.llm, rows)
    rows = rows._replace(steps=(*rows.steps, *steps), pairs=pairs)
    if not config.train.compare_vectors:
        return rows
    steps, pairs = _scored(config, config.llm.scored_by_vectors(), rows, of="Vector")
    return rows._replace(steps=(*rows.steps, *steps), vector_pairs=pairs)


def _scored(
    config: Config, llm: LlmConfig, rows: _DataSteps, of: str = ""
) -> tuple[tuple[base_component.BaseComponent, ...], Channel]:
    """The steps from train rows to guarded pairs, and the pairs. `of` goes into the steps' names."""
    example_gen = rows.example_gen
    reads_vectors = llm.strategy == EMBEDDING or config.scorer_reads_item_vectors
    last = last_scores(example_gen.outputs["examples"]) if llm.rescore else None
    scorer = LlmScorer(
        examples=example_gen.outputs["examples"],
        catalog=example_gen.outputs["catalog"],
        config=llm,
        pair_yield=config.pair_yield,
        item_vectors=rows.item_vectors if reads_vectors else None,
        last_scores=None if last is None else last.outputs[LAST_SCORES],
        cache_directory=config.cache_dir,
        store_url=config.store,
        code_fingerprint=_code_of(LlmScorer),
    )
    pair_builder = PairBuilder(
        scores=scorer.outputs["scores"],
        catalog=example_gen.outputs["catalog"],
        examples=example_gen.outputs["examples"],
        config=config.pairs,
        sizes=config.data.feature_sizes,
        seed=config.llm.seed,
        code_fingerprint=_code_of(PairBuilder),
    )
    if of:
        scorer, pair_builder = scorer.with_id(f"{of}Scorer"), pair_builder.with_id(f"{of}PairBuilder")
    guard = _leakage_guard(
        config,
        example_gen,
        rows.transform,
        scores=scorer.outputs["scores"],
        pairs=pair_builder.outputs["pairs"],
    ).with_id(f"LeakageGuardOf{of}Pairs")
    return (*(() if last is None else (last,)), scorer, pair_builder, guard), pair_builder.outputs["pairs"]


def _leakage_guard(
    config: Config,
    example_gen: InteractionsExampleGen,
    transform: Transform,
    scores: Channel | None = None,
    pairs: Channel | None = None,
) -> LeakageGuard:
    return LeakageGuard(
        examples=example_gen.outputs["examples"],
        catalog=example_gen.outputs["catalog"],
        transform_graph=transform.outputs["transform_graph"],
        scores=scores,
        pairs=pairs,
        use_user_id=config.model.use_user_id,
        sizes=config.data.feature_sizes,
        seed=config.llm.seed,
        code_fingerprint=_code_of(LeakageGuard),
    )


def pipeline_name(config: Config) -> str:
    """Names the pipeline by the configuration and by the shape of its rows, if that is not the default.

    TFX compares a model with the last blessed one of the same name; a model of rows of another shape cannot read the
    rows.
    """
    sizes = config.data.sizes
    shape = "" if sizes == RowLengths() else f"-h{sizes.history}-c{sizes.categories}"
    return f"sllmr-{config.name}{shape}"


def _in_order(
    steps: list[base_component.BaseComponent],
    config: Config,
    output: pathlib.Path,
    cluster: Cluster | None = None,
) -> pipeline.Pipeline:
    # The steps run one after the other in this order, so that an anomaly stops the run before it costs more.
    for earlier, later in itertools.pairwise(steps):
        later.add_upstream_node(earlier)
    name = pipeline_name(config)
    return pipeline.Pipeline(
        # Kubeflow takes small letters, digits and dashes.
        pipeline_name=name if cluster is None else re.sub("[^a-z0-9-]+", "-", name.lower()),
        pipeline_root=str(output / ARTIFACTS_DIRECTORY) if cluster is None else cluster.pipeline_root,
        components=steps,
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(output / METADATA_FILE)),
        beam_pipeline_args=list(config.beam.pipeline_args),
    )

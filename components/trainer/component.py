"""TFX's Trainer with the catalog, the preference pairs and the item vectors as further inputs."""

from tfx import types
from tfx.components.trainer.component import Trainer as TfxTrainer
from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import trainer_pb2
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.utils import io_utils, json_utils

from sllmr.components.artifacts import DataReport, ItemCatalog, ItemVectors
from sllmr.components.trainer import executor
from sllmr.components.trainer.config import TrainerConfig

RUN_FN = "sllmr.components.trainer.run_fn.run_fn"


class TrainerSpec(standard_component_specs.TrainerSpec):
    """TFX's spec, `catalog`, `report`, `pairs` and `item_vectors`."""

    INPUTS = {  # noqa: RUF012  as TFX declares it
        **standard_component_specs.TrainerSpec.INPUTS,
        executor.CATALOG_KEY: component_spec.ChannelParameter(type=ItemCatalog),
        executor.REPORT_KEY: component_spec.ChannelParameter(type=DataReport),
        executor.PAIRS_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples, optional=True),
        executor.ITEM_VECTORS_KEY: component_spec.ChannelParameter(type=ItemVectors, optional=True),
    }


class Trainer(TfxTrainer):
    """Fits models.ranking.RankingModel and exports it.

    Args:
        examples: transformed examples with splits train and valid.
        transform_graph: of the Transform that wrote the examples.
        catalog: the items whose attributes the exported model looks up, of InteractionsExampleGen.
        report: the data report, whose dates and hash the exported model carries.
        config: of model, gate, losses and training.
        pairs: preference pairs, split train, raw strings; None is allowed if config.loss.llm_weight is 0.
        item_vectors: of ItemEmbedder; None is allowed if config.model.item_vectors is False.
        base_model: TFX's name for the model that config.train.warm_start starts from; None, or empty: a cold start.
        code_fingerprint: changes when the models' code does, so that TFX's cache notices.

    Raises:
        ValueError: llm_weight is above 0 and there are no pairs, or item vectors are inputs and there are none.

    Outputs: `model` (SavedModel), `model_run` (TensorBoard logs and training.json).
    """

    SPEC_CLASS = TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        transform_graph: types.BaseChannel,
        catalog: types.BaseChannel,
        report: types.BaseChannel,
        config: TrainerConfig,
        pairs: types.BaseChannel | None = None,
        item_vectors: types.BaseChannel | None = None,
        base_model: types.BaseChannel | None = None,
        code_fingerprint: str = "",
    ):
        if pairs is None and config.loss.llm_weight > 0:
            raise ValueError(
                f"the Trainer needs pairs with llm_weight above 0, got llm_weight {config.loss.llm_weight}; "
                "give it the PairBuilder's pairs or set llm_weight to 0"
            )
        if item_vectors is None and config.model.item_vectors:
            raise ValueError(
                "the Trainer needs item vectors with model.item_vectors, got none; give it ItemEmbedder's or set "
                "model.item_vectors: false"
            )
        files = {"weights_from": config.gate.weights_from}
        custom_config = {
            executor.CONFIG: config.model_dump_json(),
            "code_fingerprint": code_fingerprint,
            # Part of TFX's cache key: a file that was written anew is read anew.
            "files": [io_utils.generate_fingerprint(name, path) for name, path in files.items() if path is not None],
        }
        spec = TrainerSpec(
            examples=examples,
            transform_graph=transform_graph,
            catalog=catalog,
            report=report,
            pairs=pairs,
            item_vectors=item_vectors,
            base_model=base_model,
            train_args=trainer_pb2.TrainArgs(splits=["train"]),
            eval_args=trainer_pb2.EvalArgs(splits=["valid"]),
            run_fn=RUN_FN,
            custom_config=json_utils.dumps(custom_config),
            model=types.Channel(type=standard_artifacts.Model),
            model_run=types.Channel(type=standard_artifacts.ModelRun),
        )
        # TfxTrainer's constructor builds TFX's own spec, which has no place for pairs.
        base_component.BaseComponent.__init__(self, spec=spec)

"""PairBuilder: turns LLM scores into preference pairs, and labels those of the target item and a sampled negative."""

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec, standard_artifacts

from sllmr.components.artifacts import ItemCatalog, LlmScores
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.executor import Executor
from sllmr.models.features import FeatureSizes


class PairBuilderSpec(component_spec.ComponentSpec):
    """Inputs, outputs and execution properties."""

    PARAMETERS: ClassVar = {
        "config": component_spec.ExecutionParameter(type=str),
        "sizes": component_spec.ExecutionParameter(type=str),
        "seed": component_spec.ExecutionParameter(type=int),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {
        "scores": component_spec.ChannelParameter(type=LlmScores),
        "catalog": component_spec.ChannelParameter(type=ItemCatalog),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS: ClassVar = {"pairs": component_spec.ChannelParameter(type=standard_artifacts.Examples)}


class PairBuilder(base_beam_component.BaseBeamComponent):
    """Writes `models.features.pair_features` as an Examples artifact with the one split `train`."""

    SPEC_CLASS = PairBuilderSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        scores: types.BaseChannel,
        catalog: types.BaseChannel,
        examples: types.BaseChannel,
        config: PairConfig,
        sizes: FeatureSizes,
        seed: int,
        code_fingerprint: str,
    ):
        """
        Args:
            scores: LlmScores of LlmScorer.
            catalog: ItemCatalog of InteractionsExampleGen.
            examples: of InteractionsExampleGen; the train rows say to which user each scored context belongs.
            config: how many pairs.
            sizes: the shapes of the features.
            seed: llm.seed, which the ids of the contexts depend on.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.
        """
        super().__init__(
            PairBuilderSpec(
                scores=scores,
                catalog=catalog,
                examples=examples,
                config=config.model_dump_json(),
                sizes=sizes.model_dump_json(),
                seed=seed,
                code_fingerprint=code_fingerprint,
                pairs=types.Channel(type=standard_artifacts.Examples),
            )
        )

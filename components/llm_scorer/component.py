"""LlmScorer: asks the LLM about chosen users and items of the train split, once, offline."""

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel, component_spec, standard_artifacts

from components.artifacts import ItemCatalog, LlmScores
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.executor import Executor
from components.llm_scorer.strategies import create_strategy


class LlmScorerSpec(types.ComponentSpec):
    """Inputs, output and properties of LlmScorer."""

    PARAMETERS = {  # noqa: RUF012  the form that TFX's base class declares
        "config": component_spec.ExecutionParameter(type=str),
        "cache_directory": component_spec.ExecutionParameter(type=str),
        "prompt_version": component_spec.ExecutionParameter(type=str),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "catalog": component_spec.ChannelParameter(type=ItemCatalog),
    }
    OUTPUTS = {  # noqa: RUF012
        "scores": component_spec.ChannelParameter(type=LlmScores),
    }


class LlmScorer(base_beam_component.BaseBeamComponent):
    """Train rows and catalogue in, score table out."""

    SPEC_CLASS = LlmScorerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        examples: channel.BaseChannel,
        catalog: channel.BaseChannel,
        config: LlmConfig,
        cache_directory: str,
        code_fingerprint: str,
    ):
        """
        Args:
            examples: rows; only their train split is read.
            catalog: ItemCatalog.
            config: the LLM, how it is asked, and the budget.
            cache_directory: absolute; keeps answers between runs, so it lies outside the pipeline's root.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.

        Raises:
            ValueError: the prompt file does not fit the strategy.
        """
        super().__init__(
            LlmScorerSpec(
                examples=examples,
                catalog=catalog,
                config=config.model_dump_json(),
                cache_directory=cache_directory,
                # Part of TFX's cache key: an edited prompt is asked anew.
                prompt_version=create_strategy(config.resolve()).prompt_version,
                code_fingerprint=code_fingerprint,
                scores=types.Channel(type=LlmScores),
            )
        )

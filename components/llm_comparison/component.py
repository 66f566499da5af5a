"""LlmComparison: the model with pairs against the same model without, and the choice between them."""

import json
from collections.abc import Mapping, Sequence

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel, component_spec, standard_artifacts

from sllmr.components.artifacts import ModelComparison
from sllmr.components.llm_comparison import executor


class LlmComparisonSpec(types.ComponentSpec):
    """Inputs, outputs and properties of LlmComparison."""

    PARAMETERS = {  # noqa: RUF012  the form that TFX's base class declares
        executor.SLICES: component_spec.ExecutionParameter(type=str),
        executor.BY_FEATURES: component_spec.ExecutionParameter(type=str, optional=True),
        executor.MIN_USERS: component_spec.ExecutionParameter(type=int, optional=True),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        executor.WITH_LLM: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.WITHOUT_LLM: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {  # noqa: RUF012
        executor.MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.COMPARISON: component_spec.ChannelParameter(type=ModelComparison),
    }


class LlmComparison(base_component.BaseComponent):
    """Chooses the better of two trained models by the validation rows, and reports a verdict on the test rows."""

    SPEC_CLASS = LlmComparisonSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        *,
        with_llm: channel.BaseChannel,
        without_llm: channel.BaseChannel,
        examples: channel.BaseChannel,
        slices: Mapping[str, tuple[str, int] | None],
        code_fingerprint: str,
        by_features: Sequence[str] = (),
        min_users: int = 1,
    ):
        """
        Args:
            with_llm: the model that was trained with preference pairs.
            without_llm: the same model, trained without them on the same rows, from the same initial weights; after a
                warm start, each from its own model of the same earlier run, see pipeline.warm_start.
            examples: raw rows with splits valid and test.
            slices: name -> integer feature and the value that a row of the slice has; None for all rows.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.
            by_features, min_users: slices by declared features, see components.own_slices.
        """
        own = {executor.BY_FEATURES: json.dumps(list(by_features)), executor.MIN_USERS: min_users}
        super().__init__(
            LlmComparisonSpec(
                with_llm=with_llm,
                without_llm=without_llm,
                examples=examples,
                slices=json.dumps(dict(slices)),
                code_fingerprint=code_fingerprint,
                model=types.Channel(type=standard_artifacts.Model),
                comparison=types.Channel(type=ModelComparison),
                **(own if by_features else {}),
            )
        )

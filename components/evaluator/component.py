"""The Evaluator: TFMA, exact metrics with intervals by user, and a decision that says why."""

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs

from sllmr.components.evaluator import executor
from sllmr.components.evaluator.config import EvaluationConfig


class EvaluatorSpec(types.ComponentSpec):
    """Inputs and outputs as TFX's Evaluator has them, a reference model, the bounds, and a fingerprint of the code."""

    PARAMETERS = {  # noqa: RUF012  as TFX declares it
        executor.CONFIG: component_spec.ExecutionParameter(type=str),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        standard_component_specs.EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        standard_component_specs.SCHEMA_KEY: component_spec.ChannelParameter(type=standard_artifacts.Schema),
        standard_component_specs.MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        standard_component_specs.BASELINE_MODEL_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Model, optional=True
        ),
        executor.REFERENCE_MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model, optional=True),
    }
    OUTPUTS = {  # noqa: RUF012
        standard_component_specs.EVALUATION_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.ModelEvaluation
        ),
        standard_component_specs.BLESSING_KEY: component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_component.BaseComponent):
    """Scores a model, the last blessed one and the reference on the test rows, and blesses it if no bound is broken.

    Outputs: `evaluation` (TFMA's files and decision.json, see components.evaluator.decision), `blessing`.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        schema: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel,
        reference_model: types.BaseChannel | None,
        config: EvaluationConfig,
        code_fingerprint: str = "",
    ):
        """
        Args:
            examples: raw rows with a split test.
            schema: of them.
            model: to be evaluated.
            baseline_model: the last blessed one, from a Resolver; empty before the first blessing.
            reference_model: the first blessed one, likewise; None: none. config.reference takes precedence.
            config: the bounds.
            code_fingerprint: changes when the code does, so that TFX's cache notices.
        """
        super().__init__(
            EvaluatorSpec(
                examples=examples,
                schema=schema,
                model=model,
                baseline_model=baseline_model,
                reference_model=reference_model,
                config=config.model_dump_json(),
                code_fingerprint=code_fingerprint,
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )

"""ExampleValidator that stops the run on anomalies, and measures drift and skew."""

from typing import ClassVar

from tfx import types
from tfx.components import ExampleValidator
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.utils import json_utils

from sllmr.components.example_validator import executor
from sllmr.components.example_validator.config import DriftConfig


class StrictExampleValidatorSpec(standard_component_specs.ExampleValidatorSpec):
    """TFX's spec, the statistics of the last run, and the thresholds."""

    PARAMETERS: ClassVar = {
        **standard_component_specs.ExampleValidatorSpec.PARAMETERS,
        executor.CONFIG: component_spec.ExecutionParameter(type=str),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {
        **standard_component_specs.ExampleValidatorSpec.INPUTS,
        executor.LAST_STATISTICS: component_spec.ChannelParameter(
            type=standard_artifacts.ExampleStatistics, optional=True
        ),
    }


class StrictExampleValidator(ExampleValidator):
    """TFX's ExampleValidator; an anomaly in any split fails the component instead of only being recorded.

    It also compares the train rows with those of the last run (drift) and with the test rows (skew). Outputs:
    `anomalies`, TFX's files by split and drift.json.
    """

    SPEC_CLASS = StrictExampleValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        last_statistics: types.BaseChannel | None,
        config: DriftConfig,
        code_fingerprint: str,
    ):
        """
        Args:
            statistics: of StatisticsGen.
            schema: of the rows.
            last_statistics: of the last run that got past this component, from a Resolver; empty for a first run. None
                if there is no Resolver: drift is not measured.
            config: thresholds.
            code_fingerprint: changes when the code does, so that TFX's cache notices.
        """
        spec = StrictExampleValidatorSpec(
            statistics=statistics,
            schema=schema,
            last_statistics=last_statistics,
            exclude_splits=json_utils.dumps([]),
            config=config.model_dump_json(),
            code_fingerprint=code_fingerprint,
            anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
        )
        # ExampleValidator's constructor builds TFX's own spec, which has no place for the last run's statistics.
        base_component.BaseComponent.__init__(self, spec=spec)

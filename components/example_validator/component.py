"""ExampleValidator that stops the run on anomalies."""

from tfx.components import ExampleValidator
from tfx.dsl.components.base import executor_spec

from components.example_validator.executor import Executor


class StrictExampleValidator(ExampleValidator):
    """TFX's ExampleValidator; an anomaly in any split fails the component instead of only being recorded."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

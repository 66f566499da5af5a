"""Validates as TFX does, then raises where it only records."""

import os
from typing import Any

from tfx.components.example_validator import executor as tfx_executor
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact, artifact_utils, standard_component_specs

from tensorflow_metadata.proto.v0 import anomalies_pb2  # isort: skip


class AnomaliesFoundError(ValueError):
    """The data does not match the curated schema."""


class Executor(tfx_executor.Executor):
    """See component.StrictExampleValidator."""

    def Do(
        self,
        input_dict: dict[str, list[artifact.Artifact]],
        output_dict: dict[str, list[artifact.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        result = super().Do(input_dict, output_dict, exec_properties)
        anomalies = output_dict[standard_component_specs.ANOMALIES_KEY]
        lines = []
        for split in artifact_utils.decode_split_names(anomalies[0].split_names):
            path = os.path.join(artifact_utils.get_split_uri(anomalies, split), tfx_executor.DEFAULT_FILE_NAME)
            with open(path, "rb") as file:
                found = anomalies_pb2.Anomalies.FromString(file.read())
            lines += describe(split, found)
        if lines:
            raise AnomaliesFoundError(
                "the rows do not match the schema in models/features.py; mend the data or the schema:\n  "
                + "\n  ".join(lines)
            )
        return result


def describe(split: str, anomalies: anomalies_pb2.Anomalies) -> list[str]:
    """One line an anomaly: split, feature, what is wrong."""
    lines = [
        f"{split}: {name}: {info.short_description}: {info.description}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines

"""Validates as TFX does, but raises on anomalies that TFX only records; then measures drift and skew."""

import logging
import os
from typing import Any

from tfx.components.example_validator import executor as tfx_executor
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact, artifact_utils, standard_component_specs
from tfx.utils import io_utils

from tensorflow_metadata.proto.v0 import anomalies_pb2  # isort: skip

from sllmr.components.example_validator.config import DriftConfig
from sllmr.components.example_validator.distances import Statistics, distances
from sllmr.components.example_validator.drift_report import FILE_NAME, DriftReport
from sllmr.models import artifact_files
from sllmr.models.errors import UserError

CONFIG = "config"
"""Execution property: JSON of a DriftConfig."""

LAST_STATISTICS = "last_statistics"
"""Input: statistics of the last run that got past this component; absent for a first run."""

STATISTICS_ID = "statistics_id"
"""Custom property of the anomalies: the id of the statistics in which they were found."""

_log = logging.getLogger(__name__)


class AnomaliesFoundError(UserError):
    """The data does not match the curated schema."""


class DriftError(UserError):
    """The data moved farther than drift.max_drift or drift.max_skew allows, and the configuration says to fail."""


class Executor(tfx_executor.Executor):
    """See component.StrictExampleValidator."""

    def Do(
        self,
        input_dict: dict[str, list[artifact.Artifact]],
        output_dict: dict[str, list[artifact.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        statistics = artifact_utils.get_single_instance(input_dict[standard_component_specs.STATISTICS_KEY])
        anomalies = output_dict[standard_component_specs.ANOMALIES_KEY]
        # pipeline.last_statistics finds the last run's statistics by this id; TFX publishes it only if Do succeeds.
        artifact_utils.get_single_instance(anomalies).set_int_custom_property(STATISTICS_ID, statistics.id)
        result = super().Do(input_dict, output_dict, exec_properties)
        lines = []
        for split in artifact_utils.decode_split_names(anomalies[0].split_names):
            path = os.path.join(artifact_utils.get_split_uri(anomalies, split), tfx_executor.DEFAULT_FILE_NAME)
            with artifact_files.open(path, "rb") as file:
                found = anomalies_pb2.Anomalies.FromString(file.read())
            lines += describe(split, found)
        if lines:
            raise AnomaliesFoundError(
                "the rows do not match the schema in models/features.py; mend the data or the schema:\n  "
                + "\n  ".join(lines)
            )
        config = DriftConfig.model_validate_json(exec_properties[CONFIG])
        report = _measure(config, input_dict)
        with artifact_files.open(os.path.join(anomalies[0].uri, FILE_NAME), "w") as file:
            file.write(report.model_dump_json(indent=1) + "\n")
        refuse_or_warn(config, report)
        return result


def _measure(config: DriftConfig, input_dict: dict[str, list[artifact.Artifact]]) -> DriftReport:
    statistics = artifact_utils.get_single_instance(input_dict[standard_component_specs.STATISTICS_KEY])
    schema_uri = artifact_utils.get_single_uri(input_dict[standard_component_specs.SCHEMA_KEY])
    last = next(iter(input_dict.get(LAST_STATISTICS) or ()), None)
    return DriftReport(
        last_run=last.uri if last else None,
        distances=distances(
            config,
            io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema_uri)),
            _of_split(statistics, "train"),
            last_train=_of_split(last, "train") if last else None,
            test=_of_split(statistics, "test") if "test" in statistics.split_names else None,
        ),
    )


def _of_split(statistics: artifact.Artifact, split: str) -> Statistics:
    return stats_artifact_utils.load_statistics(statistics, split).proto()


def refuse_or_warn(config: DriftConfig, report: DriftReport) -> None:
    """Logs each distance above its threshold.

    Raises:
        DriftError: a distance is above its threshold, and on_drift or on_skew says to fail.
    """
    fails = {"last_run": config.on_drift == "fail", "test": config.on_skew == "fail"}
    failed = [distance for distance in report.exceeding if fails[distance.against]]
    if failed:
        raise DriftError(
            "the data moved farther than the configuration allows; look at them, then raise the threshold or set "
            "drift.on_drift or drift.on_skew to warn:\n  " + "\n  ".join(distance.sentence for distance in failed)
        )
    for distance in report.exceeding:
        _log.warning("drift: %s", distance.sentence)


def describe(split: str, anomalies: anomalies_pb2.Anomalies) -> list[str]:
    """One line for each anomaly: split, feature, what is wrong."""
    lines = [
        f"{split}: {name}: {info.short_description}: {info.description}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"{split}: {anomalies.dataset_anomaly_info.description}")
    return lines

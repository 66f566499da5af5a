"""Distances between the statistics of two sets of rows, by TFDV."""

from typing import TypeAlias

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from sllmr.components.example_validator.config import DriftConfig
from sllmr.components.example_validator.drift_report import Against, Distance, Measure

Statistics: TypeAlias = statistics_pb2.DatasetFeatureStatisticsList

_MEASURES: dict[int, Measure] = {
    anomalies_pb2.DriftSkewInfo.Measurement.L_INFTY: "l_infinity",
    anomalies_pb2.DriftSkewInfo.Measurement.JENSEN_SHANNON_DIVERGENCE: "jensen_shannon",
}


def distances(
    config: DriftConfig,
    schema: schema_pb2.Schema,
    train: Statistics,
    *,
    last_train: Statistics | None,
    test: Statistics | None,
) -> tuple[Distance, ...]:
    """Measures every distance for which the configuration has a threshold.

    Args:
        config: thresholds by feature of the schema.
        schema: types of the features.
        train: statistics of this run's train rows.
        last_train: statistics of the last run's train rows; if None, no drift is measured.
        test: statistics of this run's test rows; if None, no skew is measured.
    """
    compared = schema_pb2.Schema()
    compared.CopyFrom(schema)
    for feature in compared.feature:
        for thresholds, comparator in (
            (config.max_drift, feature.drift_comparator),
            (config.max_skew, feature.skew_comparator),
        ):
            if feature.name not in thresholds:
                continue
            is_text = feature.type == schema_pb2.BYTES
            part = comparator.infinity_norm if is_text else comparator.jensen_shannon_divergence
            part.threshold = thresholds[feature.name]
    found = tfdv.validate_statistics(train, compared, previous_statistics=last_train, serving_statistics=test)
    by_kind: dict[Against, list[Distance]] = {"last_run": [], "test": []}
    for info in found.drift_skew_info:
        measurements: tuple[tuple[Against, list], ...] = (
            ("last_run", list(info.drift_measurements)),
            ("test", list(info.skew_measurements)),
        )
        for against, measured in measurements:
            by_kind[against] += [
                Distance(
                    feature=info.path.step[0],
                    against=against,
                    measure=_MEASURES[m.type],
                    value=max(0.0, m.value),  # rounding may make it negative
                    threshold=m.threshold,
                )
                for m in measured
            ]
    return tuple(sorted(by_kind["last_run"], key=_feature)) + tuple(sorted(by_kind["test"], key=_feature))


def _feature(distance: Distance) -> str:
    return distance.feature

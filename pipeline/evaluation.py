"""The Evaluator's rules: slices, metrics, thresholds. Built from EvaluationConfig, read back for the summary."""

from collections.abc import Mapping
from typing import Any

import tensorflow_model_analysis as tfma
from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.view import view_types

from models import features, signatures
from pipeline.config import EvaluationConfig
from pipeline.slices import SLICES, slice_of, slice_rule

AUC = "auc"


def slicing_spec(name: str) -> config_pb2.SlicingSpec:
    """TFMA's form of one slice."""
    rule = slice_rule(name)
    return config_pb2.SlicingSpec(feature_values={rule[0]: str(rule[1])}) if rule else config_pb2.SlicingSpec()


def eval_config(config: EvaluationConfig) -> config_pb2.EvalConfig:
    """AUC with its intervals on every slice; absolute and change thresholds on those that the config names.

    Without a blessed baseline TFX drops the change thresholds (the first model is judged by min_auc alone).
    """
    auc = config_pb2.MetricConfig(class_name="AUC")
    for name, lowest in config.min_auc.items():
        auc.per_slice_thresholds.append(
            config_pb2.PerSliceMetricThreshold(
                slicing_specs=[slicing_spec(name)],
                threshold=config_pb2.MetricThreshold(
                    value_threshold=config_pb2.GenericValueThreshold(lower_bound=wrappers_pb2.DoubleValue(value=lowest))
                ),
            )
        )
    for name, drop in config.max_drop.items():
        auc.per_slice_thresholds.append(
            config_pb2.PerSliceMetricThreshold(
                slicing_specs=[slicing_spec(name)],
                threshold=config_pb2.MetricThreshold(
                    change_threshold=config_pb2.GenericChangeThreshold(
                        direction=config_pb2.MetricDirection.HIGHER_IS_BETTER,
                        absolute=wrappers_pb2.DoubleValue(value=-drop),
                    )
                ),
            )
        )
    result = config_pb2.EvalConfig(
        model_specs=[config_pb2.ModelSpec(signature_name=signatures.SERVING_DEFAULT, label_key=features.LABEL)],
        slicing_specs=[slicing_spec(name) for name in SLICES],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    auc,
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    config_pb2.MetricConfig(class_name="MeanLabel"),
                ]
            )
        ],
    )
    result.options.compute_confidence_intervals.value = config.confidence_intervals
    return result


def slice_metrics(evaluation_uri: str) -> dict[str, dict[str, Any]]:
    """What the Evaluator found: slice -> auc, lower, upper, examples, positives.

    `lower` and `upper` are the 95% interval, None where it was not computed. A slice without rows has no entry.
    """
    result: view_types.EvalResult = tfma.load_eval_result(evaluation_uri)
    found = {}
    for slice_key, outputs in result.slicing_metrics:
        metrics = outputs[""][""]
        name = _slice_name(slice_key)
        if AUC not in metrics:
            continue
        auc = metrics[AUC]
        examples = _number(metrics["example_count"])
        bounds = auc.get("boundedValue", {})
        found[name] = {
            "auc": _number(auc),
            "lower": bounds.get("lowerBound"),
            "upper": bounds.get("upperBound"),
            "examples": round(examples),
            "positives": round(_number(metrics["mean_label"]) * examples),
        }
    return {name: found[name] for name in SLICES if name in found}


def validation_failures(evaluation_uri: str) -> list[str]:
    """Why a model was not blessed, one line a reason; empty where it was."""
    result = tfma.load_validation_result(evaluation_uri)
    lines = []
    for failed in result.metric_validations_per_slice:
        name = _slice_name(tuple(tfma.slicer.slicer_lib.deserialize_slice_key(failed.slice_key)))
        for failure in failed.failures:
            lines.append(f"{failure.metric_key.name} on slice {name}: {failure.message}")
    for missing in result.missing_slices:
        name = next((n for n in SLICES if slicing_spec(n) == missing), str(missing))
        lines.append(f"slice {name} has no test rows; change evaluation.min_auc or the split so that it has some")
    return lines


def _slice_name(slice_key: tuple[tuple[str, Any], ...]) -> str:
    if not slice_key:
        return "overall"
    feature, value = slice_key[0]
    if isinstance(value, bytes):
        value = value.decode()
    return slice_of(feature, str(value))


def _number(value: Mapping[str, Any]) -> float:
    if "boundedValue" in value:
        return float(value["boundedValue"]["value"])
    return float(value["doubleValue"])

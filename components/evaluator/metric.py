"""A TFMA metric that measures the model, the models it is compared with, and popularity, with intervals by user."""

import array
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.proto import config_pb2

from sllmr.components.evaluator.decision import SliceMetrics
from sllmr.components.evaluator.slices import SLICES, slice_of, slice_rule
from sllmr.models import features, signatures
from sllmr.models.metric_names import METRICS, RANKING_METRICS, MetricName
from sllmr.models.metrics import Rows

CANDIDATE = "candidate"
LAST_BLESSED = "last_blessed"
REFERENCE = "reference"
"""Names of TFMA's model specs; the last two are fields of decision.Measured, too."""

_POPULARITY = "popularity"
_WHOSE = {CANDIDATE: "the model", LAST_BLESSED: "the last blessed model", REFERENCE: "the reference model"}
_COUNTS = ("examples", "positives", "users")


def eval_config(models: Sequence[str], positive_rate: float | None = None) -> config_pb2.EvalConfig:
    """The Evaluator's EvalConfig: every slice, this metric, no thresholds (see components.evaluator.decision).

    The metric reads logits, because as float32 probabilities all logits above about 17 are 1 and tie. No model is
    declared as TFMA's baseline: TFMA allows only one, and would subtract intervals from each other.

    Args:
        models: CANDIDATE, and those of LAST_BLESSED and REFERENCE that exist.
        positive_rate: see models.metrics.Rows.
    """
    specs = []
    for name in SLICES:
        rule = slice_rule(name)
        specs.append(config_pb2.SlicingSpec(feature_values={rule[0]: str(rule[1])} if rule else {}))
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(
                name=name if len(models) > 1 else "",  # TFMA requires a single model to have no name
                signature_name=signatures.SERVING_DEFAULT,
                prediction_key=signatures.LOGITS,
                label_key=features.LABEL,
            )
            for name in models
        ],
        slicing_specs=specs,
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(
                        class_name=ClusteredMetrics.__name__,
                        module=__name__,
                        config=json.dumps({"positive_rate": positive_rate}),
                    )
                ],
                model_names=list(models) if len(models) > 1 else [],
            )
        ],
    )


def read_slices(evaluation_uri: str) -> dict[str, SliceMetrics]:
    """What TFMA wrote, by slice; a slice without rows is absent."""
    found = {}
    for record in tfma.load_metrics(evaluation_uri):
        slice_key = tfma.slicer.slicer_lib.deserialize_slice_key(record.slice_key)
        numbers = {e.key.name: e.value.double_value.value for e in record.metric_keys_and_values}
        found[_slice_name(slice_key)] = _unflatten(numbers)
    return found


def _unflatten(numbers: dict[str, float]) -> SliceMetrics:
    """The inverse of _flatten: `auc/last_blessed/lower` is metrics["auc"].last_blessed.lower."""
    values: dict[str, Any] = {"metrics": {}}
    for key, number in numbers.items():
        value = None if math.isnan(number) else number
        *path, field = key.split("/")
        place = values
        if path:
            place = values["metrics"]
            for part in path:
                place = place.setdefault(part, {})
        place[field] = value
    return SliceMetrics.model_validate(values)


def _slice_name(slice_key: Sequence[tuple[str, Any]]) -> str:
    if not slice_key:
        return "overall"
    feature, value = slice_key[0]
    return slice_of(feature, value.decode() if isinstance(value, bytes) else str(value))


def slice_metrics(
    users: np.ndarray,
    labels: np.ndarray,
    popularity: np.ndarray,
    logits: Mapping[str, np.ndarray],
    positive_rate: float | None,
) -> SliceMetrics:
    """The metrics of the rows of one slice, as TFMA would find them.

    Args:
        users, labels, popularity: [rows] each; an item's popularity is its number of train positives.
        logits: [rows] by model: CANDIDATE, and those of LAST_BLESSED and REFERENCE that exist.
        positive_rate: see models.metrics.Rows.
    """
    for model, values in logits.items():
        _check_finite(model, values)
    flat = _flatten(Rows(users, labels, {**logits, _POPULARITY: popularity}, positive_rate), tuple(logits))
    return _unflatten({key: math.nan if value is None else float(value) for key, value in flat.items()})


class ClusteredMetrics(metric_types.Metric):
    """Every number of SliceMetrics, as one TFMA metric each, of CANDIDATE."""

    def __init__(self, name: str = "clustered_metrics", positive_rate: float | None = None):
        super().__init__(_computations, name=name, positive_rate=positive_rate)


metric_types.register_metric(ClusteredMetrics)


def _computations(
    name: str = "",
    eval_config: config_pb2.EvalConfig | None = None,
    positive_rate: float | None = None,
    **_: Any,
) -> metric_types.MetricComputations:
    """One computation that sees the rows of all models; TFMA passes arguments by their names."""
    assert eval_config is not None
    models = {spec.name or CANDIDATE: spec.name for spec in eval_config.model_specs}
    keys = {key: metric_types.MetricKey(key, model_name=models[CANDIDATE]) for key in _keys(tuple(models))}
    return [
        metric_types.MetricComputation(
            keys=list(keys.values()),
            preprocessors=[
                metric_types.FeaturePreprocessor(feature_keys=[features.USER_ID, features.ITEM_TRAIN_COUNT])
            ],
            combiner=_Combiner(keys, eval_config, models, positive_rate),
        )
    ]


def _keys(models: Sequence[str]) -> Iterator[str]:
    yield from _COUNTS
    for metric in METRICS:
        yield from (f"{metric}/{field}" for field in ("value", "lower", "upper", "users"))
        for other in _others(metric, models):
            yield from (f"{metric}/{other}/{field}" for field in ("value", "difference", "lower", "upper"))


def _others(metric: MetricName, models: Sequence[str]) -> list[str]:
    """The scorers that the candidate is compared with in a metric."""
    others = [model for model in models if model != CANDIDATE]
    return [*others, _POPULARITY] if metric in RANKING_METRICS else others


@dataclasses.dataclass
class _Gathered:
    """The rows of a slice: about 40 bytes each beside the user id."""

    users: list[bytes] = dataclasses.field(default_factory=list)
    numbers: array.array = dataclasses.field(default_factory=lambda: array.array("d"))


class _Combiner(beam.CombineFn):
    """Gathers (user, label, popularity, logits) of a slice. An exact AUC needs all of them in one place."""

    def __init__(
        self,
        keys: dict[str, metric_types.MetricKey],
        eval_config: config_pb2.EvalConfig,
        models: dict[str, str],
        positive_rate: float | None,
    ):
        self._keys = keys
        self._eval_config = eval_config
        self._models = models
        self._positive_rate = positive_rate

    def create_accumulator(self) -> _Gathered:
        return _Gathered()

    def add_input(self, rows: _Gathered, element: metric_types.StandardMetricInputs) -> _Gathered:
        label = math.nan
        logits = []
        for model in self._models.values():
            label, logit = self._label_and_logit(element, model)
            logits.append(logit)
        rows.users.append(np.asarray(element.features[features.USER_ID]).item())
        popularity = float(np.asarray(element.features[features.ITEM_TRAIN_COUNT]).item())
        rows.numbers.extend((label, popularity, *logits))
        return rows

    def _label_and_logit(self, element: metric_types.StandardMetricInputs, model: str) -> tuple[float, float]:
        label, prediction, _ = next(
            metric_util.to_label_prediction_example_weight(element, eval_config=self._eval_config, model_name=model)
        )
        return float(np.asarray(label).item()), float(np.asarray(prediction).item())

    def merge_accumulators(self, accumulators: Iterable[_Gathered]) -> _Gathered:
        merged = _Gathered()
        for rows in accumulators:
            merged.users += rows.users
            merged.numbers += rows.numbers
        return merged

    def extract_output(self, rows: _Gathered) -> dict[metric_types.MetricKey, float]:
        columns = np.array(rows.numbers).reshape(-1, 2 + len(self._models)).T
        labels, popularity, *logits = columns
        scores = {**dict(zip(self._models, logits, strict=True)), _POPULARITY: popularity}
        for model in self._models:
            _check_finite(model, scores[model])
        numbers = _flatten(Rows(np.array(rows.users), labels, scores, self._positive_rate), tuple(self._models))
        return {self._keys[key]: math.nan if value is None else float(value) for key, value in numbers.items()}


def _check_finite(model: str, logits: np.ndarray) -> None:
    wrong = int((~np.isfinite(logits)).sum())
    if wrong:
        raise ValueError(
            f"{_WHOSE[model]} must give finite logits, got {wrong} of {len(logits)} rows of a slice that are "
            "not; its training diverged: lower train.learning_rate"
        )


def _flatten(rows: Rows, models: Sequence[str]) -> dict[str, float | None]:
    """Every number of the slice by its key, see _keys."""
    numbers: dict[str, float | None] = {
        "examples": len(rows.labels),
        "positives": int(rows.labels.sum()),
        "users": len(np.unique(rows.users)),
    }
    for metric in METRICS:
        numbers |= {f"{metric}/{field}": value for field, value in rows.estimate(metric, CANDIDATE)._asdict().items()}
        for other in _others(metric, models):
            start = f"{metric}/{other}"
            numbers[f"{start}/value"] = rows.estimate(metric, other).value
            change = rows.compare(metric, CANDIDATE, other)
            numbers |= {f"{start}/{field}": value for field, value in change._asdict().items()}
    return numbers

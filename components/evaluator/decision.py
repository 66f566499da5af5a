"""Whether a model is blessed, check by check, with the numbers behind each."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.slices import SLICES
from sllmr.models import artifact_files
from sllmr.models.metric_names import LESS_IS_BETTER, MetricName

FILE_NAME = "decision.json"
"""In the evaluation artifact: an EvaluationResult."""

_ROUNDING = 1e-9
"""Tolerance for rounding, by which the metrics of two models with equal scores may differ."""

Outcome = Literal["passed", "failed", "warned", "not_measurable"]
Rule = Literal["min_auc", "max_drop", "max_drift", "beat_popularity", "bounds", "max_worsening", "required_slices"]
Against = Literal["last_blessed", "reference", "popularity"]

_NAMES: dict[Against, str] = {
    "last_blessed": "the last blessed model",
    "reference": "the reference model",
    "popularity": "popularity",
}
_PER_METRIC: tuple[Rule, ...] = ("bounds", "max_worsening")
"""Rules whose keys go by metric, then by slice."""


class Change(BaseModel):
    """The model's metric against another scorer's on the same rows.

    Attributes:
        value: the other scorer's metric; None if not measurable.
        difference: the model's metric minus `value`; None if not measurable.
        lower, upper: of the difference's 95% interval, paired and clustered by user; None if too few users can be
            measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None = None
    difference: float | None = None
    lower: float | None = None
    upper: float | None = None


class Measured(BaseModel):
    """One metric on one slice.

    Attributes:
        value: of the model; None if not measurable.
        lower, upper: of its 95% interval, clustered by user; None if too few users can be measured.
        users: users that the metric is measured on; for per_user_auc, for instance, those with both labels.
        last_blessed: against the last blessed model; None without one.
        reference: against the reference model of max_drift; None without one.
        popularity: against a scorer whose score is the item's train positives; None for log_loss and calibration_error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    users: int = 0
    last_blessed: Change | None = None
    reference: Change | None = None
    popularity: Change | None = None


class SliceMetrics(BaseModel):
    """What TFMA found on one slice of the test rows.

    Attributes:
        examples: rows.
        positives: rows of label 1.
        users: distinct ones.
        metrics: by name, see models.metrics; a metric that is absent is not measurable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int = 0
    positives: int = 0
    users: int = 0
    metrics: dict[MetricName, Measured] = {}

    def measured(self, metric: MetricName) -> Measured:
        """The metric, with nothing measured if it is absent."""
        return self.metrics.get(metric, Measured())


class Check(BaseModel):
    """One bound of one metric on one slice.

    Attributes:
        rule: the key of EvaluationConfig behind it.
        metric: see models.metrics.
        slice: of components.evaluator.slices, or one of EvaluationConfig.slices.
        value: of the model.
        bound: worst value (min_auc, bounds), or worst difference (max_drop, max_drift, max_worsening,
            beat_popularity); None for required_slices.
        against: the scorer whose value `baseline` is; None if there is nothing to compare with.
        baseline: value of that scorer on the same rows.
        difference: value - baseline.
        lower: lower end of the 95% interval of what the rule bounds: the value, or the difference.
        upper: upper end of the same interval.
        users: distinct ones in the slice.
        examples: rows of the slice.
        positives: of them.
        outcome: `failed` refuses the model; `warned` says that the data cannot tell; `not_measurable` was skipped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule
    metric: MetricName
    slice: str
    value: float | None
    bound: float | None
    against: Against | None
    baseline: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    users: int
    examples: int
    positives: int
    outcome: Outcome

    @property
    def key(self) -> str:
        """The key of the configuration that asks for this."""
        if self.rule == "required_slices":
            return "evaluation.required_slices"
        if self.rule == "beat_popularity":
            return "evaluation.beat_popularity"
        if self.rule in _PER_METRIC:
            return f"evaluation.{self.rule}.{self.metric}.{self.slice}"
        return f"evaluation.{self.rule}.{self.slice}"

    @property
    def sentence(self) -> str:
        """The check in words and numbers, for the terminal and the report."""
        counts = f"{self.examples:,} rows ({self.positives:,} positive) of {self.users:,} users"
        start = f"{self.metric} on slice {self.slice}: "
        if self.outcome == "not_measurable":
            return f"{start}not measurable on {counts}; {self.key} skipped"
        if self.value is None:
            return (
                f"{start}not measurable on {counts}, and {self.key} names it; remove it there or "
                "change the split so that the slice has positives and negatives"
            )
        interval = "no interval" if self.lower is None else f"95% interval {self.lower:.4f} to {self.upper:.4f}"
        compared = ""
        if self.against is not None and self.baseline is not None and self.difference is not None:
            compared = f" against {self.baseline:.4f} of {_NAMES[self.against]}, difference {self.difference:+.4f}"
        middle = f"{compared} ({interval})" if _bounds_difference(self.rule) else f" ({interval}){compared}"
        doubt = "; the data cannot tell" if self.outcome == "warned" else ""
        return f"{start}{self.value:.4f}{middle}{self._demand()}; {counts}{doubt}"

    def _demand(self) -> str:
        if self.bound is None:
            return ""
        if self.rule == "beat_popularity":
            return f"; {self.key} asks for no less than popularity"
        if _bounds_difference(self.rule):
            return f"; {self.key} allows {self.bound:+.4f}"
        return f"; {self.key} asks for {'at most ' if self.metric in LESS_IS_BETTER else ''}{self.bound:.4f}"


class Decision(BaseModel):
    """Whether the model is blessed, and why.

    Attributes:
        blessed: no check failed.
        baseline_model: folder of the last blessed model; None for a first model, which max_drop does not concern.
        reference_model: folder of the model that max_drift compares with; None if there is none.
        checks: every bound, in the order of EvaluationConfig.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blessed: bool
    baseline_model: str | None
    reference_model: str | None = None
    checks: tuple[Check, ...]

    def sentences(self, outcome: Outcome) -> list[str]:
        """The checks of one outcome in words."""
        return [check.sentence for check in self.checks if check.outcome == outcome]


class EvaluationResult(BaseModel):
    """What the Evaluator leaves for the summary.

    Attributes:
        schema_version: of this layout.
        slices: metrics by slice: all of components.evaluator.slices, and those that EvaluationConfig adds.
        decision: made from these metrics.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    slices: dict[str, SliceMetrics]
    decision: Decision


def read_result(evaluation_uri: str) -> EvaluationResult:
    """Reads what the Evaluator wrote to its evaluation artifact."""
    with artifact_files.open(os.path.join(evaluation_uri, FILE_NAME)) as file:
        return EvaluationResult.model_validate_json(file.read())


def decide(
    config: EvaluationConfig,
    found: Mapping[str, SliceMetrics],
    baseline_model: str | None,
    reference_model: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> EvaluationResult:
    """Applies every bound to every slice that it names.

    A check fails if the measured number breaks the bound. If only its interval reaches beyond the bound:
    a check of a value warns, since an interval around the bound is what "the data cannot tell" means;
    a check of a difference fails, unless half the interval is wider than the allowed loss: then not even a model with
    equal metrics could pass, so the data cannot tell, and the check warns.
    A check without an interval warns.

    Args:
        config: the bounds.
        found: metrics by slice; a slice without rows may be absent.
        baseline_model: folder of the last blessed model, if there is one.
        reference_model: folder of the model that max_drift compares with, if there is one.
        texts: name of a slice -> the text of config.slices that the slice comes from.
    """
    config = _by_single_slice(config, texts or {})
    slices: dict[str, SliceMetrics] = {name: found.get(name, SliceMetrics()) for name in SLICES}
    slices |= {name: metrics for name, metrics in found.items() if name not in slices}
    for name in _named(config):  # a slice that is too small to be measured is absent
        slices.setdefault(name, SliceMetrics())
    checks = [_value(slices, "min_auc", "auc", name, bound) for name, bound in config.min_auc.items()]
    if baseline_model is not None:
        checks += [
            _difference(slices, "max_drop", "auc", name, drop, "last_blessed") for name, drop in config.max_drop.items()
        ]
    if reference_model is not None:
        checks += [
            _difference(slices, "max_drift", "auc", name, drop, "reference") for name, drop in config.max_drift.items()
        ]
    checks += [
        _difference(slices, "beat_popularity", metric, name, 0.0, "popularity")
        for metric in config.beat_popularity
        for name in config.required_slices
    ]
    for metric, by_slice in config.bounds.items():
        checks += [_value(slices, "bounds", metric, name, bound) for name, bound in by_slice.items()]
    if baseline_model is not None:
        for metric, by_slice in config.max_worsening.items():
            checks += [
                _difference(slices, "max_worsening", metric, name, by, "last_blessed") for name, by in by_slice.items()
            ]
    for name in config.required_slices:
        measurable = slices[name].measured("auc").value is not None
        checks.append(_check(slices, "required_slices", "auc", name, None, "passed" if measurable else "failed", None))
    decision = Decision(
        blessed=all(check.outcome != "failed" for check in checks),
        baseline_model=baseline_model,
        reference_model=reference_model,
        checks=tuple(checks),
    )
    return EvaluationResult(slices=slices, decision=decision)


def _by_single_slice(config: EvaluationConfig, texts: Mapping[str, str]) -> EvaluationConfig:
    """The configuration with the measured slices of each text of config.slices in place of the text."""

    def each(name: str) -> list[str]:
        return [one for one, text in texts.items() if text == name] if name in config.slices else [name]

    def expanded(by_slice: Mapping[str, float]) -> dict[str, float]:
        # A bound of a single slice overrides that of its text, whichever comes first.
        every = {one: bound for name, bound in by_slice.items() for one in each(name)}
        return every | {name: bound for name, bound in by_slice.items() if name not in config.slices}

    if not config.slices:
        return config
    changes: dict[str, Any] = {key: expanded(getattr(config, key)) for key in ("min_auc", "max_drop", "max_drift")}
    for key in ("bounds", "max_worsening"):
        changes[key] = {metric: expanded(by_slice) for metric, by_slice in getattr(config, key).items()}
    required = [one for name in config.required_slices for one in each(name)]
    return config.model_copy(update={**changes, "required_slices": tuple(dict.fromkeys(required))})


def _named(config: EvaluationConfig) -> set[str]:
    named = {*config.min_auc, *config.max_drop, *config.max_drift, *config.required_slices}
    for by_metric in (config.bounds, config.max_worsening):
        named |= {name for by_slice in by_metric.values() for name in by_slice}
    return named


def _bounds_difference(rule: Rule) -> bool:
    return rule in ("max_drop", "max_drift", "max_worsening", "beat_popularity")


def _value(slices: Mapping[str, SliceMetrics], rule: Rule, metric: MetricName, name: str, bound: float) -> Check:
    m = slices[name].measured(metric)
    sign = -1 if metric in LESS_IS_BETTER else 1
    worst_end = m.upper if metric in LESS_IS_BETTER else m.lower
    outcome: Outcome
    if m.value is None:
        outcome = "not_measurable"
    elif sign * m.value < sign * bound:
        outcome = "failed"
    else:
        outcome = "passed" if worst_end is not None and sign * worst_end >= sign * bound else "warned"
    return _check(slices, rule, metric, name, bound, outcome, "last_blessed")


def _difference(
    slices: Mapping[str, SliceMetrics], rule: Rule, metric: MetricName, name: str, loss: float, against: Against
) -> Check:
    change = _change(slices[name].measured(metric), against)
    sign = -1 if metric in LESS_IS_BETTER else 1
    worst = 0.0 - loss - _ROUNDING  # smallest allowed gain, which is sign * difference
    outcome: Outcome
    if change.difference is None:
        outcome = "not_measurable"
    elif sign * change.difference < worst:
        outcome = "failed"
    elif change.lower is None or change.upper is None:
        outcome = "warned"
    elif min(sign * change.lower, sign * change.upper) >= worst:
        outcome = "passed"
    else:
        half = max(change.difference - change.lower, change.upper - change.difference)  # one end may be cut at -1 or 1
        outcome = "warned" if half > loss else "failed"
    return _check(slices, rule, metric, name, sign * (0.0 - loss), outcome, against)


def _change(m: Measured, against: Against) -> Change:
    return getattr(m, against) or Change()


def _check(
    slices: Mapping[str, SliceMetrics],
    rule: Rule,
    metric: MetricName,
    name: str,
    bound: float | None,
    outcome: Outcome,
    against: Against | None,
) -> Check:
    m = slices[name].measured(metric)
    change = _change(m, against) if against is not None else Change()
    bounded = change if _bounds_difference(rule) else m
    return Check(
        rule=rule,
        metric=metric,
        slice=name,
        value=m.value,
        bound=bound,
        against=against if change.value is not None else None,
        baseline=change.value,
        difference=change.difference,
        lower=bounded.lower,
        upper=bounded.upper,
        users=slices[name].users,
        examples=slices[name].examples,
        positives=slices[name].positives,
        outcome=outcome,
    )

"""The decision on given numbers: what passes, fails, warns and is skipped, and the sentence of each."""

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.decision import Change, Check, Decision, Measured, SliceMetrics, decide
from sllmr.models.metrics import Rows

COUNTS = {"examples": 200, "positives": 100, "users": 50}
LAST = "runs/shop/model/7"


def metric(name: str = "auc", **values) -> SliceMetrics:
    return SliceMetrics(metrics={name: Measured(users=50, **values)}, **COUNTS)


POPULAR = Change(value=0.6, difference=0.2, lower=0.1, upper=0.3)
GOOD = metric(value=0.80, lower=0.75, upper=0.85, popularity=POPULAR)


def changed(difference: float, half: float | None) -> SliceMetrics:
    """A slice on which the model changed by `difference`, with the half-width of the interval."""
    return metric(value=0.80, lower=0.75, upper=0.85, popularity=POPULAR, last_blessed=change(difference, half))


def change(difference: float, half: float | None, value: float = 0.80) -> Change:
    bounds = {} if half is None else {"lower": difference - half, "upper": difference + half}
    return Change(value=value - difference, difference=difference, **bounds)


def outcomes(config: EvaluationConfig, found: dict, baseline: str | None = LAST) -> dict[tuple[str, str], str]:
    return {(c.rule, c.slice): c.outcome for c in decide(config, found, baseline).decision.checks}


@pytest.mark.parametrize("empty", [None, SliceMetrics(), SliceMetrics(examples=9, positives=9, users=4)])
def test_an_empty_or_one_class_slice_is_skipped_and_said(empty):
    config = EvaluationConfig(min_auc={"overall": 0.5, "cold": 0.5}, max_drop={"overall": 0.01, "cold": 0.02})
    found = {"overall": changed(0.05, 0.01)} | ({} if empty is None else {"cold": empty})
    result = decide(config, found, LAST)
    assert result.decision.blessed
    assert result.slices["cold"] == (empty or SliceMetrics())
    counts = "9 rows (9 positive) of 4 users" if empty and empty.examples else "0 rows (0 positive) of 0 users"
    assert [line for line in result.decision.sentences("not_measurable") if "cold" in line] == [
        f"auc on slice cold: not measurable on {counts}; evaluation.min_auc.cold skipped",
        f"auc on slice cold: not measurable on {counts}; evaluation.max_drop.cold skipped",
    ]


def test_a_required_slice_that_is_not_measurable_refuses():
    config = EvaluationConfig(required_slices=("cold",))
    decision = decide(config, {"overall": GOOD}, None).decision
    assert not decision.blessed
    [sentence] = decision.sentences("failed")
    assert "auc on slice cold: not measurable on 0 rows" in sentence
    assert "evaluation.required_slices names it" in sentence
    assert decide(config, {"overall": GOOD, "cold": GOOD}, None).decision.blessed


def test_test_rows_of_one_class_bless_nothing_by_default():
    assert not decide(EvaluationConfig(), {"overall": SliceMetrics(examples=5, users=5)}, None).decision.blessed


@pytest.mark.parametrize(
    ("auc", "lower", "outcome"),
    [(0.59, 0.5, "failed"), (0.62, 0.55, "warned"), (0.62, None, "warned"), (0.62, 0.61, "passed")],
)
def test_min_auc_fails_below_the_bound_and_warns_if_the_interval_holds_it(auc, lower, outcome):
    m = metric(value=auc, lower=lower, upper=None if lower is None else 2 * auc - lower)
    assert outcomes(EvaluationConfig(min_auc={"overall": 0.6}), {"overall": m})["min_auc", "overall"] == outcome


@pytest.mark.parametrize(
    ("difference", "half", "outcome"),
    [
        (0.05, 0.01, "passed"),
        (0.0, 0.0, "passed"),
        (-0.02, 0.0, "passed"),
        (-0.005, 0.01, "passed"),  # not below -.02 even at the lower end
        (-0.015, 0.01, "failed"),  # the lower end is
        (-0.015, 0.05, "warned"),  # so it would be for an equal model
        (0.04, 0.07, "warned"),
        (-0.03, 0.005, "failed"),
        (-0.03, 0.1, "failed"),  # the value itself is
        (-0.03, None, "failed"),
        (0.01, None, "warned"),
    ],
)
def test_max_drop_bounds_the_lower_end_of_the_paired_difference(difference, half, outcome):
    config = EvaluationConfig(max_drop={"tail": 0.02})
    found = {"overall": GOOD, "tail": changed(difference, half)}
    assert outcomes(config, found)["max_drop", "tail"] == outcome
    assert decide(config, found, LAST).decision.blessed == (outcome != "failed")


def test_a_first_model_is_not_compared():
    result = decide(EvaluationConfig(), {"overall": GOOD}, None)
    assert result.decision.baseline_model is None
    assert {check.rule for check in result.decision.checks} == {"min_auc", "beat_popularity", "required_slices"}


def test_a_refusal_says_every_number():
    config = EvaluationConfig(min_auc={"tail": 0.9}, max_drop={"tail": 0.02})
    decision = decide(config, {"overall": GOOD, "tail": changed(-0.03, 0.01)}, LAST).decision
    assert not decision.blessed
    assert decision.sentences("failed") == [
        "auc on slice tail: 0.8000 (95% interval 0.7500 to 0.8500) against 0.8300 of the last blessed model, "
        "difference -0.0300; evaluation.min_auc.tail asks for 0.9000; 200 rows (100 positive) of 50 users",
        "auc on slice tail: 0.8000 against 0.8300 of the last blessed model, difference -0.0300 "
        "(95% interval -0.0400 to -0.0200); evaluation.max_drop.tail allows -0.0200; "
        "200 rows (100 positive) of 50 users",
    ]
    assert decision.checks[1] == Check(
        rule="max_drop",
        metric="auc",
        against="last_blessed",
        slice="tail",
        value=0.8,
        bound=-0.02,
        baseline=0.80 + 0.03,
        difference=-0.03,
        lower=-0.03 - 0.01,
        upper=-0.03 + 0.01,
        users=50,
        examples=200,
        positives=100,
        outcome="failed",
    )


def test_the_retired_key_is_refused_with_the_reason():
    with pytest.raises(ValidationError, match=r"remove evaluation\.confidence_intervals"):
        EvaluationConfig(confidence_intervals=True)
    with pytest.raises(ValidationError, match="required_slices"):
        EvaluationConfig(required_slices=("lukewarm",))


@pytest.mark.parametrize(
    ("difference", "half", "outcome"),
    [(0.03, 0.01, "passed"), (0.03, 0.05, "warned"), (0.03, None, "warned"), (0.0, 0.0, "passed"),
     (-0.01, 0.005, "failed"), (-0.01, 0.05, "failed")],
)  # fmt: skip
def test_below_popularity_on_a_required_slice_is_refused_by_default(difference, half, outcome):
    found = {"overall": metric(value=0.8, lower=0.75, upper=0.85, popularity=change(difference, half))}
    decision = decide(EvaluationConfig(), found, None).decision
    [check] = [c for c in decision.checks if (c.rule, c.metric) == ("beat_popularity", "auc")]
    assert check.outcome == outcome
    assert decision.blessed == (outcome != "failed")
    assert decide(EvaluationConfig(beat_popularity=()), found, None).decision.blessed


def test_above_popularity_pooled_and_below_it_per_user_is_refused_with_numbers():
    per_user = Measured(value=0.55, lower=0.5, upper=0.6, users=40, popularity=change(-0.02, 0.01, value=0.55))
    found = {"overall": GOOD.model_copy(update={"metrics": {**GOOD.metrics, "per_user_auc": per_user}})}
    decision = decide(EvaluationConfig(), found, None).decision
    assert decision.sentences("failed") == [
        "per_user_auc on slice overall: 0.5500 against 0.5700 of popularity, difference -0.0200 (95% interval -0.0300 "
        "to -0.0100); evaluation.beat_popularity asks for no less than popularity; "
        "200 rows (100 positive) of 50 users"
    ]


@pytest.mark.parametrize(
    ("name", "value", "lower", "upper", "bound", "outcome"),
    [
        ("ndcg_at_10", 0.4, 0.35, 0.45, 0.3, "passed"),
        ("ndcg_at_10", 0.4, 0.35, 0.45, 0.38, "warned"),
        ("ndcg_at_10", 0.4, 0.35, 0.45, 0.42, "failed"),
        ("log_loss", 0.6, 0.55, 0.65, 0.7, "passed"),
        ("log_loss", 0.6, 0.55, 0.65, 0.62, "warned"),
        ("log_loss", 0.6, 0.55, 0.65, 0.58, "failed"),
        ("calibration_error", None, None, None, 0.1, "not_measurable"),
    ],
)
def test_any_metric_can_be_bounded_and_less_is_better_for_errors(name, value, lower, upper, bound, outcome):
    config = EvaluationConfig(bounds={name: {"tail": bound}})
    found = {"overall": GOOD, "tail": metric(name, value=value, lower=lower, upper=upper)}
    assert outcomes(config, found)["bounds", "tail"] == outcome
    assert decide(config, found, None).decision.blessed == (outcome != "failed")


@pytest.mark.parametrize(
    ("name", "difference", "half", "outcome"),
    [
        ("log_loss", -0.05, 0.01, "passed"),
        ("log_loss", 0.005, 0.01, "passed"),
        ("log_loss", 0.015, 0.01, "failed"),  # the upper end is beyond .02
        ("log_loss", 0.015, 0.05, "warned"),
        ("log_loss", 0.03, 0.05, "failed"),
        ("per_user_auc", -0.03, 0.001, "failed"),
        ("per_user_auc", -0.005, 0.001, "passed"),
    ],
)
def test_any_metric_can_be_bounded_against_the_last_blessed_model(name, difference, half, outcome):
    config = EvaluationConfig(max_worsening={name: {"overall": 0.02}})
    m = Measured(value=0.6, lower=0.5, upper=0.7, users=50, last_blessed=change(difference, half, value=0.6))
    found = {"overall": GOOD.model_copy(update={"metrics": {**GOOD.metrics, name: m}})}
    assert outcomes(config, found)["max_worsening", "overall"] == outcome
    assert decide(config, found, LAST).decision.blessed == (outcome != "failed")


@pytest.mark.slow
def test_losses_that_max_drop_allows_do_not_add_up():
    """Three more models of 2,000 users, each a little worse than the one before."""
    generator = np.random.default_rng(0)
    users, labels = np.repeat(np.arange(2000), 10), np.tile([1, 0], 10_000)
    signal, noise = labels + generator.normal(size=20_000), generator.normal(size=20_000)
    models = [signal + weight * noise for weight in (0.0, 0.3, 0.44, 0.56)]

    def judge(model: int, last: int, config: EvaluationConfig) -> Decision:
        rows = Rows(users, labels, {"model": models[model], "last": models[last], "first": models[0]})
        value, lower, upper, _ = rows.estimate("auc", "model")
        others = {
            field: Change(value=rows.estimate("auc", name).value, **rows.compare("auc", "model", name)._asdict())
            for field, name in (("last_blessed", "last"), ("reference", "first"))
        }
        found = {"overall": metric(value=value, lower=lower, upper=upper, popularity=POPULAR, **others)}
        return decide(config, found, LAST, "runs/shop/model/1").decision

    def blessed(config: EvaluationConfig) -> list[int]:
        result = [0]
        for model in (1, 2, 3):
            if judge(model, result[-1], config).blessed:
                result.append(model)
        return result

    drop = {"overall": 0.015}
    assert blessed(EvaluationConfig(max_drop=drop, max_drift={})) == [0, 1, 2, 3]
    bounded = EvaluationConfig(max_drop=drop, max_drift={"overall": 0.025})
    assert blessed(bounded) == [0, 1, 2]
    [check] = [check for check in judge(3, 2, bounded).checks if check.outcome == "failed"]
    assert (check.rule, check.against, check.bound) == ("max_drift", "reference", -0.025)
    assert check.difference == pytest.approx(roc_auc_score(labels, models[3]) - roc_auc_score(labels, models[0]))
    assert check.lower < check.difference < -0.025
    assert "of the reference model, difference -0.0" in check.sentence
    assert "evaluation.max_drift.overall allows -0.0250" in check.sentence


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bounds": {"auc": {"overall": 0.5}}}, "log_loss"),
        ({"bounds": {"log_loss": {"overall": -1.0}}}, r"bounds\.log_loss\.overall must be at least 0, got -1"),
        ({"max_drift": {"tail": 2.0}}, r"max_drift\.tail must be in \[0, 1\]"),
        ({"positive_rate": 1.0}, "less than 1"),
    ],
)
def test_a_bound_that_means_nothing_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(**keys)


def test_a_bound_of_a_feature_holds_for_each_of_its_slices_and_one_slice_may_have_its_own():
    config = EvaluationConfig(
        slices=("device", "price x tail"),
        min_auc={"device": 0.7, "device=desk": 0.9, "price x tail": 0.5},
        required_slices=("overall",),
    )
    found = {"overall": GOOD, "device=phone": GOOD, "device=desk": GOOD, "price=[1, 2) x tail": GOOD}
    texts = {"device=phone": "device", "device=desk": "device", "price=[1, 2) x tail": "price x tail"}
    result = decide(config, found, None, None, texts)
    bounds = {c.slice: (c.bound, c.outcome) for c in result.decision.checks if c.rule == "min_auc"}
    assert bounds == {
        "device=phone": (0.7, "passed"),
        "device=desk": (0.9, "failed"),
        "price=[1, 2) x tail": (0.5, "passed"),
    }
    assert result.slices["device=phone"] == GOOD
    assert list(result.slices)[-3:] == ["device=phone", "device=desk", "price=[1, 2) x tail"]


def test_a_slice_of_a_feature_that_is_too_small_is_skipped_unless_it_is_required():
    config = EvaluationConfig(slices=("device",), min_auc={"device=watch": 0.5})
    checks = decide(config, {"overall": GOOD}, None).decision.checks
    assert [c.outcome for c in checks if c.slice == "device=watch"] == ["not_measurable"]
    required = config.model_copy(update={"required_slices": ("overall", "device=watch")})
    assert not decide(required, {"overall": GOOD}, None).decision.blessed


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"min_auc": {"device": 0.5}},
            "min_auc must name slices, got 'device'; valid: overall, .*slices adds",
        ),
        (
            {"slices": ("device",), "max_drop": {"price": 0.1}},
            "max_drop must name slices, got 'price'; .*, device",
        ),
        ({"slices": ("device x tail",), "required_slices": ("device=phone",)}, "required_slices must name slices"),
        ({"slices": ("cold x tail",)}, "a slice must be a declared feature"),
    ],
)
def test_names_of_no_slice_are_refused(keys, problem):
    with pytest.raises(ValidationError, match=problem):
        EvaluationConfig(**keys)

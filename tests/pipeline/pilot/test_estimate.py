"""The estimator of `sllmr pilot` on planted rows, where it is known what the LLM knows."""

import collections
import dataclasses
import pathlib

import numpy as np
import pytest

from sllmr.models.clustered_auc import compare_auc
from sllmr.pipeline.ablation import results
from sllmr.pipeline.pilot import estimate
from sllmr.pipeline.pilot.estimate import PilotRows, PlanPart, advise, gain, predict, reliability, stack
from sllmr.pipeline.pilot.result import Gain

NEGATIVES = 2
USERS = 250


def planted(seed: int, knows, users: int = USERS) -> PilotRows:
    """One context a user. The base model sees taste with noise; the LLM sees it, with other noise, where
    `knows(short_history, tail)`, else noise alone.
    """
    rng = np.random.default_rng(seed)
    context = np.repeat(np.arange(users), 1 + NEGATIVES)
    positive = np.tile([1] + [0] * NEGATIVES, users)
    short, tail = (np.repeat(rng.random(users) < 0.5, 1 + NEGATIVES) for _ in range(2))
    known = np.array([knows(bool(s), bool(t)) for s, t in zip(short, tail, strict=True)])
    base = positive + rng.normal(0, 1.2, len(context))
    llm = positive * known + rng.normal(0, 1.0, len(context))
    item_is_rare = np.where(positive == 1, tail, rng.random(len(context)) < 0.5)
    return PilotRows(
        context=context,
        user=context,
        positive=positive,
        base_logit=base,
        llm_score=1 / (1 + np.exp(-llm)),
        signals=np.stack([short, item_is_rare], axis=1).astype(float),
        short_history=short,
        tail=tail,
    )


def permuted(rows: PilotRows, seed: int) -> PilotRows:
    return dataclasses.replace(rows, llm_score=np.random.default_rng(seed).permutation(rows.llm_score))


def everywhere(short: bool, tail: bool) -> bool:
    return True


def test_a_known_gain_lies_in_the_interval_and_full_is_recommended():
    rows = planted(1, everywhere)
    stacked = stack(rows)
    found = gain(rows, stacked)
    # With unit-variance noise of known spread the best weights are the inverse variances; measured on many more users.
    many = planted(2, everywhere, users=20_000)
    llm = np.log(many.llm_score / (1 - many.llm_score))
    best = compare_auc(many.user, many.positive, many.base_logit / 1.2**2 + llm, many.base_logit)
    assert found.lower < best.difference < found.upper
    assert found.difference == pytest.approx(found.with_llm - found.without_llm)
    assert found.base_model == pytest.approx(best.auc_b, abs=0.03)
    assert advise(found, reliability(rows, stacked)).recommendation == "full"


@pytest.mark.parametrize("seed", range(3))
def test_permuted_scores_are_not_worth_money(seed):
    rows = permuted(planted(seed, everywhere), seed)
    stacked = stack(rows)
    advice = advise(gain(rows, stacked), reliability(rows, stacked))
    assert advice.recommendation == "do_not_spend"
    assert advice.slices_first == []


def test_what_the_signals_alone_add_is_not_the_llms_gain():
    # Targets are rare items, and the base model does not know it: a stack gains from the signals alone.
    rows = permuted(planted(3, everywhere), 3)
    rare = rows.signals[:, 1] * 0.5 + rows.positive * 0.5
    rows = dataclasses.replace(rows, signals=np.stack([rows.signals[:, 0], rare], axis=1))
    found = gain(rows, stack(rows))
    assert found.with_llm > found.base_model + 0.05
    assert found.lower <= 0


def test_an_llm_that_knows_tail_items_alone_is_worth_a_part():
    rows = planted(4, lambda short, tail: tail, users=500)
    stacked = stack(rows)
    cells = reliability(rows, stacked)
    advice = advise(gain(rows, stacked), cells)
    assert advice.recommendation == "partial"
    assert set(advice.slices_first) == {"short_history/tail", "long_history/tail"}
    right = {cell.name: cell.llm_right for cell in cells}
    assert min(right["short_history/tail"], right["long_history/tail"]) > 0.7
    assert max(right["short_history/head"], right["long_history/head"]) < 0.6


def test_a_row_is_scored_without_its_user():
    rows = planted(5, everywhere, users=40)
    first = rows.user == 0
    turned = dataclasses.replace(rows, positive=np.where(first, [0, 1, 0] * 40, rows.positive))
    before, after = stack(rows), stack(turned)
    np.testing.assert_allclose(before.with_llm[first], after.with_llm[first])
    assert not np.allclose(before.with_llm[~first], after.with_llm[~first])


def test_reliability_counts_pairs_of_one_context_and_equal_scores_half():
    rows = PilotRows(
        context=np.array([0, 0, 0, 1, 1]),
        user=np.array([7, 7, 7, 8, 8]),
        positive=np.array([1, 0, 0, 0, 1]),
        base_logit=np.array([0.0, 1.0, 2.0, 0.0, 1.0]),
        llm_score=np.array([0.5, 0.5, 0.1, 0.9, 0.2]),
        signals=np.zeros((5, 1)),
        short_history=np.ones(5, bool),
        tail=np.zeros(5, bool),
    )
    (cell,) = [c for c in reliability(rows, stack(rows)) if c.pairs]
    assert (cell.name, cell.pairs) == ("short_history/head", 3)
    assert cell.llm_right == pytest.approx((0.5 + 1 + 0) / 3)
    assert cell.model_right == pytest.approx((0 + 0 + 1) / 3)
    assert cell.gain is None  # of two users nothing is known


def test_a_prediction_is_what_distillation_keeps_for_so_many_users():
    found = Gain(difference=0.02, lower=-0.01, upper=0.05, base_model=0.7, without_llm=0.7, with_llm=0.72)
    parts = [
        PlanPart(coverage=coverage, users_reached=users, cost_usd=1.0, seconds=2.0)
        for coverage, users in ((0.1, 0.05), (0.5, 0.25), (1.0, 0.5))
    ]
    # So many test users that the run measures without error.
    tenth, half, full = predict(found, parts, users=200, test_users=10**12)
    assert full.difference == pytest.approx(0.02 * 0.60)
    assert tenth.difference == pytest.approx(0.02 * 0.60 * 0.47 / 2)
    assert tenth.difference < half.difference < full.difference
    assert full.lower == pytest.approx(-0.01 * 1.03)
    assert full.upper == pytest.approx(0.05 * 1.03)
    positive = found.model_copy(update={"lower": 0.01})
    assert predict(positive, parts, users=200, test_users=10**12)[2].lower == pytest.approx(0.01 * 0.34)


def test_so_much_of_what_runs_measure_lies_in_the_predicted_interval():
    """Gains of samples, kept at random and measured on few test users, against intervals from single pilots."""
    rng = np.random.default_rng(6)
    users, test_users, spread, inside = 200, 100, 0.05, []
    for true_gain in rng.normal(0, 0.01, 500):
        error = spread / np.sqrt(users)
        seen = true_gain + rng.normal(0, error)
        found = Gain(
            difference=seen,
            lower=seen - 1.96 * error,
            upper=seen + 1.96 * error,
            base_model=0.7,
            without_llm=0.7,
            with_llm=0.7 + seen,
        )
        part = PlanPart(coverage=1.0, users_reached=1.0, cost_usd=None, seconds=1.0)
        (predicted,) = predict(found, [part], users=users, test_users=test_users)
        kept = rng.choice([0.34, 0.60, 1.03]) * true_gain
        measured = kept + rng.normal(0, estimate.KEPT * spread / np.sqrt(test_users))
        inside.append(predicted.lower <= measured <= predicted.upper)
    assert 0.93 < np.mean(inside) < 0.99


def test_what_was_kept_is_what_the_committed_results_say():
    root = pathlib.Path(__file__).resolve().parents[3]
    aucs = {
        (run.domain, run.backbone, run.seed, run.arm): run.auc("overall")
        for run in results.read(root / "benchmarks" / "results" / "amazon.jsonl")
    }
    kept, headroom = collections.defaultdict(float), collections.defaultdict(float)
    for domain, backbone, seed, arm in aucs:
        if arm == "stacked_text" and domain in ("beauty", "toys"):
            cell = domain, backbone, seed
            kept[domain, backbone] += aucs[*cell, arm] - aucs[*cell, "text_features"]
            headroom[domain, backbone] += aucs[*cell, "late_fusion"] - aucs[*cell, "none"]
    single = [kept[key] / headroom[key] for key in kept]
    assert len(single) == 12
    assert pytest.approx(sum(kept.values()) / sum(headroom.values()), abs=0.005) == estimate.KEPT
    assert pytest.approx(min(single), abs=0.006) == estimate.KEPT_LEAST
    assert pytest.approx(max(single), abs=0.006) == estimate.KEPT_MOST

    def gained(arm: str) -> float:
        cells = [(domain, "dcnv2", 1) for domain in ("beauty", "toys")]
        return sum(aucs[*cell, arm] - aucs[*cell, "text_features"] for cell in cells)

    brought = dict(estimate.KEPT_BY_USERS_REACHED)
    assert pytest.approx(gained("stacked_tenth") / gained("stacked_text"), abs=0.006) == brought[0.1]
    assert pytest.approx(min(1.0, gained("stacked_half") / gained("stacked_text")), abs=0.005) == brought[0.5]

"""What the page says of the scores: their age, the audit of the order, what became of the candidate pairs."""

import pathlib
from typing import Any

import pytest

from sllmr.components.evaluator.config import EvaluationConfig
from sllmr.components.evaluator.decision import Change, Measured, SliceMetrics, decide
from sllmr.models.reliability import ReliabilityCell
from sllmr.pipeline import report
from sllmr.pipeline.run_summary import PopularityBaseline, RunSummary, SliceSummary
from tests.components.llm_scorer.ledgers import make_ledger

ITEM_TEXTS = {"i1": "Rose <oil>", "i2": "Soap", "i3": "Hand cream: Hands & Nails", "i4": "Perfume"}
ENOUGH = {"train_positives": 800, "preference_pairs": 80, "sufficient_pairs": 60, "cost_usd": 0.01, "seconds": None}
EVALUATED = decide(
    EvaluationConfig(min_auc={"overall": 0.75, "cold": 0.5}),
    {
        "overall": SliceMetrics(
            examples=1234,
            positives=617,
            users=321,
            metrics={
                "auc": Measured(
                    value=0.7, lower=0.6, upper=0.8, users=321, popularity=Change(value=0.6, difference=0.1)
                ),
                "log_loss": Measured(value=0.65, lower=0.6, upper=0.7, users=321),
            },
        ),
        "cold": SliceMetrics(examples=7, positives=7, users=3),
    },
    None,
)


DRIFT = {
    "last_run": "/runs/shop/statistics/1",
    "distances": [
        {"feature": "item_brand", "against": "last_run", "measure": "l_infinity", "value": 0.31, "threshold": 0.05},
        {"feature": "label", "against": "test", "measure": "jensen_shannon", "value": 0.002, "threshold": 0.01},
    ],
}


def summary(
    *, training: dict[str, Any] | None = None, verdict: Any = None, vectors_verdict: Any = None, **llm: Any
) -> RunSummary:
    """A run with one slice and one region of the gate.

    Args:
        training: changes of its training report.
        verdict: of the comparison.
        vectors_verdict: of the comparison with pairs that item vectors score.
        llm: changes of its ledger, and `age`.
    """
    split = {"rows": 10, "positives": 5, "users": 5, "first": "2024-03-01T00:00:00+00:00", "last": None}
    split |= {"repeated_positives": 3, "positives_not_in_train": 1, "negatives_not_in_train": 4, "tail_rows": 2}
    table = {"read": 10, "kept": 10, "dropped": {}, "examples": {}}
    of_split = {"train_rows": 1, "valid_rows": 1, "test_rows": 1}
    cell = {
        "short_history": None,
        "tail": None,
        "pairs": 9,
        "calibration_pairs": 3,
        "mean_alpha": 0.6,
        "llm_accuracy": 0.7,
    }
    age = {"oldest_days": 40.0, "median_days": 3.0, "newest_days": 0.5, "outdated_fraction": 0.125}
    pairs = {"contexts": 10, "candidate_pairs": 1234, "pairs": 80, "calibration_pairs": 20}
    pairs |= {"tied": 4, "inconsistent": 5, "narrow": 6, "beyond_cap": 1139}
    return RunSummary.model_validate(
        {
            "name": "shop",
            "verdict": verdict,
            "vectors_verdict": vectors_verdict,
            "backbone": "dcnv2",
            "gate": "supervised",
            "metrics": {name: SliceSummary.of(m).model_dump() for name, m in EVALUATED.slices.items()},
            "popularity_baseline": {
                name: PopularityBaseline.of(m).model_dump() for name, m in EVALUATED.slices.items()
            },
            "decision": EVALUATED.decision.model_dump(),
            "blessed": False,
            "not_blessed_because": EVALUATED.decision.sentences("failed"),
            "pushed_path": None,
            "llm": make_ledger().model_dump() | {"age": age, "pairs": pairs, "enough_pairs": ENOUGH} | llm,
            "item_vectors": None,
            "gate_means": {"overall": 0.6},
            "training": {
                "gate": [cell],
                "epochs": [{"valid_auc": 0.7, "losses": {}, "seconds": 1.0, "rows_per_second": 10.0}],
                "best_epoch": 1,
                "best_valid_auc": 0.7,
                "train_rows": 10,
                "seconds": 1.0,
                **(training or {}),
            },
            "drift": DRIFT,
            "leakage": {"checked": {"rows": 1234}, "leaks": {}},
            "item_texts": ITEM_TEXTS,
            "seconds": 61.0,
            "run": {
                "date": "2026-01-02",
                "code": "c0de",
                "versions": {"tensorflow": "2.21"},
                "data_hash": "da7a",
                "seed": 3,
            },
            "set_keys": {"loss": {"llm_weight": 0.2}},
            "scores_are": "The scores order candidates",
            "steps": {"Trainer": {"seconds": 1.0, "cached": False}},
            "data": {
                "problems": {},
                "positives_are": "interactions rated 4 or more",
                "unread_columns": {"interactions": ["price"], "items": []},
                "notices": ["62% of the test positives are items that the user had before"],
                "splits": {"train": split, "valid": split, "test": split},
                "split": {"strategy": "global_date"},
                "cold": {"definition": "few", "by": "history_length", "below": 3, "test_users": 1, **of_split},
                "tail": {
                    "definition": "rare",
                    "items": 1,
                    "items_without_train_positive": 0,
                    "max_train_count": 1,
                    **of_split,
                },
                "interactions_table": {**table, "left_out": {}},
                "items_table": {**table, "empty_titles": 0},
                "users": 5,
                "user_ids": {"as_floats": 0, "as_integers": 0},
                "items": 5,
                "negatives": {
                    "kind": "sampled",
                    "seed": 0,
                    "positives_without_negative": 0,
                    "evaluation_hash": "0" * 32,
                },
                "paper": {"train_rows": 1, "train_rows_with_history_of_at_most_3": 1, "long_tail_items": 1},
            },
            "config": {"data": {"interactions": "a.csv", "items": "b.csv"}, "llm": {"max_age_days": 30}},
        }
    )


def page(tmp_path: pathlib.Path, **llm: Any) -> str:
    report.write(summary(**llm), tmp_path / "report.html")
    return " ".join((tmp_path / "report.html").read_text().split())


@pytest.mark.slow
def test_drift_skew_and_what_was_checked_for_leakage_are_shown_with_their_numbers(tmp_path):
    text = page(tmp_path)
    assert "2 distances measured (the last run), 1 above their thresholds" in text
    assert (
        '<p class="bad">Drift: item_brand of the train rows against those of the last run: L-infinity distance 0.3100; '
        "drift.max_drift.item_brand allows 0.05.</p>" in text
    )
    assert "<td>label</td><td>the test rows</td>" in text
    assert "no validation or test interaction in 1,234 rows" in text


def test_the_age_of_the_scores_and_what_became_of_the_pairs_are_told(tmp_path):
    text = page(tmp_path)
    assert "scores: 0.5 to 40.0 days old, median 3.0; 12.5% of their users have new interactions" in text
    assert "llm.max_age_days=30 days old, got 40.0" in text
    assert "80 pairs of 10 contexts train the ranking model, 20 of them calibration pairs" in text
    assert (
        "of 1,234 possible ones 4 are tied, 6 too narrow, 1,139 beyond pairs.max_per_context, 5 dropped as inconsistent"
    ) in text
    assert "score gap" not in text


def test_too_few_pairs_are_told_with_the_number_that_would_do(tmp_path):
    assert "too few to move" not in page(tmp_path)
    few = {"train_positives": 801, "preference_pairs": 80, "sufficient_pairs": 70, "cost_usd": 0.02, "seconds": None}
    assert (
        "80 preference pairs are fewer than one per 10 of the 801 train positives and may be too few to move the "
        "model; llm.budget.pairs: 70 would suffice, for about $0.0200 in all." in page(tmp_path, enough_pairs=few)
    )


def test_the_decision_is_told_check_by_check_and_a_slice_of_one_class_has_no_auc(tmp_path):
    text = page(tmp_path)
    assert "Not blessed, nothing was pushed: auc on slice overall: 0.7000 (95% interval 0.6000 to 0.8000)" in text
    assert "evaluation.min_auc.overall asks for 0.7500; 1,234 rows (617 positive) of 321 users</td>" in text
    assert (
        '<td class="note">skipped</td> <td class="text">auc on slice cold: not measurable on 7 rows (7 positive)'
        in text
    )
    assert "<td>cold</td><td>not measurable</td>" in text
    assert "There is no blessed model to compare with, so evaluation.max_drop was not applied." in text
    assert "<td>overall</td><td>log_loss</td><td>0.6500</td> <td>0.600 to 0.700</td>" in text


@pytest.mark.slow
def test_an_audit_is_told_with_its_interval_and_by_score_gap(tmp_path):
    flips = {"pairs": 200, "flipped": 25, "flip_rate": 0.125, "interval_95": [0.086, 0.178]}
    audit = {"contexts": 14, "contexts_without_two_responses": 0, **flips, "by_score_gap": {"below 0.1": flips}}
    text = page(tmp_path, audit=audit)
    assert "order audit: 12.5% of 200 pairs flip when the order is reversed (95%: 8.6% to 17.8%), 14 contexts" in text
    assert "<td>below 0.1</td><td>200</td><td>12.5%</td> <td>8.6% to 17.8%</td>" in text


@pytest.mark.parametrize("age", [None, {"oldest_days": 2, "median_days": 1, "newest_days": 0, "outdated_fraction": 0}])
def test_young_scores_and_none_warn_of_nothing(tmp_path, age):
    assert "max_age_days=30" not in page(tmp_path, age=age)


def test_the_page_maps_alpha_beside_both_measured_shares_and_names_contested_pairs(tmp_path):
    cells = [
        {
            "history_from": history,
            "popularity_from": popularity,
            "pairs": 50,
            "mean_alpha": 0.25,
            "calibration_pairs": 40,
            "llm_right": {"fraction": 0.7, "lower": 0.61, "upper": 0.79},
            "model_right": {"fraction": 0.6, "lower": 0.52, "upper": 0.68},
        }
        for history in (0, 4, 10)
        for popularity in (0, 5, 20)
    ]
    cells[0] |= {"pairs": 0, "mean_alpha": None, "calibration_pairs": 0, "llm_right": None, "model_right": None}
    contested = {
        "history_item_ids": ["i1", "i2"],
        "preferred_item_id": "i3",
        "other_item_id": "i4",
        "model_margin": -1.5,
        "alpha": 0.4,
        "calibration_label": 1,
    }
    made = summary(
        training={
            "reliability": cells,
            "calibration_error": 0.0421,
            "contested_pairs": [contested],
            "alpha_by_epoch": [{"0.05": 0.1, "0.25": 0.2, "0.5": 0.3, "0.75": 0.4, "0.95": 0.5}] * 2,
        }
    )
    file = tmp_path / "report.html"

    report.write(made, file)

    page = file.read_text(encoding="utf-8")
    assert page.count("alpha 0.25") == 8
    assert page.count("LLM right 0.61 to 0.79") == page.count("model right 0.52 to 0.68") == 8
    assert "Calibration error of the gate: 0.042" in page
    assert "Hand cream: Hands &amp; Nails" in page
    assert "Rose &lt;oil&gt;" in page
    assert "-1.50" in page
    assert "the first" in page


@pytest.mark.parametrize("without", [0.6, 0.75])
@pytest.mark.slow
def test_the_report_says_what_the_pairs_did_for_the_model(tmp_path, without):
    made = summary(training={"valid_auc_without_pairs": without, "best_valid_auc": max(0.7, without)})
    file = tmp_path / "report.html"

    report.write(made, file)

    page = " ".join(file.read_text(encoding="utf-8").split())
    assert f"Validation AUC with the pairs 0.7000, without them {without:.4f}" in page
    assert ("they do not help, and this model was trained without them" in page) == (without > 0.7)


def test_what_the_data_do_to_the_results_is_told(tmp_path):
    text = page(tmp_path)
    assert "Positives: interactions rated 4 or more." in text
    assert "Columns of data.interactions that are not read: price." in text
    assert "Columns of data.items" not in text
    assert "62% of the test positives are items that the user had before" in text
    assert "<td>2024-03-01</td>" in text


_PART = {"with_llm": 0.72, "without_llm": 0.7, "users": 321, "examples": 1234}
_NOT_MEASURABLE = dict.fromkeys(("difference", "lower", "upper", "with_llm", "without_llm"))
VERDICT = {
    "answer": "not_distinguishable",
    "users_needed": 800,
    "slices": {
        "overall": {"difference": 0.02, "lower": -0.01, "upper": 0.05, **_PART},
        "cold": {**_PART, **_NOT_MEASURABLE},
    },
    "choice": {"with_llm": True, "difference": 0.01, "standard_error": 0.005, "reason": "it is better"},
    "cost_usd": 1.5,
    "seconds": 90.0,
}


def test_the_page_leads_with_the_verdict_and_its_interval(tmp_path):
    report.write(summary(verdict=VERDICT), tmp_path / "report.html")
    text = " ".join((tmp_path / "report.html").read_text().split())
    sentence = (
        "effect is not distinguishable on this much test data (would need about 800 users): AUC 0.7200 with it and "
        "0.7000 without, difference +0.0200 (95% interval -0.0100 to +0.0500; 321 test users, 1,234 rows). "
        "It cost $1.5000 and 1.5 minutes. It is better."
    )
    assert sentence in text
    assert text.index(sentence) < text.index("Test AUC by slice")
    assert "item vectors" not in text[: text.index("Test AUC by slice")]


def test_the_verdict_on_item_vectors_stands_beside_the_llms(tmp_path):
    vectors = {name: VERDICT[name] for name in ("users_needed", "slices", "seconds")} | {"answer": "helps"}
    report.write(summary(verdict=VERDICT, vectors_verdict=vectors), tmp_path / "report.html")
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert text.index("effect is not distinguishable") < text.index("Scoring by item vectors helps: AUC 0.7200")
    assert text.index("Scoring by item vectors helps") < text.index("Test AUC by slice")


def test_the_page_says_what_the_run_was_made_with_and_what_was_set(tmp_path):
    text = page(tmp_path)
    assert "Run of 2026-01-02, 61 s. Seed 3; data da7a; code c0de; tensorflow 2.21." in text
    assert "<pre>loss: llm_weight: 0.2 </pre>" in text
    assert text.index("Not blessed") < text.index("Run of 2026-01-02") < text.index("Test AUC by slice")


@pytest.mark.parametrize(("best", "early"), [(1, False), (2, True)])
def test_training_that_ended_at_its_best_epoch_stopped_too_early(tmp_path, best, early):
    epoch = {"valid_auc": 0.7, "losses": {}, "seconds": 1.0, "rows_per_second": 10.0}
    made = summary(training={"epochs": [epoch, epoch], "best_epoch": best})
    report.write(made, tmp_path / "report.html")
    assert (
        "Training stopped too early: the best epoch, 2, is the last" in (tmp_path / "report.html").read_text()
    ) == early


def test_a_gate_that_trusts_a_wrong_llm_is_called_out_in_words():
    right = {"fraction": 0.3, "lower": 0.0, "upper": 0.56}
    cell = {"history_from": 0, "popularity_from": 5, "pairs": 50, "mean_alpha": 0.67, "calibration_pairs": 40}
    cell |= {"llm_right": right, "model_right": None}
    cells = [cell, cell | {"history_from": 4, "llm_right": right | {"upper": 0.7}}]
    assert report.overtrusted([ReliabilityCell.model_validate(cell) for cell in cells]) == [
        "Histories of 0 to 3 and rarer items of 5 or more train positives: alpha is 0.67, but the LLM is right on 0.00 "
        "to 0.56 of 40 calibration pairs"
    ]
    assert report.overtrusted([]) == []


def test_plots_have_a_label_and_follow_a_dark_scheme(tmp_path):
    report.write(summary(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('<svg role="img" aria-label="') == text.count("<svg")
    assert 'aria-label="Validation AUC by epoch"' in text
    assert "prefers-color-scheme: dark" in text
    plots = text[text.index("<svg") :]
    assert "currentColor" in plots
    assert "#ffffff" not in plots


def test_a_model_card_names_data_metrics_and_limits(tmp_path):
    report.write_model_card(summary().model_copy(update={"pushed_path": "serving/shop/17"}), tmp_path / "17.md")
    text = (tmp_path / "17.md").read_text()
    assert text.startswith("# shop, version 17\n")
    assert (
        "| overall | 0.7000 | 0.600 to 0.800 | 0.6000 | 1234 | 321 |\n| cold | not measurable | - | - | 7 | 3 |" in text
    )
    assert "| log_loss | 0.6500 |" in text
    assert "Seed 3; code c0de; tensorflow 2.21." in text

"""What the page says of the scores: their age, the audit of the order, what became of the candidate pairs."""

import pathlib
from typing import Any

import pytest

from pipeline import report


def summary(**llm: Any) -> dict[str, Any]:
    """A run with one slice and one region of the gate."""
    split = {"rows": 10, "positives": 5, "users": 5}
    table = {"read": 10, "kept": 10, "dropped": {}, "empty_titles": 0}
    cell = {"cold": None, "tail": None, "pairs": 9, "probes": 3, "mean_alpha": 0.6, "llm_accuracy": 0.7}
    return {
        "name": "shop",
        "backbone": "dcnv2",
        "gate": "supervised",
        "metrics": {"overall": {"auc": 0.7, "lower": 0.6, "upper": 0.8, "examples": 10, "positives": 5}},
        "popularity_baseline": {"overall": {"auc": 0.6}},
        "blessed": False,
        "not_blessed_because": ["too weak"],
        "pushed_path": None,
        "llm": {
            "model": "m",
            "strategy": "listwise",
            "prompt_version": "listwise.v1-0",
            "requested": 60,
            "contexts": 10,
            "scored": 60,
            "cached": 0,
            "failed": 0,
            "failures": {},
            "calls": {"sent": 10},
            "tokens": {"prompt": 1000, "completion": 100},
            "cost_usd": 0.01,
            "age": {"oldest_days": 40.0, "median_days": 3.0, "newest_days": 0.5, "outdated_share": 0.125},
            "audit": None,
            "pairs": {
                "contexts": 10,
                "candidate_pairs": 1234,
                "pairs": 80,
                "labelled_pairs": 20,
                "tied": 4,
                "inconsistent": 5,
                "narrow": 6,
                "beyond_cap": 1139,
            },
            **llm,
        },
        "training": {
            "gate": [cell],
            "epochs": [{"valid_auc": 0.7}],
            "best_epoch": 1,
            "best_valid_auc": 0.7,
            "valid_auc_without_pairs": None,
            "alpha_collapse": None,
            "alpha_by_epoch": [],
            "reliability": [],
            "calibration_error": None,
            "contested_pairs": [],
            "first_stage": [],
        },
        "item_texts": {},
        "steps": {"Trainer": {"seconds": 1.0, "cached": False}},
        "data": {
            "splits": {"train": split, "valid": split, "test": split},
            "cold": {"definition": "few"},
            "tail": {"definition": "rare"},
            "interactions_table": table,
            "items_table": table,
            "users": 5,
            "items": 5,
            "negatives": {"kind": "sampled", "evaluation_hash": "0" * 32},
        },
        "config": {"llm": {"max_age_days": 30}},
    }


def page(tmp_path: pathlib.Path, **llm: Any) -> str:
    report.write(summary(**llm), tmp_path / "report.html")
    return " ".join((tmp_path / "report.html").read_text().split())


def test_the_age_of_the_scores_and_what_became_of_the_pairs_are_told(tmp_path):
    text = page(tmp_path)
    assert "scores: 0.5 to 40.0 days old, median 3.0; 12.5% of their users have chosen more since" in text
    assert "llm.max_age_days=30 days old, got 40.0" in text
    assert "80 pairs of 10 contexts train the ranking model, 20 of them labelled" in text
    assert (
        "of 1,234 possible ones 4 are tied, 6 too narrow, 1,139 beyond pairs.max_per_context, 5 dropped as inconsistent"
    ) in text
    assert "score gap" not in text


def test_an_audit_is_told_with_its_interval_and_by_score_gap(tmp_path):
    flips = {"pairs": 200, "flipped": 25, "flip_rate": 0.125, "interval_95": [0.086, 0.178]}
    audit = {"contexts": 14, "contexts_without_two_answers": 0, **flips, "by_score_gap": {"below 0.1": flips}}
    text = page(tmp_path, audit=audit)
    assert "order audit: 12.5% of 200 pairs flip when the order is reversed (95%: 8.6% to 17.8%), 14 contexts" in text
    assert "<td>below 0.1</td><td>200</td><td>12.5%</td> <td>8.6% to 17.8%</td>" in text


@pytest.mark.parametrize("age", [None, {"oldest_days": 2, "median_days": 1, "newest_days": 0, "outdated_share": 0}])
def test_young_scores_and_none_warn_of_nothing(tmp_path, age):
    assert "max_age_days=30" not in page(tmp_path, age=age)


def test_the_page_maps_alpha_beside_both_measured_shares_and_names_contested_pairs(tmp_path):
    cells = [
        {
            "history_from": history,
            "popularity_from": popularity,
            "pairs": 50,
            "mean_alpha": 0.25,
            "probes": 40,
            "llm_right": {"share": 0.7, "lower": 0.61, "upper": 0.79},
            "model_right": {"share": 0.6, "lower": 0.52, "upper": 0.68},
        }
        for history in (0, 4, 10)
        for popularity in (0, 5, 20)
    ]
    cells[0] |= {"pairs": 0, "mean_alpha": None, "probes": 0, "llm_right": None, "model_right": None}
    contested = {
        "history_item_ids": ["i1", "i2"],
        "preferred_item_id": "i3",
        "other_item_id": "i4",
        "model_margin": -1.5,
        "alpha": 0.4,
        "probe_label": 1,
    }
    made = summary()
    made["training"] |= {
        "reliability": cells,
        "calibration_error": 0.0421,
        "contested_pairs": [contested],
        "alpha_by_epoch": [{"0.05": 0.1, "0.25": 0.2, "0.5": 0.3, "0.75": 0.4, "0.95": 0.5}] * 2,
    }
    made["item_texts"] = {"i1": "Rose <oil>", "i2": "Soap", "i3": "Hand cream: Hands & Nails", "i4": "Perfume"}
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
def test_the_report_says_what_the_pairs_did_for_the_model(tmp_path, without):
    made = summary()
    made["training"] |= {"valid_auc_without_pairs": without, "best_valid_auc": max(0.7, without)}
    file = tmp_path / "report.html"

    report.write(made, file)

    page = " ".join(file.read_text(encoding="utf-8").split())
    assert f"Validation AUC with the pairs 0.7000, without them {without:.4f}" in page
    assert ("they do not help, and this model was trained without them" in page) == (without > 0.7)

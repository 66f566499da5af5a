"""What pairs add by the accuracy of their scores, from runs written by hand."""

import pytest

from sllmr.pipeline.ablation.report import render
from sllmr.pipeline.ablation.results import Run
from sllmr.pipeline.ablation.scorer_quality import scorer_points
from tests.pipeline.ablation.test_report import FIVE, SIZES, line, table, write

MATCH = {"model": {"text_match": True}, "text_features": True}
HALF = {**MATCH, "scores": "permuted", "permuted_fraction": 0.5, "tuned_as": "stacked_text_match"}


def pair_arm(name: str, arm_config: dict, accuracy: float, gain: float, seeds=FIVE, **changes) -> list[dict]:
    """Runs of an arm that stands `gain` above text_match on each slice."""
    difference = {"difference": gain, "standard_error": 0.001}
    training = {"alpha_collapse": None, "gate": [{"llm_accuracy": accuracy}]}
    versus = {other: dict.fromkeys(SIZES, difference) for other in ("none", "text_match")}
    return [
        line(name, seed, gain=gain, arm_config=arm_config, training=training, versus=versus, **changes)
        for seed in seeds
    ]


SCORED = [
    *(line(seed=seed) for seed in FIVE),
    *(line("text_match", seed, arm_config=MATCH) for seed in FIVE),
    *pair_arm("permuted", {**MATCH, "scores": "permuted"}, 0.5, 0.001, seeds=(2, 3)),
    *pair_arm("matched", MATCH, 0.72, 0.006),
    *pair_arm("half", HALF, 0.58, 0.003, seeds=(1, 2, 3, 4)),
]


def test_the_points_go_from_accurate_to_permuted_scores_over_the_seeds_that_all_have():
    points = scorer_points([Run.model_validate(run) for run in SCORED])["dcnv2"]
    assert [point.arm for point in points] == ["matched", "half", "permuted"]
    assert {point.seeds for point in points} == {2}
    assert [point.accuracy for point in points] == pytest.approx([0.72, 0.58, 0.5])
    for point, gain in zip(points, (0.006, 0.003, 0.001), strict=True):
        assert set(point.gains) == set(SIZES)
        # All seeds gain the same: what is left of the interval is that over users.
        assert point.gains["tail"].mean == pytest.approx(gain)
        assert point.gains["tail"].upper - gain == pytest.approx(1.96 * 0.001, abs=1e-5)


def test_arms_that_differ_in_more_than_their_scores_are_no_points():
    others = [
        *pair_arm("few", {**MATCH, "scored_fraction": 0.1}, 0.72, 0.002),
        *pair_arm("constant", {**MATCH, "scores": "constant"}, 0.5, 0.002),
        *pair_arm("old_line", None, 0.72, 0.002),
        *pair_arm("tuned", MATCH, 0.72, 0.002, hyperparameters={"loss": {"margin": 2.0}, "train": {"seed": 1}}),
        *pair_arm("no_gate", {**MATCH, "scores": "permuted", "permuted_fraction": 0.9}, 0.5, 0.002),
    ]
    for run in others[-5:]:
        run["training"] = {"alpha_collapse": None}
    points = scorer_points([Run.model_validate(run) for run in SCORED + others])["dcnv2"]
    assert [point.arm for point in points] == ["matched", "half", "permuted"]


def test_two_arms_make_no_curve():
    assert scorer_points([Run.model_validate(run) for run in SCORED if run["arm"] != "half"]) == {}


def test_the_report_has_the_points_as_a_table_and_as_a_plot(tmp_path):
    markdown, html = (file.read_text() for file in render(write(tmp_path, SCORED), tmp_path / "report"))
    heading = "what pairs add to text_match by the accuracy of their scores, dcnv2"
    rows = table(markdown, f"beauty, {heading}")
    assert list(rows) == ["matched", "half", "permuted"]
    assert (rows["half"]["seeds"], rows["half"]["accuracy"]) == ("2", "0.580")
    assert rows["half"]["overall"] == "+.0030 [+.0010, +.0050] *"
    assert 'aria-label="What pairs add to text_match by the accuracy of their scores, dcnv2"' in html
    markdown, _ = (file.read_text() for file in render(write(tmp_path, SCORED[:5]), tmp_path / "report"))
    assert heading not in markdown

"""The tables from results files written by hand: every number is known beforehand."""

import html.parser
import json
import logging
import pathlib
import re
from typing import Any

import pytest

from sllmr.pipeline.ablation import results
from sllmr.pipeline.ablation.cell_format import format_auc, format_difference
from sllmr.pipeline.ablation.paper import BACKBONES, TABLE_2, TABLE_2_ARMS, TABLE_3, TABLE_3_BACKBONE, paper_auc
from sllmr.pipeline.ablation.report import domain_tables, render
from sllmr.pipeline.cli import main

SIZES = {"overall": 400, "cold": 120, "tail": 80}
NONE_AUC = {"overall": 0.80, "cold": 0.78, "tail": 0.70}


def line(arm: str = "none", seed: int = 1, gain: float = 0.0, standard_error: float = 0.001, **changes: Any) -> dict:
    """A run whose AUC stands `gain` above .80, .78 and .70, plus a thousandth for each seed."""
    auc = {name: value + seed / 1000 + gain for name, value in NONE_AUC.items()}
    difference = {"difference": gain, "standard_error": standard_error}
    return {
        "domain": "beauty",
        "backbone": "dcnv2",
        "arm": arm,
        "seed": seed,
        "metrics": {
            name: {"auc": auc[name], "examples": examples, "positives": examples // 2}
            for name, examples in SIZES.items()
        },
        "valid_auc": 0.81,
        "versus": {} if arm == "none" else {"none": dict.fromkeys(SIZES, difference)},
        "baselines": {
            "popularity": {"overall": 0.623, "cold": 0.611, "tail": None},
            "llm_scorer": {"overall": 0.724, "cold": 0.721, "tail": 0.729},
        },
        "hyperparameters": {"loss": {"margin": 1.0}, "train": {"seed": seed}},
        "training": {"alpha_collapse": None},
        "definitions": {"cold": "fewer than 3 positives among the train rows", "tail": "the last fifth by train count"},
        "hashes": {"test_rows": "ab12", "pairs": "cd34"},
        "versions": {"sllmr": "0.1.0"},
        "started_at": "2026-11-22T02:00:00Z",
        "seconds": 41.2,
        "fraction_of_users_scored": 1.0,
    } | changes


def write(directory: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    file = directory / "results.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return file


def rendered(directory: pathlib.Path, lines: list[dict]) -> str:
    return render(write(directory, lines), directory / "report")[0].read_text()


def table(markdown: str, heading: str) -> dict[str, dict[str, str]]:
    """The first table below a heading: row -> column -> cell. Fails where a row is not as wide as the header."""
    below = markdown.split(f"### {heading}\n", 1)[1]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in re.search(r"(?:^\|.*\|\n)+", below, re.MULTILINE).group().splitlines()
    ]
    header, dashes, *body = rows
    assert dashes == ["---"] * len(header)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


def warnings(markdown: str) -> list[str]:
    return re.findall(r"^- \*\*Warning\*\*: (.*)$", markdown, re.MULTILINE)


FIVE = range(1, 6)


def test_a_cell_holds_mean_spread_difference_interval_and_the_papers_value(tmp_path):
    lines = [line(seed=seed) for seed in FIVE]
    lines += [line("gated_paper", seed, gain=0.004) for seed in FIVE]
    cells = table(rendered(tmp_path, lines), "beauty, Table 2: every backbone, overall")["dcnv2"]
    # Seeds add .001 to .005: mean .003, s = .001581, s / sqrt(5) = .000707. The gain is the same for each seed, so the
    # interval is that of the rows, 1.96 * .001.
    assert cells["none"] == ".8030 (.0007)<br>paper .8028"
    assert cells["gated_paper"] == ".8070 (.0007)<br>+.0040 [+.0020, +.0060] *<br>paper .8177, +.0149"
    assert (cells["KAR, paper only"], cells["LLM-CF, paper only"]) == (".8003", ".8033")


def test_a_loss_is_marked_as_a_gain_is_and_what_cannot_be_told_is_not(tmp_path):
    lines = [line(seed=seed) for seed in FIVE]
    for arm, gain in (("gated_supervised", 0.003), ("global", -0.003), ("pointwise", -0.001)):
        lines += [line(arm, seed, gain=gain) for seed in FIVE]
    markdown = rendered(tmp_path, lines)
    cells = table(markdown, "beauty, Table 2: every backbone, tail")["dcnv2"]
    assert cells["gated_supervised"] == ".7060 (.0007)<br>+.0030 [+.0010, +.0050] *"
    assert cells["global"] == ".7000 (.0007)<br>-.0030 [-.0050, -.0010] *<br>paper .7330, -.0372"
    assert cells["pointwise"] == ".7020 (.0007)<br>-.0010 [-.0030, +.0010]<br>paper .7445, -.0257"
    assert "6 of 9 intervals exclude zero" in markdown


def test_the_intervals_hold_the_seeds_spread(tmp_path):
    lines = [line(seed=seed) for seed in (1, 2, 3)]
    lines += [
        line("global", seed, gain=gain, standard_error=0.0) for seed, gain in enumerate((0.001, 0.002, 0.006), start=1)
    ]
    cells = table(rendered(tmp_path, lines), "beauty, Table 2: every backbone, overall")["dcnv2"]
    # s = .0026458, t of 2 degrees of freedom 4.3027: half-width .0065724.
    assert "<br>+.0030 [-.0036, +.0096]<br>" in cells["global"]


def test_a_single_seed_shows_no_spread_and_a_dagger(tmp_path):
    markdown = rendered(tmp_path, [line(), line("global", gain=0.004)])
    cells = table(markdown, "beauty, Table 2: every backbone, cold")["dcnv2"]
    assert cells["none"] == ".7810<br>paper .8006"
    assert cells["global"] == ".7850<br>+.0040 [+.0020, +.0060] * †<br>paper .7797, -.0209"
    assert warnings(markdown) == ["Fewer than 5 seeds (1 for the least repeated cell): no claim."]


def test_five_whole_seeds_of_one_kind_need_no_warning(tmp_path):
    assert warnings(rendered(tmp_path, [line(arm, seed) for seed in FIVE for arm in ("none", "global")])) == []


def test_table_3_has_arms_by_slices_of_dcnv2(tmp_path):
    lines = [line(arm, gain=0.001, backbone=backbone) for backbone in BACKBONES for arm in ("none", "global", "own")]
    cells = table(rendered(tmp_path, lines), "beauty, Table 3: every arm of dcnv2")
    assert list(cells) == ["none", "global", "own"]
    assert cells["none"] == {
        "overall": ".8020<br>paper .8028",
        "cold": ".7820<br>paper .8006",
        "tail": ".7020<br>paper .7702",
    }
    assert cells["global"]["tail"].endswith("paper .7330, -.0372")


def test_without_dcnv2_table_3_is_of_the_backbone_with_the_most_arms(tmp_path):
    lines = [line(backbone="deepfm"), line(backbone="din"), line("global", backbone="din")]
    assert list(table(rendered(tmp_path, lines), "beauty, Table 3: every arm of din")) == ["none", "global"]


def test_rows_and_columns_stand_in_the_papers_order_and_unknown_ones_after_them(tmp_path):
    arms = ["late_fusion", "gated_own", "global", "none"]
    lines = [line(arm, backbone=backbone) for backbone in ("mine", "din", "deepfm") for arm in arms]
    cells = table(rendered(tmp_path, lines), "beauty, Table 2: every backbone, cold")
    assert list(cells) == ["deepfm", "din", "mine"]
    assert list(cells["din"]) == ["none", "global", "late_fusion", "gated_own"]


def test_what_was_not_run_and_what_has_one_class_only_is_a_dash(tmp_path):
    one_class = line(backbone="din")
    one_class["metrics"]["tail"] = {"auc": None, "examples": 5, "positives": 5}
    markdown = rendered(tmp_path, [line(), line("global"), one_class])
    assert table(markdown, "beauty, Table 2: every backbone, overall")["din"]["global"] == "–"
    assert table(markdown, "beauty, Table 2: every backbone, tail")["din"]["none"] == "–"


def test_beside_a_table_stand_seeds_counts_definition_baselines_and_the_hash(tmp_path):
    below = rendered(tmp_path, [line()]).split("Table 2: every backbone, cold")[1].split("###")[0]
    assert (
        "Seeds: 1. Hash of the test rows: ab12. cold: fewer than 3 positives among the train rows; 120 examples, "
        "60 of them positive. AUC of popularity .6110, of the LLM scorer alone .7210."
    ) in below


def test_a_baseline_that_is_not_known_is_said_to_be_so(tmp_path):
    entry = line(baselines={"popularity": {"overall": 0.6}, "llm_scorer": None})
    below = rendered(tmp_path, [entry]).split("Table 2: every backbone, tail")[1].split("###")[0]
    assert "AUC of popularity not known, of the LLM scorer alone not known." in below


def test_the_summary_counts_backbones_and_the_share_of_late_fusion_that_is_kept(tmp_path):
    gains = {"deepfm": 0.006, "autoint": 0.001, "din": -0.004}
    lines = []
    for backbone, gain in gains.items():
        lines += [
            line(backbone=backbone),
            line("gated_supervised", gain=gain, backbone=backbone),
            line("late_fusion", gain=0.02, backbone=backbone),
        ]
    # No late fusion here: this backbone counts as a gain, but not in the fraction.
    lines += [line(backbone="dcn"), line("gated_supervised", gain=0.05, backbone="dcn")]
    summary = table(rendered(tmp_path, lines), "beauty")
    counts, kept = "overall: gain / loss / not told apart", "late fusion kept"
    assert summary["gated_supervised"][counts] == "2 / 1 / 1"
    assert summary["gated_supervised"][kept] == f"{(0.006 + 0.001 - 0.004) / 0.06:.0%}"
    assert summary["late_fusion"][counts] == "3 / 0 / 0"
    assert summary["late_fusion"][kept] == "–"


def contest_lines(gains: dict[str, tuple[float, float]], seeds: Any = FIVE, **changes: Any) -> list[dict]:
    """Runs of every seed; by arm its gain over none and its validation AUC."""
    return [
        line(arm, seed, gain=gain, valid_auc=valid, **changes) for seed in seeds for arm, (gain, valid) in gains.items()
    ]


def test_the_arm_of_the_best_validation_auc_is_held_against_each_other(tmp_path):
    # late_fusion has the best validation AUC and needs the LLM scorer to serve; stacked the best test AUC.
    gains = {
        "none": (0.0, 0.80),
        "text_features": (0.003, 0.81),
        "stacked": (0.009, 0.815),
        "stacked_text": (0.008, 0.82),
        "late_fusion": (0.010, 0.90),
    }
    lines = contest_lines(gains, standard_error=0.0005)
    lines += contest_lines(gains, standard_error=0.0005, backbone="din")
    # An arm of one backbone alone is no candidate, whatever its AUC.
    lines += [line("stacked_half", seed, gain=0.02, valid_auc=0.99) for seed in FIVE]
    markdown = rendered(tmp_path, lines)
    assert "stacked_text has the best mean validation AUC over the 10 trainings" in markdown
    assert ": stacked_text .8200, stacked .8150, text_features .8100, none .8000." in markdown
    row = table(markdown, "stacked_text against the others: beauty, cold")["dcnv2"]
    assert list(row) == ["none", "stacked", "text_features", "late_fusion", "stacked_half", "late fusion kept"]
    # Against none the kept standard error: 1.96 * .0005; against others the sum of both: 1.96 * .001.
    assert row["none"] == "+.0080 [+.0070, +.0090] *"
    assert row["text_features"] == "+.0050 [+.0030, +.0070] *"
    assert row["stacked"] == "-.0010 [-.0030, +.0010]"
    assert row["stacked_half"] == "-.0120 [-.0149, -.0091] *"  # its own is .001
    assert row["late fusion kept"] == "80%"
    assert table(markdown, "stacked_text against the others: beauty, cold")["din"]["stacked_half"] == "–"


def test_the_chosen_arms_wins_are_counted_over_backbones_domains_and_slices(tmp_path):
    gains = {"none": (0.0, 0.80), "global": (0.0075, 0.81), "stacked": (0.008, 0.82), "text_features": (0.0, 0.79)}
    lines = [
        entry
        for place in ({}, {"backbone": "din"}, {"domain": "toys"}, {"domain": "toys", "backbone": "din"})
        for entry in contest_lines(gains, standard_error=0.0005, **place)
        # One cell of text_features has two seeds, in which it is the better by far.
        if entry["arm"] != "text_features" or place != {"domain": "toys"}
    ]
    lines += contest_lines({"text_features": (0.05, 0.79)}, (1, 2), standard_error=0.0005, domain="toys")
    summary = table(rendered(tmp_path, lines), "stacked against the others: summary")
    names = ("seeds", "above", "by more than the interval", "below by more than the interval")
    assert {arm: tuple(row[name] for name in names) for arm, row in summary.items()} == {
        "none": ("5", "12 of 12", "12", "0"),
        "global": ("5", "12 of 12", "0", "0"),
        "text_features": ("2", "9 of 12", "9", "3"),
    }


def test_the_share_kept_is_shown_over_the_seeds_and_of_the_least_and_the_most_of_them(tmp_path):
    lines = []
    for seed, (own, fusion) in enumerate(((0.002, 0.02), (0.009, 0.01), (0.004, -0.001)), start=1):
        lines += [
            line(seed=seed),
            line("global", seed, gain=own, valid_auc=0.9),
            line("late_fusion", seed, gain=fusion),
        ]
    row = table(rendered(tmp_path, lines), "global against the others: beauty, overall")["dcnv2"]
    # .015 of .029; of the third seed, in which late fusion gains nothing, there is no fraction.
    assert row["late fusion kept"] == "52% (10% to 90%)"


def test_means_are_over_all_backbones_and_the_seeds_that_they_share(tmp_path):
    lines = [line(seed=seed, backbone=backbone) for seed in (1, 2) for backbone in ("din", "dcn")]
    lines += [line("global", seed, gain=0.01, backbone="din") for seed in (1, 2, 3)]
    lines += [line("global", seed, gain=0.03, backbone="dcn") for seed in (2, 4)]
    lines += [line("stacked_half", backbone="dcn")]
    lines[0]["metrics"]["tail"]["auc"] = None
    means = table(rendered(tmp_path, lines), "beauty, test AUC in the mean over the backbones")
    assert means == {
        "popularity": {"seeds": "–", "overall": ".6230", "cold": ".6110", "tail": "–"},
        "LLM scorer alone": {"seeds": "–", "overall": ".7240", "cold": ".7210", "tail": ".7290"},
        "none": {"seeds": "2", "overall": ".8015", "cold": ".7815", "tail": "–"},
        "global": {"seeds": "1", "overall": ".8220", "cold": ".8020", "tail": ".7220"},
    }


def test_a_domain_with_a_part_of_the_backbones_has_no_vote_in_the_choice(tmp_path):
    gains = {"none": (0.0, 0.80), "global": (0.003, 0.81)}
    lines = contest_lines(gains) + contest_lines(gains, backbone="din")
    lines += contest_lines({"none": (0.0, 0.99), "stacked": (0.01, 0.99)}, domain="beauty_local")
    markdown = rendered(tmp_path, lines)
    assert "global has the best mean validation AUC over the 10 trainings" in markdown
    assert ": global .8100, none .8000." in markdown
    assert "against the others: beauty, tail" in markdown
    assert "against the others: beauty_local" not in markdown


def test_the_chosen_arms_difference_is_paired_by_seed(tmp_path):
    # Both arms rise and fall with the seed; their difference does not: only the rows' part of the interval is left.
    lines = []
    for seed in FIVE:
        lines += [line(seed=seed, valid_auc=0.7), line("global", seed, gain=seed / 100, valid_auc=0.75)]
        lines += [line("gated_paper", seed, gain=seed / 100 + 0.001, valid_auc=0.8)]
    lines += [line("global", 6, gain=0.05, valid_auc=0.99)]  # a seed that the others lack
    row = table(rendered(tmp_path, lines), "gated_paper against the others: beauty, tail")["dcnv2"]
    assert row["global"] == "+.0010 [-.0029, +.0049]"
    assert row["late fusion kept"] == "–"


def test_the_spread_of_alpha_is_told_of_gates_that_were_fitted(tmp_path):
    def trained(quantiles: tuple[float, float, float], **weights: float) -> dict:
        by_fraction = dict(zip(("0.05", "0.5", "0.95"), quantiles, strict=True))
        return {"alpha_quantiles": by_fraction, "gate_weights": weights}

    lines = [line(), line(seed=2), line(backbone="din")]
    lines += [line("gated_paper", 1, training=trained((0.0, 0.02, 0.06), bias=-4.0))]
    lines += [line("gated_paper", 2, training=trained((0.02, 0.04, 0.1), bias=-3.0))]
    # A frozen gate is constant: nothing was fitted.
    lines += [line("global", training=trained((1.0, 1.0, 1.0)))]
    alpha = table(rendered(tmp_path, lines), "beauty, alpha of the gates that are fitted")
    assert alpha == {"gated_paper": {"dcnv2": "0.03 [0.01, 0.08]", "din": "–"}}


def test_the_map_of_alpha_has_each_regions_mean_over_seeds_and_the_llms_accuracy_there(tmp_path):
    def trained(alphas: tuple[float | None, ...], accuracies: tuple[float | None, ...], **weights: float) -> dict:
        regions = [(None, None), (True, True), (True, False), (False, True), (False, False)]
        names = ("short_history", "tail", "mean_alpha", "llm_accuracy")
        cells = [
            dict(zip(names, (*region, alpha, accuracy), strict=True)) | {"pairs": 9, "calibration_pairs": 1000 + n}
            for n, (region, alpha, accuracy) in enumerate(zip(regions, alphas, accuracies, strict=True))
        ]
        quantiles = dict.fromkeys(("0.05", "0.5", "0.95"), 0.1)
        return {"alpha_quantiles": quantiles, "gate_weights": weights, "gate": cells}

    first = trained((0.1, 0.3, 0.0, None, 0.2), (0.7, 0.8, 0.6, None, None), bias=1.0)
    second = trained((0.2, 0.3, 0.1, None, 0.2), (0.72, 0.8, 0.5, None, None), bias=1.0)
    frozen = trained((1.0,) * 5, (0.5,) * 5)
    lines = [line(), line("stacked", 1, training=first), line("stacked", 2, training=second)]
    lines += [line("global", training=frozen), line("stacked_text", training=second)]
    found = table(rendered(tmp_path, lines), "beauty, alpha by region of dcnv2")
    assert set(found) == {"stacked", "stacked_text"}
    # The half-width: t of one degree of freedom, 12.706, times s / sqrt(2) of .1 and .2, which is .05.
    assert found["stacked"] == {
        "seeds": "2",
        "all pairs": "0.150 ± 0.635<br>LLM right in 0.710 of 1,000",
        "short history, tail": "0.300 ± 0.000<br>LLM right in 0.800 of 1,001",
        "short history, head": "0.050 ± 0.635<br>LLM right in 0.550 of 1,002",
        "long history, tail": "–",
        "long history, head": "0.200 ± 0.000",
    }
    assert found["stacked_text"]["all pairs"] == "0.200<br>LLM right in 0.720 of 1,000"


def test_without_two_arms_on_all_backbones_none_is_chosen(tmp_path):
    assert "selected arm" not in rendered(tmp_path, [line(), line("global"), line(backbone="din")])


def test_a_domain_that_the_paper_does_not_have_shows_no_papers_value(tmp_path):
    lines = [line(domain="movielens"), line("gated_paper", gain=0.01, domain="movielens")]
    markdown = rendered(tmp_path, lines)
    assert list(table(markdown, "movielens, Table 2: every backbone, overall")["dcnv2"]) == ["none", "gated_paper"]
    assert "<br>paper" not in markdown


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        (
            [line(), line("global", hashes={"test_rows": "ffff"})],
            "Runs disagree in the hash of the test rows (1 with ab12; 1 with ffff): their AUCs are not comparable.",
        ),
        (
            [line(seed=1), line(seed=2), line("global", seed=2)],
            "dcnv2: global lacks seeds of the arm none, 1; run them.",
        ),
        (
            [line(seed=1), line("global", seed=1), line("global", seed=4)],
            "dcnv2: the arm none lacks seeds of global, 4; run them.",
        ),
        (
            [line(), line(seed=2, hyperparameters={"loss": {"margin": 2.0}, "train": {"seed": 2}})],
            'dcnv2: Runs disagree in the hyper-parameters of none (1 with {"loss": {"margin": 1.0}, "train": {}}; '
            '1 with {"loss": {"margin": 2.0}, "train": {}}): its mean is over more than seeds.',
        ),
        (
            [line("global"), line("global", seed=2, fraction_of_users_scored=0.1)],
            "dcnv2: Runs disagree in the fraction of users scored of global (1 with 1.0; 1 with 0.1): "
            "its mean is over more than seeds.",
        ),
        (
            [line(), line("global", versions={"sllmr": "0.2.0"})],
            "Runs disagree in the version of sllmr (1 with 0.1.0; 1 with 0.2.0): a difference may come from it.",
        ),
        (
            [line(), line("global", definitions={"cold": "other", "tail": "other"})],
            "the first is shown.",
        ),
        (
            [line(), line("global", baselines={"popularity": {}, "llm_scorer": {"overall": 0.6}})],
            "they had different LLM scorers; the first is shown.",
        ),
        (
            [
                line(),
                *[
                    line("global", seed=n, training={"valid_auc_without_pairs": auc})
                    for n, auc in ((1, 0.81), (2, 0.6))
                ],
            ],
            "dcnv2: the pairs of global did not raise the validation AUC in 1 of 2 runs, whose model is the one "
            "trained without them.",
        ),
        (
            [
                line(backbone=backbone, arm=arm, training={"alpha_collapse": "closed" if arm != "none" else None})
                for backbone in ("deepfm", "din")
                for arm in ("none", "gated_paper")
            ],
            "deepfm, din: the gate of gated_paper has collapsed (closed) in 1 of 1 runs.",
        ),
        (
            [line(backbone="dcn", domain="Beauty")],
            "dcn: none stands at .8010, more than .0100 below the paper's .8146: gains over it prove little; "
            "tune it first.",
        ),
    ],
)
def test_what_a_reader_must_know_first_is_a_warning(tmp_path, lines, warning):
    tables = domain_tables(results.read(write(tmp_path, lines)))
    assert any(found.endswith(warning) for found in tables.warnings)


def test_a_difference_is_that_of_the_two_aucs_also_where_none_was_made_again(tmp_path):
    again = line()
    again["metrics"]["cold"]["auc"] += 0.01
    din = [line(backbone="din"), line("global", backbone="din", gain=0.004)]
    lines = [line(), line("global", gain=0.004), *din, again]
    cells = table(rendered(tmp_path, lines), "beauty, Table 2: every backbone, cold")
    # None's .781 is .791 now, for its own backbone alone; the interval is still 1.96 * .001.
    assert cells["dcnv2"]["global"].startswith(".7850<br>-.0060 [-.0080, -.0040] *")
    assert cells["din"]["global"].startswith(".7850<br>+.0040 [+.0020, +.0060] *")


def test_the_html_page_has_the_same_cells_is_closed_and_needs_no_network(tmp_path):
    lines = [line(seed=seed) for seed in FIVE] + [line("global", seed, gain=-0.003) for seed in FIVE]
    lines += [line(domain="a<b", definitions={"cold": "<script>", "tail": "x"})]
    markdown_file, html_file = render(write(tmp_path, lines), tmp_path / "report", commands=["sllmr ablate --report"])
    page = html_file.read_text()
    cell = table(markdown_file.read_text(), "beauty, Table 2: every backbone, tail")["dcnv2"]["global"]
    assert f'<td class="bad">{cell}</td>' in page
    assert "<script" not in page
    assert "a&lt;b" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    void = {"meta", "br", "path", "use"}
    open_tags: list[str] = []

    class Balance(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in void:
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag not in void:
                assert open_tags.pop() == tag

    Balance().feed(page)
    assert open_tags == []


def test_the_picture_has_a_line_for_each_difference_coloured_by_its_verdict(tmp_path):
    lines = [line(seed=seed) for seed in FIVE]
    for arm, gain in (("gated_supervised", 0.003), ("global", -0.003), ("pointwise", 0.0)):
        lines += [line(arm, seed, gain=gain) for seed in FIVE]
    page = render(write(tmp_path, lines), tmp_path / "report")[1].read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        for name in ("gated_supervised, dcnv2", "global, dcnv2", "pointwise, dcnv2"):
            assert picture.count(f">{name}<") == 1
        # One interval for each verdict, and one in the legend.
        for color in ("#2f6fde", "#d9822b", "#9aa7bd"):
            assert len(re.findall(f"stroke: {color}; stroke-width: 2", picture)) == 2


def test_the_foot_names_the_results_the_versions_and_the_commands(tmp_path):
    file = write(tmp_path, [line(), line("global", versions={"sllmr": "0.2.0", "tensorflow": "2.21.0"})])
    markdown = render(file, tmp_path / "report", commands=["sllmr ablate --config all.yaml"])[0].read_text()
    foot = json.loads(re.search(r"```json\n(.*)\n```", markdown).group(1))
    assert foot["results"] == "results.jsonl"
    assert foot["runs"] == 2
    assert foot["versions"] == {"sllmr": ["0.1.0", "0.2.0"], "tensorflow": ["2.21.0"]}
    assert foot["commands"] == ["sllmr ablate --config all.yaml"]


def test_the_same_results_give_the_same_bytes_in_files_of_their_name(tmp_path):
    file = write(tmp_path, [line(), line("global", gain=0.01)])
    written = render(file, tmp_path / "one")
    assert [path.name for path in written] == ["results.md", "results.html"]
    first = [path.read_bytes() for path in written]
    assert first == [path.read_bytes() for path in render(file, tmp_path / "two")]


def test_of_a_run_made_twice_the_last_line_counts(tmp_path):
    file = write(tmp_path, [line(), line(seed=2), line(gain=0.05)])
    assert [(run.seed, run.metrics["overall"].auc) for run in results.read(file)] == [
        (2, pytest.approx(0.802)),
        (1, pytest.approx(0.851)),
    ]


def test_a_half_written_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    file = write(tmp_path, [line()])
    with file.open("ab") as appended:
        appended.write(json.dumps(line("global", domain="Beauté"), ensure_ascii=False).encode()[:18])
    with caplog.at_level(logging.WARNING):
        assert [run.arm for run in results.read(file)] == ["none"]
    assert "line 2 was not written to its end" in caplog.text


def test_a_last_line_that_lacks_only_its_newline_counts(tmp_path):
    file = write(tmp_path, [line(), line("global")])
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert [run.arm for run in results.read(file)] == ["none", "global"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"domain": "bea\n{}\n', r"line 1 is not JSON .* delete the line and rerun the cell"),
        ('{"domain": "bea\n', r"line 1 is not JSON"),
        (
            json.dumps(line()) + "\n{}\n",
            r"line 2 is not a run \(domain: Field required; .* correct the line",
        ),
        (
            json.dumps(line() | {"share_of_users_scored": 1.0}),
            r"line 1 is not a run .*share_of_users_scored was renamed; write fraction_of_users_scored",
        ),
        (json.dumps(line() | {"arm": "gated_fused"}), r"line 1 is not a run .*arm: gated_fused was renamed; write"),
        (json.dumps(line() | {"seed": "x"}), r"line 1 is not a run \(seed: Input should be a valid integer"),
        (json.dumps(line(gain=0.3)), r"line 1 is not a run \(metrics.overall.auc: Input should be less than"),
        (json.dumps(line(gain=float("nan"))), r"line 1 is not a run \(metrics.overall.auc: "),
        ("\n", "holds no runs"),
    ],
)
def test_any_other_broken_line_is_an_error_that_names_it(tmp_path, text, message):
    file = tmp_path / "results.jsonl"
    file.write_text(text)
    with pytest.raises(results.ResultsError, match=message):
        results.read(file)


def test_a_missing_results_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(results.ResultsError, match="sllmr ablate --config"):
        results.read(tmp_path / "results.jsonl")


def test_the_command_writes_the_tables_into_the_output_folder_if_one_is_named(tmp_path):
    file = write(tmp_path, [line()])
    assert main(["ablate", "--report", "--results", str(file), "--output", str(tmp_path / "tables")]) == 0
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["results.html", "results.md"]
    assert not list(tmp_path.glob("*.md"))

    assert main(["ablate", "--report", "--results", str(file)]) == 0
    assert (tmp_path / "results.md").is_file()


@pytest.mark.parametrize(
    ("value", "auc", "difference"),
    [(0.80512, ".8051", "+.8051"), (1.0, "1.0000", "+1.0000"), (0.00004, ".0000", "+.0000")],
)
def test_numbers_are_printed_as_the_paper_prints_them(value, auc, difference):
    assert format_auc(value) == auc
    assert format_difference(value) == difference
    assert format_difference(-value) == difference.replace("+", "-" if value > 0.0001 else "+")


def test_tables_2_and_3_of_the_paper_agree_where_they_overlap():
    for domain, by_arm in TABLE_3.items():
        for arm in ("none", "gated_paper"):
            assert by_arm[arm][0] == TABLE_2[domain][TABLE_3_BACKBONE][TABLE_2_ARMS.index(arm)]


def test_the_papers_gains_over_llm_cf_have_their_known_range_and_mean():
    """+.0007 to +.0258, .0072 in the mean: a check sum over every row that was typed off."""
    ours, llm_cf = TABLE_2_ARMS.index("gated_paper"), TABLE_2_ARMS.index("llm_cf")
    gains = [row[ours] - row[llm_cf] for by_backbone in TABLE_2.values() for row in by_backbone.values()]
    assert (min(gains), max(gains)) == (7, 258)
    assert sum(gains) / len(gains) == pytest.approx(72, abs=0.5)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("Sports", "xdeepfm", "distill", "overall"), 0.8169),
        (("BEAUTY", "din", "llm_cf", "overall"), 0.7967),
        (("toys", "dcnv2", "gated_paper", "tail"), 0.7502),
        (("toys", "dcnv2", "pointwise", "overall"), 0.7705),
        (("toys", "din", "pointwise", "overall"), None),
        (("toys", "din", "none", "cold"), None),
        (("toys", "dcnv2", "distill", "cold"), None),
        (("toys", "dcnv2", "gated_supervised", "overall"), None),
        (("movielens", "dcnv2", "none", "overall"), None),
    ],
)
def test_the_papers_auc_is_looked_up_by_this_projects_names(cell, expected):
    assert paper_auc(*cell) == expected


def test_two_arms_are_compared_by_their_own_standard_error_whichever_line_holds_it(tmp_path):
    def lines(**versus: dict) -> list[dict]:
        first, second = line("text_match", gain=0.01, valid_auc=0.9), line("stacked_text", gain=0.004)
        for entry, arm in ((first, "text_match"), (second, "stacked_text")):
            if arm in versus:
                entry["versus"] |= versus[arm]
        return [line(), first, second]

    def cell(entries: list[dict]) -> str:
        return table(rendered(tmp_path, entries), "text_match against the others: beauty, overall")["dcnv2"][
            "stacked_text"
        ]

    def difference(value: float) -> dict:
        return {name: {"difference": value, "standard_error": 0.0005} for name in SIZES}

    half = 1.959963984540054 * 0.0005
    expected = f"[{format_difference(0.006 - half)}, {format_difference(0.006 + half)}]"
    assert expected in cell(lines(text_match={"stacked_text": difference(0.006)}))
    assert expected in cell(lines(stacked_text={"text_match": difference(-0.006)}))
    half = 1.959963984540054 * 0.002
    assert f"[{format_difference(0.006 - half)}, {format_difference(0.006 + half)}]" in cell(lines())


def test_a_line_of_before_counts_rows_and_the_report_says_so(tmp_path):
    earlier = line("global", gain=0.01)
    versus = earlier.pop("versus")
    markdown = rendered(tmp_path, [line(), {**earlier, "versus_none": versus["none"]}])
    assert "+.0100" in table(markdown, "beauty, Table 2: every backbone, overall")["dcnv2"]["global"]
    assert [text for text in warnings(markdown) if text.startswith("1 of 2 runs are from before 2026-11-29")]


def measure(value: float, versus: dict[str, float] | None = None, error: float = 0.001, **baselines: float) -> dict:
    differences = {arm: {"difference": d, "standard_error": error} for arm, d in (versus or {}).items()}
    return {"value": value, "users": 1500, "versus": differences, "baselines": baselines}


RANKING = {"sampled": {"users": 1500, "candidates": 101, "hash": "12ab" * 16}}


def further(ndcg: dict | None, log_loss: dict | None = None) -> dict:
    return {
        "further_metrics": {
            "sampled_ndcg_at_10": {"overall": ndcg, "cold": None},
            "log_loss": {"overall": log_loss or measure(0.5)},
        },
        "rankings": RANKING,
    }


def further_lines() -> list[dict]:
    """Five seeds: NDCG of none .40 plus a thousandth for each seed; text_match .01 above it, stacked another .02."""
    lines = []
    for seed in FIVE:
        base = 0.4 + seed / 1000
        lines += [
            line(seed=seed, **further(measure(base, popularity=0.2, llm_scorer=0.3), measure(0.6))),
            line("text_match", seed, **further(measure(base + 0.01, {"none": 0.01}), measure(0.55, {"none": -0.05}))),
            line(
                "stacked",
                seed,
                **further(measure(base + 0.03, {"none": 0.03, "text_match": 0.02}), measure(0.65, {"none": 0.05})),
            ),
        ]
    return lines


def test_the_further_metrics_stand_by_arm_with_intervals_and_baselines(tmp_path):
    markdown = rendered(tmp_path, further_lines())
    rows = table(markdown, "beauty, further metrics of dcnv2, overall")
    ndcg, loss = "NDCG@10, sampled items", "log loss, less is better"
    assert list(rows) == ["popularity", "LLM scorer alone", "none", "stacked", "text_match"]
    assert list(rows["none"]) == [loss, ndcg]
    assert (rows["popularity"][ndcg], rows["LLM scorer alone"][ndcg]) == (".2000", ".3000")
    assert rows["popularity"][loss] == "–"
    # As in the tables of AUC: the seeds' standard error .0007, the interval 1.96 * .001.
    assert rows["none"][ndcg] == ".4030 (.0007)"
    assert rows["text_match"][ndcg] == ".4130 (.0007)<br>+.0100 [+.0080, +.0120] *"
    assert (
        rows["stacked"][ndcg] == ".4330 (.0007)<br>+.0300 [+.0280, +.0320] *<br>text_match: +.0200 [+.0180, +.0220] *"
    )
    assert "log loss: 1,500; NDCG@10, sampled items: 1,500." in markdown
    assert "Candidates, sampled: at most 100 beside the positive, hash 12ab12ab12ab12ab." in markdown
    assert "further metrics of dcnv2, cold" not in markdown


def test_less_log_loss_is_colored_as_a_gain(tmp_path):
    page = render(write(tmp_path, further_lines()), tmp_path / "report")[1].read_text()
    below = page.split("further metrics of dcnv2, overall")[1]
    classes = dict(re.findall(r'<td class="(good|bad)">(\.5500|\.6500)', below))
    assert classes == {"good": ".5500", "bad": ".6500"}


def test_arms_without_further_metrics_have_no_row_and_an_unscored_ranking_is_a_dash(tmp_path):
    lines = [line(), line("global"), line("text_match", **further(None, measure(0.5, {"none": 0.1})))]
    lines += [line("stacked", **further(measure(0.4)))]
    rows = table(rendered(tmp_path, lines), "beauty, further metrics of dcnv2, overall")
    assert list(rows) == ["stacked", "text_match"]
    assert rows["text_match"]["NDCG@10, sampled items"] == "–"
    assert rows["text_match"]["log loss, less is better"].startswith(".5000<br>+.1000")


@pytest.mark.parametrize("name", ["amazon", "amazon-text-match"])
def test_the_committed_results_are_from_before_the_further_metrics_and_are_reported_without(tmp_path, name):
    file = pathlib.Path(__file__).parents[3] / "benchmarks" / "results" / f"{name}.jsonl"
    runs = [run for run in results.read(file) if not run.further_metrics]
    assert runs
    assert all(domain_tables([run for run in runs if run.domain == d]).further == [] for d in {r.domain for r in runs})


def test_a_further_metrics_difference_is_that_of_the_two_values_where_the_candidates_are_the_same(tmp_path):
    def differences(**changes) -> tuple[float, float]:
        again = line(**(further(measure(0.45), measure(0.7)) | changes))
        first = line(**further(measure(0.4), measure(0.6)))
        compared = line("global", **further(measure(0.5, {"none": 0.1}), measure(0.5, {"none": -0.1})))
        (run,) = (r for r in results.read(write(tmp_path, [first, compared, again])) if r.arm == "global")
        return tuple(
            run.further_metrics[metric]["overall"].versus["none"].difference
            for metric in ("sampled_ndcg_at_10", "log_loss")
        )

    assert differences() == pytest.approx((0.05, -0.2))
    elsewhere = {"sampled": RANKING["sampled"] | {"hash": "other"}}
    assert differences(rankings=elsewhere) == pytest.approx((0.1, -0.2))


def test_runs_that_ranked_other_candidates_are_a_warning(tmp_path):
    elsewhere = {"sampled": RANKING["sampled"] | {"hash": "f" * 64}}
    lines = [line(**further(measure(0.4))), line("global", **(further(measure(0.5)) | {"rankings": elsewhere}))]
    assert (
        "Runs disagree in the candidates of the ranking among sampled (1 with 12ab12ab12ab12ab; 1 with "
        "ffffffffffffffff): their NDCG and hit rate are not comparable." in warnings(rendered(tmp_path, lines))
    )

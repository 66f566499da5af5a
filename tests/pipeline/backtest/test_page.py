"""What backtest.html and the terminal say."""

import re

import pytest
from rich.console import Console

from sllmr.pipeline.backtest import page
from sllmr.pipeline.backtest.result import RESCORED, SCORED_ONCE
from tests.pipeline.backtest.reports import backtest_report, mean, window


def cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the table below a heading, without markup."""
    table = text[text.index(f"<h2>{heading}</h2>") :]
    table = table[: table.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[re.sub("<.*?>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows][1:]


def rendered(tmp_path, report) -> str:
    page.write(report, tmp_path / "backtest.html")
    return (tmp_path / "backtest.html").read_text()


def test_the_tables_hold_both_series_of_each_window(tmp_path):
    text = rendered(tmp_path, backtest_report())
    gains = cells(text, "Gain by window")
    assert [row[:2] for row in gains[2:4]] == [
        ["2026-03-02 to 2026-03-03", "rescored"],
        ["2026-03-02 to 2026-03-03", "scored once"],
    ]
    assert gains[2][2:] == [
        *("140", "1,200", "0.8120", "0.8000", "0.7100", "+0.0120", "+0.0020 to +0.0220", "+0.0120", "+0.0120")
    ]
    assert gains[-1][:2] == ["mean", "scored once"]
    assert gains[-1][7:9] == ["+0.0065", "+0.0045 to +0.0085"]
    costs = cells(text, "Cost, scores and training")
    expected = [
        "$0.0123",
        "12",
        "80",
        "68 / 12 / 2 / 4",
        "3,210",
        "warm",
        "without",
        "yes",
        "1 of 1 beyond; item_brand 0.310",
    ]
    assert costs[2] == ["2", "rescored", *expected]
    assert costs[0][5:9] == ["-", "3,210", "cold", "with LLM"]
    assert "Window 2: drift: 12.5% of 200 pairs changed their order" in text
    assert text.count("<svg ") == 1


@pytest.mark.parametrize(
    ("difference", "words", "kind"),
    [
        (0.008, "Scoring again helps: ", "good"),
        (-0.008, "Scoring again hurts: ", "bad"),
        (0.001, "Whether scoring again helps is not distinguishable on this much test data: ", "note"),
    ],
)
def test_the_answer_follows_the_interval_of_the_mean(tmp_path, difference, words, kind):
    report = backtest_report()
    rescoring = report.rescoring.model_copy(
        update={"mean": report.rescoring.mean.model_validate(mean(difference, windows=5))}
    )
    report = report.model_copy(update={"rescoring": rescoring})
    (first, *_) = page.sentences(report)
    assert first.startswith(words)
    assert (
        f"{difference:+.4f} (95% interval {difference - 0.002:+.4f} to {difference + 0.002:+.4f}; the mean of" in first
    )
    assert "It cost $0.0615 and 60 requests." in first
    assert f'<p class="{kind}">{words}' in rendered(tmp_path, report)


def test_a_backtest_without_numbers_yet_and_one_that_measures_nothing_are_pages_too(tmp_path):
    report = backtest_report()
    empty = {name: {"windows": []} for name in (RESCORED, SCORED_ONCE)}
    begun = backtest_report(series=empty, rescoring=None)
    text = rendered(tmp_path, begun)
    assert "The series rescored has 0 of 6 windows so far; run the same command to continue." in text
    assert page.sentences(begun) == []

    nothing = {"windows": [window(1, None, cost_usd=None, popularity=None)]}
    text = rendered(tmp_path, backtest_report(series={RESCORED: nothing, SCORED_ONCE: nothing}, rescoring=None))
    assert cells(text, "Gain by window")[0][4:] == ["-", "-", "-", *["not measurable", "-"], *["not measurable"] * 2]
    assert cells(text, "Cost, scores and training")[0][2] == "an unknown price"
    assert report.rescoring is not None


def test_windows_of_two_versions_of_the_code_are_pointed_out(tmp_path):
    report = backtest_report()
    assert "versions of" not in rendered(tmp_path, report)
    windows = report.series[RESCORED].windows
    mixed = report.series[RESCORED].model_copy(update={"windows": (*windows[:-1], window(6, 0.01, code="0ther"))})
    text = rendered(tmp_path, report.model_copy(update={"series": {**report.series, RESCORED: mixed}}))
    assert "The windows were run by 2 versions of" in text


def test_the_terminal_shows_each_window_and_the_answer():
    console = Console(record=True, width=200)
    page.show(backtest_report(), console)
    said = console.export_text()
    assert re.search(r"2026-03-03 +scored once +1,200 +\+0.0070 +-0.0030 to \+0.0170 +\$0.0000", said)
    assert "Scoring again helps" in said

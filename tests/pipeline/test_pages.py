"""What report.html, pilot.html and backtest.html look like on a phone and on a desk, by day and by night."""

import pathlib
import re

import matplotlib.image
import numpy as np
import pytest

from sllmr.pipeline import report
from sllmr.pipeline.backtest import page as backtest_page
from sllmr.pipeline.pilot import page as pilot_page
from sllmr.pipeline.pilot.result import PilotReport
from tests.pipeline.backtest.reports import backtest_report
from tests.pipeline.chromium import chromium, open_page
from tests.pipeline.test_report import summary

NARROW, WIDE = 420, 1280
PAGES = {"light": (255, 255, 255), "dark": (20, 26, 35)}
"""Ground of a page by scheme: --page of templates/style.css.j2."""


def pilot() -> PilotReport:
    return PilotReport.model_validate(
        {
            "recommendation": "partial",
            "slices_first": ["short_history/tail"],
            "reason": "the gain is there",
            "name": "a-shop-with-a-rather-long-name",
            "model": "org/some-model-with-a-long-name-4.1",
            "strategy": "listwise",
            "predicted": [
                {
                    "coverage": coverage,
                    "users_reached": coverage,
                    "difference": 0.01 * coverage,
                    "lower": -0.001,
                    "upper": 0.02,
                    "cost_usd": 12.5 * coverage,
                    "seconds": 3600.0 * coverage,
                }
                for coverage in (0.1, 0.5, 1.0)
            ],
            "gain": {
                "difference": 0.02,
                "lower": 0.01,
                "upper": 0.03,
                "base_model": 0.7,
                "without_llm": 0.71,
                "with_llm": 0.73,
            },
            "reliability": [
                {
                    "short_history": short,
                    "tail": tail,
                    "pairs": 200,
                    "llm_right": 0.7,
                    "lower": 0.6,
                    "upper": 0.8,
                    "model_right": 0.6,
                    "gain": 0.01,
                    "gain_lower": -0.01,
                    "gain_upper": 0.03,
                }
                for short in (True, False)
                for tail in (True, False)
            ],
            "contexts": 200,
            "pairs": 800,
            "users": 190,
            "distillation_kept": 0.5,
            "distillation_kept_range": (0.3, 0.7),
            "cost_usd": 1.5,
            "seconds": 61.0,
        }
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, pathlib.Path]:
    directory = tmp_path_factory.mktemp("pages")
    right = {"fraction": 0.7, "lower": 0.61, "upper": 0.79}
    cells = [
        {
            "history_from": history,
            "popularity_from": popularity,
            "pairs": 50,
            "mean_alpha": 0.2 + popularity / 40,
            "calibration_pairs": 40,
            "llm_right": right,
            "model_right": right,
        }
        for history in (0, 4, 10)
        for popularity in (0, 5, 20)
    ]
    quantiles = {"0.05": 0.1, "0.25": 0.2, "0.5": 0.3, "0.75": 0.4, "0.95": 0.5}
    made = summary(training={"reliability": cells, "alpha_by_epoch": [quantiles] * 3})
    report.write(made, directory / "report.html")
    pilot_page.write(pilot(), directory / "pilot.html")
    backtest_page.write(backtest_report(), directory / "backtest.html")
    return {path.stem: path for path in directory.iterdir()}


@pytest.mark.parametrize("name", ["report", "pilot", "backtest"])
def test_a_page_needs_no_network_fits_any_width_and_describes_its_plots(pages, name):
    text = pages[name].read_text()

    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "color-scheme: light dark" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)', text)
    style = text[text.index("<style>") : text.index("</style>")]
    wide = [width for width in re.findall(r"(?<!max-)width:\s*(\d+)px", style) if int(width) > NARROW]
    assert wide == []
    drawings = re.findall(r"<svg [^>]*>", text)
    assert drawings
    assert all(re.search(r'role="img" aria-label="[^"]+"', drawing) for drawing in drawings)
    # Grounds are transparent and ink follows the page's: no white rectangle, no black text.
    for drawing in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        assert not re.search(r"fill: ?(#ffffff|white)[^;]*; opacity: ?1", drawing)
        assert "currentColor" in drawing


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="CHROMIUM names no Chromium, and none is on PATH")
def test_screenshots_on_a_phone_and_on_a_desk_by_day_and_by_night(pages, tmp_path):
    with open_page(chromium()) as page:
        for name, file in pages.items():
            for width in (NARROW, WIDE):
                for scheme, ground in PAGES.items():
                    page.show(file, width, scheme)
                    what = f"{name} at {width} in {scheme}"
                    assert page.value("document.documentElement.scrollWidth") <= width, what
                    assert _contrast(page, "body", ground) > 7, what
                    for kind in (".note", ".bad", ".good"):
                        if page.value(f"document.querySelectorAll('{kind}').length"):
                            assert _contrast(page, kind, ground) > 4.5, f"{what}: {kind}"
                    picture = tmp_path / f"{name}-{width}-{scheme}.png"
                    page.screenshot(picture)
                    _check(picture, page, width, ground, what)


def _check(picture: pathlib.Path, page, width: int, ground: tuple[int, int, int], what: str) -> None:
    """The picture has the ground of its scheme, also in the corners of each plot, and something on it."""
    pixels = np.round(matplotlib.image.imread(picture)[:, :, :3] * 255).astype(int)
    assert pixels.shape[1] == width, what
    assert tuple(pixels[2, 2]) == ground, what
    assert 0.01 < (pixels != np.array(ground)).any(axis=2).mean() < 0.6, what
    corners = page.value(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.left + window.scrollX, r.top + window.scrollY, r.right, r.width])"
    )
    assert corners, what
    for left, top, right, drawn in corners:
        assert left >= 0, what
        assert right <= width, what
        assert drawn > 100, what
        assert tuple(pixels[round(top) + 1, round(left) + 1]) == ground, f"{what}: a plot is an island"


def _contrast(page, selector: str, ground: tuple[int, int, int]) -> float:
    """Ratio of luminances of text and ground, from 1 to 21. Source: WCAG 2.1, 1.4.3."""
    color = page.value(f"getComputedStyle(document.querySelector('{selector}')).color")
    ink = [int(part) for part in re.findall(r"\d+", color)[:3]]

    def luminance(rgb) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    bright, dim = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)

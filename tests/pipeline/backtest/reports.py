"""A made-up report of a backtest, for tests of what is shown."""

from typing import Any

from sllmr.pipeline.backtest.result import RESCORED, SCORED_ONCE, BacktestReport, WindowResult
from sllmr.pipeline.config import Config

DRIFT = {
    "pairs": 200,
    "flipped": 25,
    "flip_rate": 0.125,
    "interval_95": (0.086, 0.178),
    "contexts": 12,
    "shared_candidates": 80,
    "mean_absolute_change": 0.061,
    "mean_kendall_tau": 0.71,
    "contexts_with_tau": 11,
}


def window(number: int, gain: float | None, **changes: Any) -> WindowResult:
    """A window of 1,200 test rows; `gain` None is not measurable."""
    half = 0.01
    part: dict[str, Any] = {
        "difference": gain,
        "lower": None if gain is None else gain - half,
        "upper": None if gain is None else gain + half,
        "with_llm": None if gain is None else 0.8 + gain,
        "without_llm": None if gain is None else 0.8,
        "users": 140,
        "examples": 1200,
    }
    requests = {"planned": 12, "sent": 12, "cached": 0, "failed": 0, "refused_by_budget": 0, "retried": 0}
    again = {"kept": 68, "scored_again": {"history": 9, "prompt": 3, "age": 0}, "new": 2, "gone": 4, "drift": DRIFT}
    distance = {"feature": "item_brand", "against": "last_run", "measure": "l_infinity", "value": 0.31}
    found: dict[str, Any] = {
        "number": number,
        "slices": dict.fromkeys(("overall", "cold", "tail"), part),
        "popularity": 0.71,
        "took_pairs": number != 2,
        "blessed": True,
        "contexts": 80,
        "pairs": 3210,
        "requests": requests,
        "cost_usd": 0.0123,
        "rescore": again if number > 1 else None,
        "cold_because": None if number > 1 else "no earlier model",
        "drift": [{**distance, "threshold": 0.05}] if number > 1 else [],
        "code": "c0de",
        "seconds": 61.0,
        **changes,
    }
    return WindowResult.model_validate(found)


def mean(difference: float, windows: int) -> dict[str, Any]:
    return {
        "difference": difference,
        "lower": difference - 0.002,
        "upper": difference + 0.002,
        "windows": windows,
        "users": 321,
    }


def backtest_report(windows: int = 6, **changes: Any) -> BacktestReport:
    """A finished backtest in which scoring again helps."""
    once = {"cost_usd": 0.0, "rescore": None}
    rescored_windows = [window(n, 0.01 + 0.001 * n) for n in range(1, windows + 1)]
    once_windows = [rescored_windows[0], *(window(n, 0.01 - 0.001 * n, **once) for n in range(2, windows + 1))]
    values: dict[str, Any] = {
        "name": "a-shop-with-a-rather-long-name",
        "model": "org/some-model-with-a-long-name-4.1",
        "strategy": "listwise",
        "periods": [
            {
                "number": n,
                "train_from": f"2026-01-{n:02}",
                "valid_from": f"2026-02-{n:02}",
                "test_from": f"2026-03-{n:02}",
                "until": f"2026-03-{n + 1:02}",
            }
            for n in range(1, windows + 1)
        ],
        "series": {
            RESCORED: {"windows": rescored_windows, "mean": {"overall": mean(0.0135, windows)}},
            SCORED_ONCE: {"windows": once_windows, "mean": {"overall": mean(0.0065, windows)}},
        },
        "rescoring": {
            "windows": [
                {"number": n, "difference": 0.002 * n, "lower": -0.01, "upper": 0.03} for n in range(2, windows + 1)
            ],
            "mean": mean(0.008, windows - 1),
            "cost_usd": 0.0615,
            "requests": 60,
        },
        "tables": "0" * 64,
        "config": Config.model_validate({"data": {"interactions": "interactions.csv", "items": "items.csv"}}),
        **changes,
    }
    return BacktestReport.model_validate(values)

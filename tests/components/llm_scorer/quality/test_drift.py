import dataclasses
import itertools
import math
import random

import pytest

from sllmr.components.llm_scorer.quality.drift import drift_between, drift_line, drift_report
from sllmr.components.scores import POPULAR, ScoreRecord


def record(scores: dict[str, float]) -> ScoreRecord:
    return ScoreRecord(
        context_id="c",
        history_item_ids=("h",),
        history_length=1,
        item_ids=tuple(scores),
        llm_scores=tuple(scores.values()),
        raw_scores=tuple(scores.values()),
        roles=(POPULAR,) * len(scores),
        model="m",
        strategy="s",
        prompt_version="p",
        scored_at=0,
    )


def random_pair(rng: random.Random, levels: int = 6) -> tuple[dict[str, float], dict[str, float]]:
    """Scores before and after of overlapping candidates, with ties."""
    before = {f"i{n}": rng.randrange(levels) / 5 for n in range(9)}
    after = {f"i{n}": rng.randrange(levels) / 5 for n in rng.sample(range(3, 14), 9)}
    return before, after


def test_kendalls_tau_is_that_of_a_plain_loop_over_the_candidates_in_common():
    rng = random.Random(1)
    for _ in range(30):
        before, after = random_pair(rng)
        agreement = strict_before = strict_after = 0
        for a, b in itertools.combinations(before.keys() & after.keys(), 2):
            one, two = before[a] - before[b], after[a] - after[b]
            agreement += (one * two > 0) - (one * two < 0)
            strict_before += one != 0
            strict_after += two != 0
        # tau-b = (C - D) / sqrt((n - T_before) (n - T_after)); Kendall 1945, Biometrika 33.
        expected = agreement / math.sqrt(strict_before * strict_after)
        assert drift_between(record(before), record(after)).tau == pytest.approx(expected, abs=1e-12)


def test_flips_and_changes_are_those_of_a_plain_loop():
    rng = random.Random(2)
    contexts = [random_pair(rng) for _ in range(25)]
    flipped = pairs = candidates = 0
    change = 0.0
    for before, after in contexts:
        for a in before:
            if a not in after:
                continue
            candidates += 1
            change += abs(before[a] - after[a])
            for b in before:
                if b < a and b in after and before[a] != before[b] and after[a] != after[b]:
                    pairs += 1
                    flipped += (before[a] < before[b]) != (after[a] < after[b])
    report = drift_report((record(before), record(after)) for before, after in contexts)
    assert 0 < flipped < pairs
    assert (report.contexts, report.shared_candidates) == (25, candidates)
    assert (report.pairs, report.flipped) == (pairs, flipped)
    assert report.flip_rate == flipped / pairs
    assert report.mean_absolute_change == pytest.approx(change / candidates)


def test_an_order_that_ties_everything_has_no_tau_and_does_not_count_in_the_mean():
    flat, slope = record({"a": 0.5, "b": 0.5}), record({"a": 0.1, "b": 0.9})
    assert drift_between(flat, slope).tau is drift_between(slope, flat).tau is None
    assert drift_between(record({"a": 0.5}), record({"a": 0.1})).tau is None
    report = drift_report([(flat, slope), (slope, dataclasses.replace(slope, llm_scores=(0.9, 0.1)))])
    assert (report.mean_kendall_tau, report.contexts_with_tau) == (-1, 1)
    assert "100.0% of 1 pairs changed their order" in drift_line(report)


def test_nothing_in_common_is_told_as_that():
    report = drift_report([(record({"a": 0.5}), record({"b": 0.5}))])
    assert report.flip_rate is report.mean_absolute_change is report.mean_kendall_tau is None
    assert drift_line(report) == "drift: 1 contexts scored again, no pair that both scores order"

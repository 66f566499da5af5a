import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features
from sllmr.models.features import NOT_CALIBRATION, OTHER, PREFERRED
from sllmr.models.fractions import wilson
from sllmr.models.reliability import (
    HISTORY_FROM,
    POPULARITY_FROM,
    ReliabilityCell,
    calibration_error,
    collapse,
    labeled,
    model_is_right,
    reliability_cells,
)


def made_pairs(number: int = 500, *, base_model: bool = True) -> dict[str, tf.Tensor]:
    source = np.random.default_rng(2)
    made = {
        features.HISTORY_LENGTH: source.integers(0, 15, number),
        PREFERRED + features.ITEM_TRAIN_COUNT: source.integers(0, 40, number),
        OTHER + features.ITEM_TRAIN_COUNT: source.integers(0, 40, number),
        features.CALIBRATION_LABEL: source.integers(-1, 2, number),
    }
    if base_model:
        made |= {p + features.BASE_LOGIT: source.normal(size=number) for p in (PREFERRED, OTHER)}
    return {name: tf.constant(values) for name, values in made.items()}


def plain_cell(alpha, pairs, calibration_pairs, history_from, history_to, popularity_from, popularity_to) -> dict:
    """One cell, pair by pair."""
    number, alphas, llm, model = 0, [], [], []
    for n in range(len(alpha)):
        counts = [int(pairs[prefix + features.ITEM_TRAIN_COUNT][n]) for prefix in (PREFERRED, OTHER)]
        if not history_from <= int(pairs[features.HISTORY_LENGTH][n]) < history_to:
            continue
        if not popularity_from <= min(counts) < popularity_to:
            continue
        number += 1
        alphas.append(alpha[n])
        if calibration_pairs[n]:
            chose_preferred = int(pairs[features.CALIBRATION_LABEL][n]) == 1
            logits = [float(pairs[prefix + features.BASE_LOGIT][n]) for prefix in (PREFERRED, OTHER)]
            llm.append(chose_preferred)
            model.append((logits[0] > logits[1]) if chose_preferred else (logits[0] <= logits[1]))
    return {"pairs": number, "alpha": np.mean(alphas), "llm": llm, "model": model}


@pytest.mark.slow
def test_cells_are_those_of_a_plain_loop():
    pairs = made_pairs()
    alpha = np.random.default_rng(3).uniform(size=500)
    calibration_pairs = labeled(pairs) & (np.arange(500) % 2 == 0)  # held out: some of the labeled
    cells = reliability_cells(alpha, pairs, calibration_pairs)

    ends = [(*edges[1:], 10**9) for edges in (HISTORY_FROM, POPULARITY_FROM)]
    assert len(cells) == len(HISTORY_FROM) * len(POPULARITY_FROM)
    for n, cell in enumerate(cells):
        row, column = divmod(n, len(POPULARITY_FROM))
        assert (cell.history_from, cell.popularity_from) == (HISTORY_FROM[row], POPULARITY_FROM[column])
        plain = plain_cell(
            alpha, pairs, calibration_pairs, HISTORY_FROM[row], ends[0][row], POPULARITY_FROM[column], ends[1][column]
        )
        assert (cell.pairs, cell.calibration_pairs) == (plain["pairs"], len(plain["llm"]))
        assert cell.mean_alpha == pytest.approx(plain["alpha"])
        assert cell.llm_right.fraction == pytest.approx(np.mean(plain["llm"]))
        assert cell.model_right.fraction == pytest.approx(np.mean(plain["model"]))
        assert cell.llm_right == wilson(sum(plain["llm"]), len(plain["llm"]))


def test_cells_say_nothing_of_what_was_not_measured():
    pairs = made_pairs(base_model=False) | {features.HISTORY_LENGTH: tf.ones(500, tf.int32)}
    cells = reliability_cells(np.full(500, 0.5), pairs, labeled(pairs))

    assert model_is_right(pairs) is None
    assert all(cell.model_right is None for cell in cells)
    empty = [cell for cell in cells if cell.history_from > 0]
    assert {(c.pairs, c.calibration_pairs, c.mean_alpha, c.llm_right) for c in empty} == {(0, 0, None, None)}


def test_a_base_model_that_scores_both_items_equally_counts_as_preferring_the_other_one():
    logits = {PREFERRED: [1.0, 1.0, 0.0, 0.0, 2.0, 2.0], OTHER: [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]}
    pairs = {prefix + features.BASE_LOGIT: tf.constant(values) for prefix, values in logits.items()}
    pairs[features.CALIBRATION_LABEL] = tf.constant([1, 0, 1, 0, 1, 0])

    np.testing.assert_array_equal(model_is_right(pairs), [True, False, False, True, False, True])


def test_pairs_without_a_known_choice_are_not_labeled():
    pairs = {features.CALIBRATION_LABEL: tf.constant([1, NOT_CALIBRATION, 0])}
    np.testing.assert_array_equal(labeled(pairs), [True, False, True])


def test_calibration_error_is_that_of_a_plain_loop_over_bins():
    source = np.random.default_rng(5)
    probability = np.append(source.uniform(size=400), [0.0, 1.0])
    right = source.uniform(size=402) < np.where(probability < 0.5, probability**2, np.sqrt(probability))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, r in zip(probability, right, strict=True):
        bins.setdefault(min(int(p * 10), 9), []).append((p, r))
    expected = sum(len(b) / 402 * abs(np.mean([p for p, _ in b]) - np.mean([r for _, r in b])) for b in bins.values())

    assert calibration_error(probability, right) == pytest.approx(expected)
    assert expected > 0.1


def test_a_probability_that_comes_true_has_no_calibration_error():
    assert calibration_error(np.repeat([0.25, 0.75], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0])) == 0.0


def cell(alpha: float, calibration_pairs: int, llm: float, model: float | None = None) -> ReliabilityCell:
    """A cell with these fractions of right orders."""
    return ReliabilityCell(
        history_from=0,
        popularity_from=0,
        pairs=100,
        mean_alpha=alpha,
        calibration_pairs=calibration_pairs,
        llm_right=wilson(round(llm * calibration_pairs), calibration_pairs) if calibration_pairs else None,
        model_right=wilson(round(model * calibration_pairs), calibration_pairs)
        if calibration_pairs and model is not None
        else None,
    )


CLOSED = np.array([0.01] * 99 + [0.9])
OPEN = np.array([0.99] * 99 + [0.1])
OPEN_IN_SEVEN_OF_A_HUNDRED = np.array([0.01] * 93 + [0.9] * 7)
CLOSED_IN_SEVEN_OF_A_HUNDRED = 1.0 - OPEN_IN_SEVEN_OF_A_HUNDRED
MIXED = np.array([0.01] * 50 + [0.99] * 50)


@pytest.mark.parametrize(
    ("alpha", "cells", "expected"),
    [
        (CLOSED, [cell(0.01, 400, 0.7), cell(0.02, 400, 0.6)], "closed"),
        (CLOSED, [cell(0.01, 400, 0.5), cell(0.02, 400, 0.5)], None),
        (CLOSED, [cell(0.01, 400, 0.8, model=0.6)], "closed"),
        (CLOSED, [cell(0.01, 400, 0.8, model=0.85)], None),
        (CLOSED, [cell(0.01, 10, 0.5)], "closed"),
        (CLOSED, [cell(0.01, 0, 0.5)], "closed"),
        (CLOSED, [cell(0.01, 14, 0.5), cell(0.02, 15, 0.5)], "closed"),
        (CLOSED, [cell(0.01, 15, 0.5), cell(0.02, 15, 0.5)], None),  # 30 pairs tell
        (OPEN_IN_SEVEN_OF_A_HUNDRED, [cell(0.01, 400, 0.7)], None),  # below .05 on 93% of the pairs, not on 95%
        (CLOSED_IN_SEVEN_OF_A_HUNDRED, [cell(0.9, 400, 0.7)], None),
        (OPEN, [cell(0.99, 400, 0.7), cell(0.98, 0, 0.0)], "open"),
        (OPEN, [cell(0.99, 400, 0.97)], None),
        (OPEN, [cell(0.99, 400, 1.0)], None),
        (OPEN, [cell(0.99, 10, 1.0)], "open"),
        (OPEN, [cell(0.99, 0, 1.0)], "open"),
        (MIXED, [cell(0.9, 400, 0.5), cell(0.1, 400, 0.9)], "inverted"),
        (MIXED, [cell(0.9, 400, 0.9), cell(0.1, 400, 0.5)], None),
        (MIXED, [cell(0.9, 400, 0.8, model=0.9), cell(0.1, 400, 0.7, model=0.5)], "inverted"),
        (MIXED, [cell(0.9, 400, 0.7, model=0.5), cell(0.1, 400, 0.8, model=0.9)], None),
        (MIXED, [cell(0.9, 29, 0.5), cell(0.1, 29, 0.9)], None),  # too few to tell
        (MIXED, [cell(0.9, 30, 0.5), cell(0.1, 30, 0.9)], "inverted"),
        (MIXED, [cell(0.9, 400, 0.7), cell(0.1, 400, 0.72)], None),  # not significant
        (MIXED, [cell(0.52, 400, 0.5), cell(0.5, 400, 0.9)], None),  # as good as flat
        (MIXED, [cell(0.9, 0, 0.5), cell(0.1, 400, 0.9)], None),
        (MIXED, [cell(0.08, 400, 0.5), cell(0.04, 400, 0.9)], "inverted"),  # though nearly closed
        (MIXED, [cell(0.08, 400, 0.5, model=0.9), cell(0.04, 400, 0.5, model=0.6)], None),  # a useless LLM
    ],
)
def test_the_alarm_fires_on_a_gate_that_the_calibration_pairs_speak_against_and_on_no_other(alpha, cells, expected):
    assert collapse(alpha, cells) == expected

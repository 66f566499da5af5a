"""A small version of the planted markets: where the gate opens, and when the alarm rings."""

import numpy as np
import pytest

from benchmarks import planted_market
from sllmr.models import features
from sllmr.models.features import NOT_CALIBRATION

SIZE = planted_market.Size(train=4000, valid=1000, test=1000)


@pytest.mark.parametrize("plant", planted_market.PLANTS)
@pytest.mark.slow
def test_the_llm_is_right_where_it_was_planted_and_a_coin_elsewhere(plant):
    planted = planted_market.make_planted(plant, 3, SIZE)
    label = np.asarray(planted.pairs[features.CALIBRATION_LABEL])
    known, unknown = planted.knows.all(axis=1), ~planted.knows.any(axis=1)
    calibration = label != NOT_CALIBRATION

    for inside, low, high in ((known & calibration, 0.7, 1.0), (unknown & calibration, 0.4, 0.6)):
        if inside.any():
            assert low < label[inside].mean() < high
    everything = {"useless": 0.0, "right_everywhere": 1.0}
    assert planted.knows.mean() == everything.get(plant, pytest.approx(0.5, abs=0.49))


@pytest.mark.slow
@pytest.mark.parametrize("plant", ["right_in_short_history_and_tail", "right_elsewhere"])
def test_the_stacked_gate_opens_where_the_llm_was_planted_right_and_is_sound(plant):
    measured = planted_market.run_arm(planted_market.make_planted(plant, 2, SIZE), "stacked", 2)

    assert measured["order_matches"]
    assert measured["alarm"] is None


@pytest.mark.slow
def test_the_paper_gate_closes_fastest_where_the_llm_is_right_and_the_alarm_rings():
    measured = planted_market.run_arm(
        planted_market.make_planted("right_in_short_history_and_tail", 2, SIZE), "paper", 2
    )

    assert not measured["order_matches"]
    assert measured["alarm"] in ("closed", "inverted")

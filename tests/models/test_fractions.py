import math

import pytest

from sllmr.models.fractions import wilson

Z = 1.959963984540054


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (1, 7), (7, 12), (312, 1000), (1, 2), (9999, 10**6)])
def test_the_interval_is_wilsons_formula(successes, trials):
    fraction = wilson(successes, trials)
    p, n = successes / trials, trials
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    expected = [(p + Z**2 / (2 * n) + sign * half) / (1 + Z**2 / n) for sign in (-1, 1)]

    assert fraction.fraction == p
    assert (fraction.lower, fraction.upper) == pytest.approx(expected, abs=1e-12)

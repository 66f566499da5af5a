import pytest
import scipy.stats

from models.shares import wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (1, 7), (7, 12), (312, 1000), (1, 2)])
def test_the_interval_is_scipys_wilson_interval(successes, trials):
    share = wilson(successes, trials)
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")

    assert share.share == successes / trials
    assert (share.lower, share.upper) == pytest.approx((expected.low, expected.high))

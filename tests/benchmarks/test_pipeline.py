"""What the pipeline benchmark rests on: users of the promised sizes, and costs that go to the step that had them."""

import numpy as np
import pytest

from benchmarks import pipeline
from benchmarks.measurement import Line, Measured, Sample


@pytest.mark.parametrize(("interactions", "heavy"), [(50_000, 5_000), (2_000_000, 100_000)])
def test_users_add_up_and_the_first_is_the_heavy_one(interactions, heavy):
    sizes = list(pipeline.user_sizes(interactions, np.random.default_rng(1)))
    assert sum(sizes) == interactions
    assert sizes[0] == heavy
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) >= 5


def test_each_step_gets_the_time_the_cpu_and_the_peak_between_its_line_and_the_next():
    samples = tuple(
        Sample(at=at, cpu_s=cpu_s, rss_mb=rss_mb)
        for at, cpu_s, rss_mb in ((100, 0, 50), (104, 3, 300), (110, 5, 200), (116, 16, 900), (120, 18, 400))
    )
    lines = (
        Line(90 + 14, "[ 1/2] Transform\n"),
        Line(105, "        data: [10/20] Trainer is not a step\n"),
        Line(110, "[ 2/2] Trainer\n"),
    )
    measured = Measured(seconds=20, cpu_s=18, peak_rss_mb=900, samples=samples, lines=lines)
    assert pipeline.by_step(measured) == {
        "start": {"seconds": 4, "cpu_s": 3, "peak_rss_mb": 300},
        "Transform": {"seconds": 6, "cpu_s": 2, "peak_rss_mb": 300},
        "Trainer": {"seconds": 10, "cpu_s": 13, "peak_rss_mb": 900},
    }

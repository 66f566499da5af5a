"""Which statistics ExampleValidator compares with."""

from tfx.types import standard_artifacts

from sllmr.components.example_validator.executor import STATISTICS_ID
from sllmr.pipeline.last_statistics import ANOMALIES, CURRENT, LAST, LastStatisticsStrategy


def statistics(number: int):
    artifact = standard_artifacts.ExampleStatistics()
    artifact.id = number
    return artifact


def anomalies(number: int, of: int):
    artifact = standard_artifacts.ExampleAnomalies()
    artifact.id = number
    artifact.set_int_custom_property(STATISTICS_ID, of)
    return artifact


def resolved(current: int, known: list[int], passed: list[int]) -> list[int]:
    given = {
        CURRENT: [statistics(current)],
        LAST: [statistics(number) for number in known],
        ANOMALIES: [anomalies(100 + place, number) for place, number in reversed(list(enumerate(passed)))],
    }
    return [found.id for found in LastStatisticsStrategy().resolve_artifacts(None, given)[LAST]]


def test_a_first_run_is_compared_with_nothing():
    assert resolved(1, [1], []) == []


def test_the_last_statistics_that_passed_are_found_and_never_the_current_ones():
    assert resolved(3, [1, 2, 3], [1, 2]) == [2]
    assert resolved(2, [1, 2], [1, 2]) == [1]
    assert resolved(1, [1], [1]) == []


def test_statistics_that_did_not_pass_or_are_gone_are_left_out():
    assert resolved(3, [1, 2, 3], [1]) == [1]
    assert resolved(3, [1, 3], [1, 2]) == [1]

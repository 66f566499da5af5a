"""A short soak: no request fails while versions change, with and without warm-up."""

import pytest

from benchmarks.serving_soak import Load, Sent, soak, summarize

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("warm_up", [True, False])
def test_no_request_of_concurrent_clients_fails_while_versions_change(pushed, warm_up):
    sent, loads = soak(
        pushed / "1", ["item2"], ["item4", "item1", "item6"], warm_up=warm_up, clients=3, changes=2, seconds=0.5
    )

    assert len(loads) == 2
    assert len(sent) >= 3
    assert {request.error for request in sent} == {""}
    assert summarize(sent, loads)["failed"] == 0


def test_percentiles_at_a_change_are_of_requests_in_flight_around_it():
    sent = [Sent(0.0, 1.0, ""), Sent(9.5, 1.0, ""), Sent(10.5, 3.0, "UNAVAILABLE"), Sent(14.5, 1.0, "")]

    found = summarize(sent, [Load(10.0, 11.0)])

    assert (found["requests"], found["failed"], found["errors"]) == (4, 1, ["UNAVAILABLE"])
    assert found["at_a_change"]["requests"] == 2
    assert found["at_a_change"]["longest_ms"] == 3000.0
    assert found["all"]["p50_ms"] == 1000.0

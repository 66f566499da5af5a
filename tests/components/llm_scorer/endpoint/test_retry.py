import email.utils

import pytest

from sllmr.components.llm_scorer.endpoint.retry import LONGEST_BACK_OFF_S, back_off_s, retry_after_s

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": email.utils.formatdate(NOW + 42, usegmt=True)}, 42),
        ({"retry-after": email.utils.formatdate(NOW - 42, usegmt=True)}, 0),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "99999999999"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "next week"}, None),
        ({}, None),
    ],
)
def test_what_the_server_asks_for_is_read_in_each_of_its_forms(headers, seconds):
    assert retry_after_s(headers, NOW) == seconds


def test_the_wait_doubles_up_to_a_bound_less_up_to_a_half():
    for repeat in range(1, 21):
        whole = min(0.5 * 2 ** (repeat - 1), LONGEST_BACK_OFF_S)
        waits = [back_off_s(repeat, f"call {n}") for n in range(200)]
        assert whole / 2 < min(waits) < 0.6 * whole
        assert 0.9 * whole < max(waits) <= whole


def test_calls_that_failed_together_do_not_come_back_together_but_each_run_alike():
    waits = [back_off_s(1, f"call {n}") for n in range(50)]
    assert len(set(waits)) == 50
    assert waits == [back_off_s(1, f"call {n}") for n in range(50)]

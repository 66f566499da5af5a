import concurrent.futures
import time

import pytest

from sllmr.components.llm_scorer.config import Price
from sllmr.components.llm_scorer.messages import Usage
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.ledger import (
    SIGNAL_AGE_S,
    RunLedger,
    cost_nano_usd,
    latency_counter,
    latency_percentiles_s,
)


def test_cost_is_tokens_times_price_with_the_servers_own_cache_at_its_discount():
    price = Price(prompt=0.15, cached_prompt=0.075, completion=0.60)
    usd = cost_nano_usd(Usage(prompt=1000, cached_prompt=200, completion=100), price) / 1e9
    assert usd == pytest.approx((800 * 0.15 + 200 * 0.075 + 100 * 0.60) / 1e6)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(prompt=5, completion=2)),
        ({"prompt_tokens": "5", "completion_tokens": -2, "prompt_tokens_details": []}, Usage()),
        (
            {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(prompt=5, cached_prompt=5),
        ),
        ("none", Usage()),
        (None, Usage()),
    ],
)
def test_usage_that_makes_no_sense_counts_as_nothing(usage, expected):
    assert Usage.of({"usage": usage}) == expected


def test_a_reservation_waits_for_those_in_flight_and_is_refused_if_it_can_pass_the_cap_without_them(store):
    run = RunLedger(store, "run")
    run.add({ledger.PRIOR_NANO_USD: 300, ledger.NANO_USD: 100})
    caps = {ledger.RESERVED_NANO_USD: 1000}
    assert run.reserve("a", {ledger.RESERVED_NANO_USD: 500}, caps) == ledger.ROOM
    assert run.reserve("b", {ledger.RESERVED_NANO_USD: 101}, caps) == ledger.NO_ROOM_YET
    assert run.reserve("b", {ledger.RESERVED_NANO_USD: 601}, caps) == ledger.NO_ROOM
    run.leave_unsettled({ledger.RESERVED_NANO_USD: 500})
    assert run.reserve("b", {ledger.RESERVED_NANO_USD: 101}, caps) == ledger.NO_ROOM
    assert ledger.unsettled_reservations(store)["a"][ledger.RESERVED_NANO_USD] == 500


def test_a_settled_reservation_is_free_and_forgotten(store):
    run = RunLedger(store, "run")
    amounts, caps = {ledger.RESERVED_NANO_USD: 500}, {ledger.RESERVED_NANO_USD: 600}
    assert run.reserve("a", amounts, caps) == ledger.ROOM
    run.settle("a", amounts, {ledger.NANO_USD: 100})
    assert ledger.unsettled_reservations(store) == {}
    assert run.reserve("b", amounts, caps) == ledger.ROOM
    assert run.totals()[ledger.NANO_USD] == 100


def test_threads_cannot_reserve_more_than_the_cap_together(store):
    run = RunLedger(store, "run")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ten, caps = {ledger.RESERVED_NANO_USD: 10}, {ledger.RESERVED_NANO_USD: 75}
        found = list(pool.map(lambda n: run.reserve(f"{n}", ten, caps), range(40)))
    assert found.count(ledger.ROOM) == 7
    assert run.totals()[ledger.RESERVED_NANO_USD] == 70


def test_a_change_that_rests_on_what_was_there_loses_no_other(store):
    run = RunLedger(store, "run")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: run.change(("n",), lambda values: {"n": 2 * values.get("n", 0) + 1}), range(40)))
    # 1, 3, 7, ..: a lost one would leave a smaller power.
    assert run.totals() == {"n": 2**40 - 1}


def test_runs_do_not_see_each_others_counters(store):
    one, two = RunLedger(store, "one"), RunLedger(store, "two")
    one.add({ledger.REQUESTS_SENT: 3})
    two.add({ledger.REQUESTS_SENT: 4})
    one.forget()
    assert (one.totals(), two.totals()) == ({}, {ledger.REQUESTS_SENT: 4})


def test_percentiles_are_those_of_the_latencies_to_five_percent():
    seconds = [0.01 * n for n in range(1, 101)]
    totals: dict[str, int] = {}
    for value in seconds:
        totals[latency_counter(value)] = totals.get(latency_counter(value), 0) + 1
    percentiles = latency_percentiles_s(totals)
    assert percentiles["p50"] == pytest.approx(0.50, rel=0.05)
    assert percentiles["p90"] == pytest.approx(0.90, rel=0.05)
    assert latency_percentiles_s({}) == {}


def test_a_signal_of_another_process_is_heeded_soon_and_ones_own_at_once(store):
    one, other = (RunLedger(store, "run") for _ in range(2))
    assert one.signal("cut") == other.signal("cut") == 0
    one.add({"cut": 3})
    one.change(("cut",), lambda values: {"cut": values["cut"] + 4})
    assert one.signal("cut") == 7
    time.sleep(2 * SIGNAL_AGE_S)
    assert other.signal("cut") == 7
    other.end()
    assert other.is_ended()

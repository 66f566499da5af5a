"""The cap in tokens; the one in money is in test_handler.py and test_job.py, both by batch in test_batch.py."""

import apache_beam as beam

from components.llm_scorer import exchange
from tests.components.llm_scorer.market import market_rows
from tests.components.llm_scorer.test_job import job, stub_settings

# The stub bills each call so.
TOKENS = 1000 + 100


def test_the_cap_in_tokens_counts_earlier_runs_and_a_higher_one_goes_on_from_there(stub, tmp_path, caplog):
    # Aside for a call are as many as its bytes and the longest answer: more than it then takes.
    capped = stub_settings(stub, budget={"pairs": 60, "max_tokens": 6 * TOKENS})
    first = job(tmp_path, "one", capped).run(beam.Create(market_rows()))
    calls = first["calls"]["sent"]
    assert 2 <= calls <= 6
    assert first["failures"] == {exchange.BUDGET_EXHAUSTED: 6 * (10 - calls)}
    assert f"as llm.budget.max_tokens={6 * TOKENS} would have been passed; raise it and run again" in caplog.text

    again = job(tmp_path, "two", capped).run(beam.Create(market_rows()))
    assert calls + again["calls"]["sent"] <= 6
    assert again["calls"]["cached"] == calls

    higher = stub_settings(stub, budget={"pairs": 60, "max_tokens": 100 * TOKENS})
    assert job(tmp_path, "three", higher).run(beam.Create(market_rows()))["scored"] == 60
    assert len(stub.received) == 10

"""Live counters of one scoring run, and its money: shared by all threads and worker processes of a machine.

The driver starts a run, workers add to it, the progress line and the final ledger read it. Latencies are
counted in buckets a tenth apart, so memory does not grow with the number of calls and percentiles are right
to 5%.
"""

import math
import os
import threading
from collections.abc import Mapping

from components.llm_scorer.cache import connect
from components.llm_scorer.config import Price
from components.llm_scorer.exchange import Usage

FILE_NAME = "runs.sqlite"

CALLS_SENT = "calls_sent"
CALLS_CACHED = "calls_cached"
CALLS_FAILED = "calls_failed"
CALLS_REFUSED_BY_BUDGET = "calls_refused_by_budget"
CORRUPT_ENTRIES = "corrupt_cache_entries"
PAIRS_DONE = "pairs_done"
PAIRS_CACHED = "pairs_cached"
PROMPT_TOKENS = "prompt_tokens"
CACHED_PROMPT_TOKENS = "cached_prompt_tokens"
COMPLETION_TOKENS = "completion_tokens"
NANO_USD = "nano_usd"
RESERVED_NANO_USD = "reserved_nano_usd"
PRIOR_NANO_USD = "prior_nano_usd"
_ENDED = "ended"
_LATENCY = "latency_bucket_"
_BUCKET = math.log(1.1)


def cost_nano_usd(usage: Usage, price: Price) -> int:
    """What an answer costs, in billionths of a dollar: integers add up exactly."""
    usd_per_million = (
        (usage.prompt - usage.cached_prompt) * price.prompt
        + usage.cached_prompt * price.cached_prompt
        + usage.completion * price.completion
    )
    return round(usd_per_million * 1000)


class RunLedger:
    """The counters of one run in `directory`; every method is one transaction."""

    def __init__(self, directory: str, run_id: str):
        os.makedirs(directory, exist_ok=True)
        self._path = os.path.join(directory, FILE_NAME)
        self.run_id = run_id
        self._local = threading.local()
        with self._connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS counters "
                "(run_id TEXT, name TEXT, value INTEGER, PRIMARY KEY (run_id, name)) WITHOUT ROWID"
            )

    def add(self, deltas: Mapping[str, int]) -> None:
        """Adds to counters."""
        rows = [(self.run_id, name, value) for name, value in deltas.items() if value]
        if rows:
            with self._connection() as connection:
                connection.executemany(
                    "INSERT INTO counters VALUES (?, ?, ?) "
                    "ON CONFLICT (run_id, name) DO UPDATE SET value = value + excluded.value",
                    rows,
                )

    def reserve(self, nano_usd: int, cap_nano_usd: int) -> bool:
        """Sets money aside for a call, unless spent and reserved money could then pass the cap."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            names = (NANO_USD, RESERVED_NANO_USD, PRIOR_NANO_USD)
            (committed,) = connection.execute(
                "SELECT COALESCE(SUM(value), 0) FROM counters WHERE run_id = ? AND name IN (?, ?, ?)",
                (self.run_id, *names),
            ).fetchone()
            if committed + nano_usd > cap_nano_usd:
                return False
            connection.execute(
                "INSERT INTO counters VALUES (?, ?, ?) "
                "ON CONFLICT (run_id, name) DO UPDATE SET value = value + excluded.value",
                (self.run_id, RESERVED_NANO_USD, nano_usd),
            )
        return True

    def take_turn(self, durations_us: Mapping[str, int], now_us: int) -> int:
        """When all the named queues are free, at `now_us` or later; each is then taken for its duration."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            free = dict(
                connection.execute("SELECT name, value FROM counters WHERE run_id = ?", (self.run_id,)).fetchall()
            )
            start = max(now_us, *(free.get(name, 0) for name in durations_us))
            connection.executemany(
                "INSERT OR REPLACE INTO counters VALUES (?, ?, ?)",
                [(self.run_id, name, start + duration) for name, duration in durations_us.items()],
            )
        return start

    def totals(self) -> dict[str, int]:
        """All counters; a name that was never added to is absent."""
        rows = self._connection().execute("SELECT name, value FROM counters WHERE run_id = ?", (self.run_id,))
        return dict(rows.fetchall())

    def end(self) -> None:
        """Tells all workers of the run to send nothing more."""
        self.add({_ENDED: 1})

    def is_ended(self) -> bool:
        """Whether `end` was called, by whichever process."""
        row = self._connection().execute("SELECT 1 FROM counters WHERE run_id = ? AND name = ?", (self.run_id, _ENDED))
        return row.fetchone() is not None

    def forget(self) -> None:
        """Removes the run's counters."""
        with self._connection() as connection:
            connection.execute("DELETE FROM counters WHERE run_id = ?", (self.run_id,))

    def close(self) -> None:
        """Closes the calling thread's connection."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self):
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self._path)
        return self._local.connection


def latency_counter(seconds: float) -> str:
    """Name of the counter of a latency's bucket: the whole number nearest to log(milliseconds) / log(1.1)."""
    return f"{_LATENCY}{max(0, round(math.log(max(seconds, 1e-3) * 1000) / _BUCKET))}"


def latency_percentiles_s(totals: Mapping[str, int], percents: tuple[int, ...] = (50, 90, 99)) -> dict[str, float]:
    """Latency percentiles in seconds, as `p50`; empty where no call was sent."""
    buckets = sorted((int(n.removeprefix(_LATENCY)), c) for n, c in totals.items() if n.startswith(_LATENCY))
    total = sum(count for _, count in buckets)
    result = {}
    for percent in percents:
        seen = 0
        for bucket, count in buckets:
            seen += count
            if seen >= percent / 100 * total:
                result[f"p{percent}"] = round(math.exp(bucket * _BUCKET) / 1000, 4)
                break
    return result

"""Live counters of one scoring run, and its money: shared by all threads and worker processes of a machine.

The driver starts a run, workers add to it, the progress line and the final ledger read it. Latencies are
counted in buckets a tenth apart, so memory does not grow with the number of calls and percentiles are right
to 5%.
"""

import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from components.llm_scorer.cache import connect, transaction
from components.llm_scorer.config import LlmConfig, Price
from components.llm_scorer.exchange import Usage, came_by_batch

FILE_NAME = "runs.sqlite"

CALLS_SENT = "calls_sent"
CALLS_CACHED = "calls_cached"
CALLS_FAILED = "calls_failed"
CALLS_REPEATED = "calls_repeated"
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
RESERVED_TOKENS = "reserved_tokens"
PRIOR_TOKENS = "prior_tokens"
_COMMITTED = {
    RESERVED_NANO_USD: (NANO_USD, RESERVED_NANO_USD, PRIOR_NANO_USD),
    RESERVED_TOKENS: (PROMPT_TOKENS, COMPLETION_TOKENS, RESERVED_TOKENS, PRIOR_TOKENS),
}
"""What a reservation and all else that is spent, set aside or was spent before add up to."""

SIGNAL_AGE_S = 0.05
"""How long a worker may go on with a signal as it was before another process changed it."""

_ENDED = "ended"
_LATENCY = "latency_bucket_"
_BUCKET = math.log(1.1)


class RunEnded(Exception):
    """Nothing more is to be sent: another thread or process has met the end of the job."""


def cost_nano_usd(usage: Usage, price: Price) -> int:
    """What an answer costs, in billionths of a dollar: integers add up exactly."""
    usd_per_million = (
        (usage.prompt - usage.cached_prompt) * price.prompt
        + usage.cached_prompt * price.cached_prompt
        + usage.completion * price.completion
    )
    return round(usd_per_million * 1000)


def cost_of_answer_nano_usd(response: dict[str, Any], price: Price) -> int:
    """What an answer in the cache did cost, by the way in which it came."""
    return cost_nano_usd(Usage.of(response), price.by_batch if came_by_batch(response) else price)


def budget_caps(config: LlmConfig) -> dict[str, int]:
    """The configured caps, as RunLedger.reserve takes them."""
    budget, caps = config.budget, {}
    if budget.max_cost_usd is not None:
        caps[RESERVED_NANO_USD] = round(budget.max_cost_usd * 1e9)
    if budget.max_tokens is not None:
        caps[RESERVED_TOKENS] = budget.max_tokens
    return caps


class RunLedger:
    """The counters of one run in `directory`; every method is one transaction."""

    def __init__(self, directory: str, run_id: str):
        os.makedirs(directory, exist_ok=True)
        self._path = os.path.join(directory, FILE_NAME)
        self.run_id = run_id
        self._local = threading.local()
        self._signals: dict[str, tuple[float, int]] = {}
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS counters "
            "(run_id TEXT, name TEXT, value INTEGER, PRIMARY KEY (run_id, name)) WITHOUT ROWID"
        )

    def add(self, deltas: Mapping[str, int]) -> None:
        """Adds to counters."""
        changed = {name: value for name, value in deltas.items() if value}
        if changed:
            self._add(self._connection(), changed)
            self._forget_signals(changed)

    def _add(self, connection: sqlite3.Connection, deltas: Mapping[str, int]) -> None:
        # One statement: at each, all other threads of the worker contend for the interpreter.
        rows = ", ".join(["(?, ?, ?)"] * len(deltas))
        connection.execute(
            f"INSERT INTO counters VALUES {rows} "
            "ON CONFLICT (run_id, name) DO UPDATE SET value = value + excluded.value",
            [field for name, value in deltas.items() for field in (self.run_id, name, value)],
        )

    def reserve(self, amounts: Mapping[str, int], caps: Mapping[str, int]) -> bool:
        """Sets money and tokens aside for a call, unless what is spent and reserved could then pass a cap.

        Args:
            amounts: by RESERVED_NANO_USD and RESERVED_TOKENS.
            caps: by the same names; one that is absent does not bind.
        """
        connection = self._connection()
        with transaction(connection):
            for name, cap in caps.items():
                if sum(self.values(_COMMITTED[name]).values()) + amounts[name] > cap:
                    return False
            self._add(connection, amounts)
        return True

    def take_turn(self, durations_us: Mapping[str, int], now_us: int) -> int:
        """When all the named queues are free, at `now_us` or later; each is then taken for its duration."""
        start = now_us

        def taken(free: dict[str, int]) -> dict[str, int]:
            nonlocal start
            start = max([now_us, *free.values()])
            return {name: start + duration for name, duration in durations_us.items()}

        self.change(tuple(durations_us), taken)
        return start

    def change(self, names: Sequence[str], changed: Callable[[dict[str, int]], Mapping[str, int]]) -> None:
        """Sets counters to what `changed` makes of the named ones, with no other change in between."""
        connection = self._connection()
        with transaction(connection):
            connection.executemany(
                "INSERT OR REPLACE INTO counters VALUES (?, ?, ?)",
                [(self.run_id, name, value) for name, value in changed(self.values(names)).items()],
            )
        self._forget_signals(names)

    def signal(self, name: str) -> int:
        """A counter that workers heed at every call, 0 where it was never added to: as another process left it at most
        SIGNAL_AGE_S ago.
        """
        read_at, value = self._signals.get(name, (-math.inf, 0))
        now = time.monotonic()
        if now - read_at > SIGNAL_AGE_S:
            value = self.values((name,)).get(name, 0)
            self._signals[name] = now, value
        return value

    def _forget_signals(self, names: Iterable[str]) -> None:
        for name in names:
            self._signals.pop(name, None)

    def values(self, names: Sequence[str]) -> dict[str, int]:
        """The named counters; one that was never added to is absent."""
        query = f"SELECT name, value FROM counters WHERE run_id = ? AND name IN ({', '.join('?' * len(names))})"
        return dict(self._connection().execute(query, (self.run_id, *names)).fetchall())

    def totals(self) -> dict[str, int]:
        """All counters; a name that was never added to is absent."""
        rows = self._connection().execute("SELECT name, value FROM counters WHERE run_id = ?", (self.run_id,))
        return dict(rows.fetchall())

    def end(self) -> None:
        """Tells all workers of the run to send nothing more."""
        self.add({_ENDED: 1})

    def is_ended(self) -> bool:
        """Whether `end` was called, by whichever process."""
        return self.signal(_ENDED) > 0

    def forget(self) -> None:
        """Removes the run's counters."""
        self._connection().execute("DELETE FROM counters WHERE run_id = ?", (self.run_id,))

    def close(self) -> None:
        """Closes the calling thread's connection."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
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

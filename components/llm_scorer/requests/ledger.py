"""Live counters of one scoring run, and its money: shared by all threads and worker processes of a machine.

The driver starts a run, workers add to it, the progress line and the final ledger read it. Latencies are
counted in buckets a tenth apart, so memory does not grow with the number of calls and percentiles are right
to 5%.
"""

import contextlib
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sllmr.components.llm_scorer.config import LlmConfig, Price
from sllmr.components.llm_scorer.endpoint.tokens import dearest_usage
from sllmr.components.llm_scorer.messages import LlmRequest, Usage, came_by_batch
from sllmr.components.llm_scorer.requests.cache import Store, connect, make_directory, transaction
from sllmr.components.llm_scorer.requests.driver import Driver

FILE_NAME = "runs.sqlite"

_RUNS = Store(
    name="record of runs",
    if_damaged="delete it and run again (it holds counters and the amounts reserved for requests of killed runs; no "
    "response is lost)",
    if_unusable="it holds counters, and no response is lost",
)

REQUESTS_SENT = "requests_sent"
PAIRS_PLANNED = "pairs_planned"
PAIRS_FAILED = "pairs_failed"
FAILED_IN_A_ROW = "requests_failed_in_a_row"
RESPONSES_WITHOUT_SCORE = "responses_without_score"
RESPONSES_WRAPPED = "responses_wrapped"
REQUESTS_CACHED = "requests_cached"
REQUESTS_FAILED = "requests_failed"
REQUESTS_RETRIED = "requests_retried"
REQUESTS_REFUSED_BY_BUDGET = "requests_refused_by_budget"
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
IN_FLIGHT_NANO_USD = "in_flight_nano_usd"
IN_FLIGHT_TOKENS = "in_flight_tokens"
RESPONSES_WITHOUT_USAGE = "responses_without_usage"
PRIOR_TOKENS = "prior_tokens"
_COMMITTED = {
    RESERVED_NANO_USD: (NANO_USD, RESERVED_NANO_USD, PRIOR_NANO_USD),
    RESERVED_TOKENS: (PROMPT_TOKENS, COMPLETION_TOKENS, RESERVED_TOKENS, PRIOR_TOKENS),
}
"""What a reservation and all else that is spent, set aside or was spent before add up to."""

_IN_FLIGHT = {RESERVED_NANO_USD: IN_FLIGHT_NANO_USD, RESERVED_TOKENS: IN_FLIGHT_TOKENS}
"""The part of a reservation whose request has not ended yet."""

ROOM, NO_ROOM_YET, NO_ROOM = "room", "no_room_yet", "no_room"
"""What `RunLedger.reserve` found: the amount is reserved; it may fit once requests in flight have ended; it cannot."""

_MOST_TOKENS = 10**9
"""No endpoint bills so many tokens for one response: a larger count is no count."""

SIGNAL_AGE_S = 0.05
"""How long a worker may go on with a signal as it was before another process changed it."""

_ENDED = "ended"
_HAS_DRIVER = "has_driver"
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


def billed_usage(request: LlmRequest, response: dict[str, Any]) -> Usage:
    """Tokens to book for a response: as the endpoint counts them, or the most that the request can have taken for
    prompt or completion if the endpoint reports none, zero, or an impossible number.
    """
    told, dearest = Usage.of(response), dearest_usage(request)
    return Usage(
        prompt=told.prompt if 0 < told.prompt < _MOST_TOKENS else dearest.prompt,
        cached_prompt=told.cached_prompt if told.prompt < _MOST_TOKENS else 0,
        completion=told.completion if 0 < told.completion < _MOST_TOKENS else dearest.completion,
    )


def cost_of_response_nano_usd(request: LlmRequest, response: dict[str, Any], price: Price) -> int:
    """What a response in the cache did cost, by the way in which it came; at most that if it reports no usage."""
    return cost_nano_usd(billed_usage(request, response), price.by_batch if came_by_batch(response) else price)


def unsettled_reservations(directory: str) -> dict[str, dict[str, int]]:
    """Money and tokens that earlier runs reserved for a request and never settled, by the request's key.

    A request that was in flight when its run was killed, or that failed after the endpoint may have done the work, may
    be on the endpoint's bill although no response is in the cache.
    """
    if not os.path.exists(os.path.join(directory, FILE_NAME)):
        return {}
    run = RunLedger(directory, "")
    try:
        return run.all_reservations()
    finally:
        run.close()


class Reservations(NamedTuple):
    """What one run reserved and never settled.

    Attributes:
        is_running: whether its driver is alive: its requests may still end.
        requests, nano_usd, tokens: how many, and the most that they can have cost.
    """

    run_id: str
    is_running: bool
    requests: int
    nano_usd: int
    tokens: int


def reservations_by_run(directory: str) -> list[Reservations]:
    """What is reserved and not settled, run by run."""
    if not os.path.exists(os.path.join(directory, FILE_NAME)):
        return []
    with contextlib.closing(RunLedger(directory, "")) as ledger:
        totals = ledger.reservations_by_run()
    found = []
    for run_id, *amounts in totals:
        with contextlib.closing(Driver(directory, run_id)) as driver:
            found.append(Reservations(run_id, driver.is_alive(), *amounts))
    return found


def release_reservations(directory: str) -> list[Reservations]:
    """Forgets the reservations of all runs that have ended; returns them."""
    ended = [run for run in reservations_by_run(directory) if not run.is_running]
    if ended:
        with contextlib.closing(RunLedger(directory, "")) as ledger:
            ledger.release(run.run_id for run in ended)
    return ended


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
        make_directory(directory)
        self._path = os.path.join(directory, FILE_NAME)
        self.run_id = run_id
        self._local = threading.local()
        self._signals: dict[str, tuple[float, int]] = {}
        self._driver = Driver(directory, run_id)
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS counters "
            "(run_id TEXT, name TEXT, value INTEGER, PRIMARY KEY (run_id, name)) WITHOUT ROWID"
        )
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS notes "
            "(run_id TEXT, name TEXT, text TEXT, PRIMARY KEY (run_id, name)) WITHOUT ROWID"
        )
        # Outlives the run: see unsettled_reservations.
        self._connection().execute(
            "CREATE TABLE IF NOT EXISTS reservations (run_id TEXT, key TEXT, nano_usd INTEGER, tokens INTEGER, "
            "PRIMARY KEY (run_id, key)) WITHOUT ROWID"
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

    def reserve(self, key: str, amounts: Mapping[str, int], caps: Mapping[str, int]) -> str:
        """Reserves money and tokens for a request, unless what is spent and reserved could then pass a cap.

        Args:
            key: of the request.
            amounts: by RESERVED_NANO_USD and RESERVED_TOKENS.
            caps: by the same names; one that is absent does not bind.

        Returns:
            ROOM if the amounts are reserved; NO_ROOM_YET if they may fit once requests in flight have ended; else
            NO_ROOM.
        """
        connection = self._connection()
        with transaction(connection):
            found = ROOM
            for name, cap in caps.items():
                values = self.values((*_COMMITTED[name], _IN_FLIGHT[name]))
                in_flight = values.pop(_IN_FLIGHT[name], 0)
                if (beyond := sum(values.values()) + amounts[name] - cap) > 0:
                    found = NO_ROOM if found == NO_ROOM or beyond > in_flight else NO_ROOM_YET
            if found == ROOM:
                self._add(connection, {**amounts, **{_IN_FLIGHT[name]: amount for name, amount in amounts.items()}})
                self._reserve_for(connection, key, amounts)
        return found

    def settle(self, key: str, reserved: Mapping[str, int], deltas: Mapping[str, int]) -> None:
        """Replaces a reservation by `deltas` of counters: what its request did cost, or nothing if it was not billed.

        Args:
            key: of the request.
            reserved: the amounts given to `reserve`; empty if nothing is reserved.
            deltas: by the names of counters.
        """
        freed = {name: -amount for name, amount in reserved.items()}
        changed = {
            **deltas,
            **freed,
            **{_IN_FLIGHT[name]: amount for name, amount in freed.items()},
        }
        if not reserved:
            self.add(changed)
            return
        connection = self._connection()
        with transaction(connection):
            self._add(connection, {name: value for name, value in changed.items() if value})
            self._reserve_for(connection, key, freed)
            connection.execute(
                "DELETE FROM reservations WHERE run_id = ? AND key = ? AND nano_usd <= 0 AND tokens <= 0",
                (self.run_id, key),
            )
        self._forget_signals(changed)

    def leave_unsettled(self, reserved: Mapping[str, int]) -> None:
        """Keeps the reservation of a request without a response that is possibly billed: no request waits for it."""
        self.add({_IN_FLIGHT[name]: -amount for name, amount in reserved.items()})

    def _reserve_for(self, connection: sqlite3.Connection, key: str, amounts: Mapping[str, int]) -> None:
        connection.execute(
            "INSERT INTO reservations VALUES (?, ?, ?, ?) ON CONFLICT (run_id, key) DO UPDATE SET "
            "nano_usd = nano_usd + excluded.nano_usd, tokens = tokens + excluded.tokens",
            (self.run_id, key, amounts.get(RESERVED_NANO_USD, 0), amounts.get(RESERVED_TOKENS, 0)),
        )

    def all_reservations(self) -> dict[str, dict[str, int]]:
        """What is reserved and not settled, of all runs, by the request's key."""
        rows = self._connection().execute("SELECT key, SUM(nano_usd), SUM(tokens) FROM reservations GROUP BY key")
        return {key: {RESERVED_NANO_USD: nano_usd, RESERVED_TOKENS: tokens} for key, nano_usd, tokens in rows}

    def reservations_by_run(self) -> list[tuple[str, int, int, int]]:
        """Of all runs: id, number of requests, money and tokens that are reserved and not settled."""
        query = "SELECT run_id, COUNT(*), SUM(nano_usd), SUM(tokens) FROM reservations GROUP BY run_id ORDER BY run_id"
        return self._connection().execute(query).fetchall()

    def release(self, run_ids: Iterable[str]) -> None:
        """Forgets what these runs reserved."""
        self._connection().executemany("DELETE FROM reservations WHERE run_id = ?", [(run_id,) for run_id in run_ids])

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

    def note_first(self, name: str, text: str) -> str:
        """Keeps the first text of that name, whichever worker tells it; returns it."""
        self._connection().execute("INSERT OR IGNORE INTO notes VALUES (?, ?, ?)", (self.run_id, name, text))
        return self.note(name)

    def note(self, name: str) -> str:
        """The text of that name; empty where there is none."""
        query = "SELECT text FROM notes WHERE run_id = ? AND name = ?"
        row = self._connection().execute(query, (self.run_id, name)).fetchone()
        return row[0] if row else ""

    def list_once(self, name: str, text: str) -> bool:
        """Adds a text to the run's list of that name; returns whether it was not there."""
        query = "INSERT OR IGNORE INTO notes VALUES (?, ?, ?)"
        is_new = self._connection().execute(query, (self.run_id, f"{name} {text}", text)).rowcount > 0
        if is_new:
            self.add({name: 1})
        return is_new

    def listed(self, name: str) -> tuple[str, ...]:
        """The run's list of that name, in alphabetical order; `signal(name)` is its length."""
        query = "SELECT text FROM notes WHERE run_id = ? AND name = ? || ' ' || text ORDER BY text"
        return tuple(text for (text,) in self._connection().execute(query, (self.run_id, name)))

    def end(self, reason: str = "") -> None:
        """Tells all workers of the run to send nothing more, and the driver why."""
        if reason:
            self.note_first(_ENDED, reason)
        self.add({_ENDED: 1})

    @property
    def end_reason(self) -> str:
        """Why the first worker to end the run did so; empty where none did."""
        return self.note(_ENDED)

    @contextlib.contextmanager
    def driven(self) -> Iterator[None]:
        """Makes the calling process the driver of the run during the block: the run ends with the process."""
        with self._driver.hold():
            self.add({_HAS_DRIVER: 1})
            yield

    def is_ended(self) -> bool:
        """Whether `end` was called, by whichever process, or the driver of the run is gone."""
        return self.signal(_ENDED) > 0 or (self.signal(_HAS_DRIVER) > 0 and not self._driver.is_alive())

    def forget(self) -> None:
        """Removes the run's counters."""
        for table in ("counters", "notes"):
            self._connection().execute(f"DELETE FROM {table} WHERE run_id = ?", (self.run_id,))

    def close(self) -> None:
        """Closes the calling thread's connection."""
        connection = self._local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self._path, _RUNS)
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

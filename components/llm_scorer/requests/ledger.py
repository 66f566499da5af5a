"""Live counters of one scoring run, and its money: shared by all threads and worker processes that share the store.

The driver starts a run, workers add to it, the progress line and the final ledger read it. Runs in progress share the
money for the same plan and the turns at the same endpoint; both are counted under a name of their own, see
RunLedger.share. Latencies are counted in buckets 10% apart, so memory does not grow with the number of calls, and
percentiles are right to 5%.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sllmr.components.llm_scorer.config import LlmConfig, Price
from sllmr.components.llm_scorer.endpoint.tokens import dearest_usage
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import LlmRequest, Usage, came_by_batch
from sllmr.components.llm_scorer.requests.driver import Driver
from sllmr.components.llm_scorer.store.interface import CacheError, Content, Statements, is_shared
from sllmr.components.llm_scorer.store.opening import open_database

FILE_NAME = "runs.sqlite"

_RUNS = Content(
    file_name=FILE_NAME,
    name="record of runs",
    if_damaged="delete it and run again (it holds counters and the amounts reserved for requests of killed runs; no "
    "response is lost)",
    if_unusable="it holds counters, and no response is lost",
    is_receipt=False,
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
"""For each cap, the counters whose sum it limits: what is spent, reserved, and was spent earlier."""

_BUDGETED = frozenset(name for names in _COMMITTED.values() for name in names)

_IN_FLIGHT = {RESERVED_NANO_USD: IN_FLIGHT_NANO_USD, RESERVED_TOKENS: IN_FLIGHT_TOKENS}
"""For each counter of reservations, the counter of the part whose requests have not ended yet."""

BUDGET, LIMITS = "budget", "limits"
"""What runs share, see RunLedger.share."""

_SHARED = ("shared",)
"""The counter that a run locks while it joins or leaves others."""

ROOM, NO_ROOM_YET, NO_ROOM = "room", "no_room_yet", "no_room"
"""What `RunLedger.reserve` found: the amount is reserved; it may fit once requests in flight have ended; it cannot."""

_MOST_TOKENS = 10**9
"""No endpoint bills so many tokens for one response: a larger count is no count."""

SIGNAL_AGE_S = 0.05
"""Seconds for which a worker may use a signal that another process has changed since."""

_SUMS = "CAST(SUM(nano_usd) AS BIGINT), CAST(SUM(tokens) AS BIGINT)"
_NOTE = "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
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
    """What a cached response cost, at the price of a live or a batch call; an upper bound if it reports no usage."""
    return cost_nano_usd(billed_usage(request, response), price.by_batch if came_by_batch(response) else price)


def unsettled_reservations(store: str) -> dict[str, dict[str, int]]:
    """Money and tokens that earlier runs reserved for a request and never settled, by the request's key.

    A request that was in flight when its run was killed, or that failed after the endpoint may have done the work, may
    be on the endpoint's bill although no response is in the cache.
    """
    if not _has_runs(store):
        return {}
    with contextlib.closing(RunLedger(store, "")) as run:
        return run.all_reservations()


def _has_runs(store: str) -> bool:
    return is_shared(store) or os.path.exists(os.path.join(store, FILE_NAME))


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


def reservations_by_run(store: str) -> list[Reservations]:
    """What is reserved and not settled, run by run."""
    if not _has_runs(store):
        return []
    with contextlib.closing(RunLedger(store, "")) as ledger:
        totals = ledger.reservations_by_run()
    return [Reservations(run_id, _is_running(store, run_id), *amounts) for run_id, *amounts in totals]


def _is_running(store: str, run_id: str) -> bool:
    with contextlib.closing(Driver(store, run_id)) as driver:
        return driver.is_alive()


def release_reservations(store: str) -> list[Reservations]:
    """Forgets the reservations of all runs that have ended; returns them."""
    ended = [run for run in reservations_by_run(store) if not run.is_running]
    if ended:
        with contextlib.closing(RunLedger(store, "")) as ledger:
            ledger.release(run.run_id for run in ended)
    return ended


def copy_reservations(source: str, target: str) -> None:
    """Copies what is reserved and not settled in a store into another one, where it is not there."""
    if not _has_runs(source):
        return
    with contextlib.closing(RunLedger(source, "")) as old, contextlib.closing(RunLedger(target, "")) as new:
        new.add_reservations(old.reservations())


def budget_caps(config: LlmConfig) -> dict[str, int]:
    """The configured caps, as RunLedger.reserve takes them."""
    budget, caps = config.budget, {}
    if budget.max_cost_usd is not None:
        caps[RESERVED_NANO_USD] = round(budget.max_cost_usd * 1e9)
    if budget.max_tokens is not None:
        caps[RESERVED_TOKENS] = budget.max_tokens
    return caps


class RunLedger:
    """The counters of one run in a store; every method is one transaction."""

    def __init__(self, store: str, run_id: str):
        self._store = store
        self.run_id = run_id
        self._signals: dict[str, tuple[float, int]] = {}
        self._scopes: dict[str, str] = {}
        self._driver = Driver(store, run_id)
        self._database = open_database(store, _RUNS)
        self._database.create(
            "counters",
            [
                "CREATE TABLE IF NOT EXISTS counters "
                "(run_id TEXT, name TEXT, value INTEGER, PRIMARY KEY (run_id, name)) WITHOUT ROWID",
                "CREATE TABLE IF NOT EXISTS notes "
                "(run_id TEXT, name TEXT, text TEXT, PRIMARY KEY (run_id, name)) WITHOUT ROWID",
                # Outlives the run: see unsettled_reservations.
                "CREATE TABLE IF NOT EXISTS reservations (run_id TEXT, key TEXT, nano_usd INTEGER, tokens INTEGER, "
                "PRIMARY KEY (run_id, key)) WITHOUT ROWID",
                # Runs that count together, by the name under which they do: see share.
                "CREATE TABLE IF NOT EXISTS sharing (scope TEXT, run_id TEXT, PRIMARY KEY (scope, run_id)) "
                "WITHOUT ROWID",
            ],
        )
        self.clock = self._database.clock

    def share(self, what: str, identity: str) -> None:
        """Counts what the run spends (BUDGET) or sends (LIMITS) together with all runs in progress of that identity.

        The shared counts are forgotten once none of these runs is in progress: what they spent is in the cache and in
        their reservations. Call this within `driven`, before earlier spending is looked up and before workers start.
        """
        scope = f"{what} {identity}"
        others = self._database.execute("SELECT run_id FROM sharing WHERE scope = ?", (scope,))
        ended = [run_id for (run_id,) in others if not _is_running(self._store, run_id)]

        def join(statements: Statements) -> None:
            self._lock_counters(statements, scope, _SHARED)
            statements.executemany(
                "DELETE FROM sharing WHERE scope = ? AND run_id = ?", [(scope, run_id) for run_id in ended]
            )
            if not statements.execute("SELECT 1 FROM sharing WHERE scope = ?", (scope,)):
                statements.execute("UPDATE counters SET value = 0 WHERE run_id = ?", (scope,))
            statements.execute("INSERT INTO sharing VALUES (?, ?)", (scope, self.run_id))

        self._database.transact(join)
        self._scopes[what] = self.note_first(what, scope)

    def _scope(self, what: str) -> str:
        """The name under which runs count together; the run's own id if it is alone."""
        if what not in self._scopes:
            self._scopes[what] = self.note(what) or self.run_id
        return self._scopes[what]

    def spent_before(self, nano_usd: int, tokens: int) -> None:
        """Counts what earlier responses to the plan cost; the caller looks that up after `share`.

        A run in progress that shares the budget may have counted part of it: only the rest is added.
        """
        prior = {
            RESERVED_NANO_USD: (PRIOR_NANO_USD, nano_usd),
            RESERVED_TOKENS: (PRIOR_TOKENS, tokens),
        }
        scope = self._scope(BUDGET)

        def count(statements: Statements) -> None:
            known = self._lock_counters(statements, scope, _BUDGETED)
            for cap, (name, amount) in prior.items():
                missing = amount - sum(known[part] for part in _COMMITTED[cap])
                if missing > 0:
                    self._add_rows(statements, [(scope, name, missing)])

        self._database.transact(count)

    def add(self, deltas: Mapping[str, int]) -> None:
        """Adds to counters."""
        changed = {name: value for name, value in deltas.items() if value}
        if changed:
            self._add(self._database, changed)
            self._forget_signals(changed)

    def _add(self, statements: Statements, deltas: Mapping[str, int]) -> None:
        rows = [(self.run_id, name, int(value)) for name, value in deltas.items()]
        scope = self._scope(BUDGET) if _BUDGETED & deltas.keys() else self.run_id
        if scope != self.run_id:
            rows += [(scope, name, int(value)) for name, value in deltas.items() if name in _BUDGETED]
        self._add_rows(statements, rows)

    def _add_rows(self, statements: Statements, rows: list[tuple[str, str, int]]) -> None:
        # One statement for all rows: at each one, all other threads of the worker contend for the interpreter. Sorted,
        # so that transactions that lock the same rows cannot deadlock.
        marks = ", ".join(["(?, ?, ?)"] * len(rows))
        statements.execute(
            f"INSERT INTO counters VALUES {marks} "
            "ON CONFLICT (run_id, name) DO UPDATE SET value = counters.value + excluded.value",
            [field for row in sorted(rows) for field in row],
        )

    def _lock_counters(self, statements: Statements, run_id: str, names: Iterable[str]) -> dict[str, int]:
        """The named counters, which nobody else changes until the transaction ends; 0 if never added to."""
        names = sorted(names)
        if not names:
            return {}
        query = (
            f"SELECT name, value FROM counters WHERE run_id = ? AND name IN ({', '.join('?' * len(names))}) "
            f"ORDER BY name{self._database.row_lock}"
        )
        found = dict(statements.execute(query, (run_id, *names)))
        if len(found) < len(names):
            # A row that is not there cannot be locked.
            statements.execute(
                f"INSERT INTO counters VALUES {', '.join(['(?, ?, 0)'] * len(names))} ON CONFLICT DO NOTHING",
                [field for name in names for field in (run_id, name)],
            )
            found = dict(statements.execute(query, (run_id, *names)))
        return found

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
        scope = self._scope(BUDGET)

        def reserved(statements: Statements) -> dict[str, int]:
            """Reserves if there is room; returns what is missing, by the names of caps."""
            known = self._lock_counters(statements, scope, _BUDGETED)
            beyond = {name: sum(known[n] for n in _COMMITTED[name]) + amounts[name] - cap for name, cap in caps.items()}
            missing = {name: amount for name, amount in beyond.items() if amount > 0}
            if not missing:
                self._add(statements, {**amounts, **{_IN_FLIGHT[name]: amount for name, amount in amounts.items()}})
                self._reserve_for(statements, key, amounts)
            return missing

        missing = self._database.transact(reserved)
        if not missing:
            return ROOM
        in_flight = self.in_flight()
        return NO_ROOM if any(amount > in_flight[name] for name, amount in missing.items()) else NO_ROOM_YET

    def in_flight(self) -> dict[str, int]:
        """What is reserved for requests that have not ended yet, by RESERVED_NANO_USD and RESERVED_TOKENS, of all runs
        in progress that share the budget.
        """
        others = self._database.execute("SELECT run_id FROM sharing WHERE scope = ?", (self._scope(BUDGET),))
        runs = {self.run_id, *(run_id for (run_id,) in others if _is_running(self._store, run_id))}
        names = tuple(_IN_FLIGHT.values())
        values = [self._values(run_id, names) for run_id in runs]
        return {name: sum(found.get(part, 0) for found in values) for name, part in _IN_FLIGHT.items()}

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
        scope = self._scope(BUDGET)

        def settled(statements: Statements) -> None:
            # Locked before anything else, as in `reserve`.
            self._lock_counters(statements, scope, _BUDGETED)
            self._add(statements, {name: value for name, value in changed.items() if value})
            self._reserve_for(statements, key, freed)
            statements.execute(
                "DELETE FROM reservations WHERE run_id = ? AND key = ? AND nano_usd <= 0 AND tokens <= 0",
                (self.run_id, key),
            )

        self._database.transact(settled)
        self._forget_signals(changed)

    def leave_unsettled(self, reserved: Mapping[str, int]) -> None:
        """Keeps the reservation of an ended request that is possibly billed; other requests no longer wait for it."""
        self.add({_IN_FLIGHT[name]: -amount for name, amount in reserved.items()})

    def _reserve_for(self, statements: Statements, key: str, amounts: Mapping[str, int]) -> None:
        statements.execute(
            "INSERT INTO reservations VALUES (?, ?, ?, ?) ON CONFLICT (run_id, key) DO UPDATE SET "
            "nano_usd = reservations.nano_usd + excluded.nano_usd, tokens = reservations.tokens + excluded.tokens",
            (self.run_id, key, amounts.get(RESERVED_NANO_USD, 0), amounts.get(RESERVED_TOKENS, 0)),
        )

    def all_reservations(self) -> dict[str, dict[str, int]]:
        """What is reserved and not settled, of all runs, by the request's key."""
        rows = self._database.execute(f"SELECT key, {_SUMS} FROM reservations GROUP BY key")
        return {key: {RESERVED_NANO_USD: nano_usd, RESERVED_TOKENS: tokens} for key, nano_usd, tokens in rows}

    def reservations(self) -> list[tuple[Any, ...]]:
        """What is reserved and not settled, of all runs: run, request's key, money and tokens."""
        return self._database.execute("SELECT run_id, key, nano_usd, tokens FROM reservations ORDER BY run_id, key")

    def add_reservations(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Adds reservations of another store, without those that are there."""
        self._database.executemany("INSERT INTO reservations VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def reservations_by_run(self) -> list[tuple[Any, ...]]:
        """Of all runs: id, number of requests, money and tokens that are reserved and not settled."""
        query = f"SELECT run_id, COUNT(*), {_SUMS} FROM reservations GROUP BY run_id ORDER BY run_id"
        return self._database.execute(query)

    def release(self, run_ids: Iterable[str]) -> None:
        """Forgets what these runs reserved."""
        self._database.executemany("DELETE FROM reservations WHERE run_id = ?", [(run_id,) for run_id in run_ids])

    def take_turn(self, durations_us: Mapping[str, int], now_us: int) -> int:
        """Takes each named queue for its duration; returns the start: when all are free, at `now_us` or later."""
        scope = self._scope(LIMITS)

        def taken(statements: Statements) -> int:
            start = max([now_us, *self._lock_counters(statements, scope, durations_us).values()])
            self._set(statements, scope, {name: start + duration for name, duration in durations_us.items()})
            return start

        return self._database.transact(taken)

    def move_turns(self, name: str, duration_us: int) -> None:
        """Makes a queue free `duration_us` later, or earlier if that is negative."""
        self._add_rows(self._database, [(self._scope(LIMITS), name, duration_us)])

    def change(self, names: Sequence[str], changed: Callable[[dict[str, int]], Mapping[str, int]]) -> None:
        """Sets counters to what `changed` makes of the named ones, with no other change in between."""

        def change(statements: Statements) -> None:
            self._set(statements, self.run_id, changed(self._lock_counters(statements, self.run_id, names)))

        self._database.transact(change)
        self._forget_signals(names)

    def _set(self, statements: Statements, run_id: str, values: Mapping[str, int]) -> None:
        statements.executemany(
            "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (run_id, name) DO UPDATE SET value = excluded.value",
            [(run_id, name, value) for name, value in sorted(values.items())],
        )

    def signal(self, name: str) -> int:
        """A counter that workers read at every call; 0 if it was never added to. A change by another process shows
        after SIGNAL_AGE_S at the latest.
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
        return self._values(self.run_id, names)

    def _values(self, run_id: str, names: Sequence[str]) -> dict[str, int]:
        query = f"SELECT name, value FROM counters WHERE run_id = ? AND name IN ({', '.join('?' * len(names))})"
        return dict(self._database.execute(query, (run_id, *names)))

    def totals(self) -> dict[str, int]:
        """All counters; a name that was never added to is absent."""
        return dict(self._database.execute("SELECT name, value FROM counters WHERE run_id = ?", (self.run_id,)))

    def note_first(self, name: str, text: str) -> str:
        """Keeps the first text of that name, whichever worker tells it; returns it."""
        self._database.execute(_NOTE, (self.run_id, name, text))
        return self.note(name)

    def note(self, name: str) -> str:
        """The text of that name; empty where there is none."""
        query = "SELECT text FROM notes WHERE run_id = ? AND name = ?"
        rows = self._database.execute(query, (self.run_id, name))
        return rows[0][0] if rows else ""

    def list_once(self, name: str, text: str) -> bool:
        """Adds a text to the run's list of that name; returns whether it was not there."""
        is_new = bool(self._database.execute(f"{_NOTE} RETURNING 1", (self.run_id, f"{name} {text}", text)))
        if is_new:
            self.add({name: 1})
        return is_new

    def listed(self, name: str) -> tuple[str, ...]:
        """The run's list of that name, in alphabetical order; `signal(name)` is its length."""
        query = "SELECT text FROM notes WHERE run_id = ? AND name = ? || ' ' || text"
        return tuple(sorted(text for (text,) in self._database.execute(query, (self.run_id, name))))

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
        """Makes the calling process the driver of the run during the block. The run ends with the process, and if the
        block fails.

        Raises:
            LlmError: the reason why a worker ended the run, in place of what Beam makes of the worker's error.
        """
        try:
            with self._driver.hold():
                self.add({_HAS_DRIVER: 1})
                yield
        except BaseException as error:
            # Also Ctrl-C: threads and processes that still work would go on spending.
            with contextlib.suppress(CacheError):
                self.end()
            if isinstance(error, Exception) and (reason := self.end_reason) and not isinstance(error, LlmError):
                raise LlmError(reason) from None
            raise

    def is_ended(self) -> bool:
        """Whether `end` was called, by whichever process, or the driver of the run is gone."""
        return self.signal(_ENDED) > 0 or (self.signal(_HAS_DRIVER) > 0 and not self._driver.is_alive())

    def forget(self) -> None:
        """Removes the run's counters, and what it shared if nobody else does."""

        def remove(statements: Statements) -> None:
            for scope in sorted({self._scope(what) for what in (BUDGET, LIMITS)} - {self.run_id}):
                self._lock_counters(statements, scope, _SHARED)
                statements.execute("DELETE FROM sharing WHERE scope = ? AND run_id = ?", (scope, self.run_id))
                if not statements.execute("SELECT 1 FROM sharing WHERE scope = ?", (scope,)):
                    statements.execute("DELETE FROM counters WHERE run_id = ?", (scope,))
            for table in ("counters", "notes"):
                statements.execute(f"DELETE FROM {table} WHERE run_id = ?", (self.run_id,))

        for what in (BUDGET, LIMITS):
            self._scope(what)
        self._database.transact(remove)

    def close(self) -> None:
        """Closes the calling thread's connection and locks, after `driven`."""
        self._driver.close()
        self._database.close()


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

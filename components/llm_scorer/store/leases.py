"""Locks for several machines: rows of PostgreSQL that expire unless their holder renews them."""

import contextlib
import threading
import time
import uuid

from sllmr.components.llm_scorer.store.interface import CacheError, Content, Held
from sllmr.components.llm_scorer.store.postgresql import RETRY_S, Server, connect_to
from sllmr.components.llm_scorer.store.processes import has_ended, process_name

BEAT_S = 5.0
"""Seconds between two renewals."""

LEASE_S = RETRY_S + 30
"""Seconds that a lease lasts: a worker that waits for the server keeps its leases, and a worker whose machine is lost
blocks others for this long. If a process was killed, its leases end as soon as another process on the same machine
wants one of them."""

_LEASES = Content(
    file_name="",
    name="record of leases",
    if_damaged="",
    if_unusable="no response is lost",
    is_receipt=True,
)


class Leases:
    """Locks by name and key in the table `leases`.

    PostgreSQL's session locks would not do: they are gone when a connection breaks or the server restarts, while the
    request that such a lock stands for may still be in flight.
    """

    poll_s = 0.5

    def __init__(self, server: Server, name: str):
        self._server = server
        self._name = name
        server.create(
            _LEASES,
            "to_regclass('leases')",
            [
                "CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, process TEXT NOT NULL, "
                "expires_at TIMESTAMPTZ NOT NULL) WITHOUT ROWID"
            ],
        )

    def try_lock(self, key: str) -> Held | None:
        name = f"{self._name} {key}"
        held = self._take(name)
        if held is None and (process := self._process(name)) is not None and has_ended(process):
            # Frees all leases of the ended process: others wait for these as well.
            self._server.transact(
                _LEASES, lambda statements: statements.execute("DELETE FROM leases WHERE process = ?", (process,))
            )
            held = self._take(name)
        return held

    def _take(self, name: str) -> Held | None:
        holder, asked_at = uuid.uuid4().hex, _now()
        taken = self._server.transact(
            _LEASES,
            lambda statements: statements.execute(
                "INSERT INTO leases VALUES (?, ?, ?, clock_timestamp() + make_interval(secs => ?)) ON CONFLICT (name) "
                "DO UPDATE SET holder = excluded.holder, process = excluded.process, expires_at = excluded.expires_at "
                "WHERE leases.expires_at <= clock_timestamp() RETURNING 1",
                (name, holder, process_name(), LEASE_S),
            ),
        )
        return _heart(self._server).keep(name, holder, asked_at) if taken else None

    def is_locked(self, key: str) -> bool:
        process = self._process(f"{self._name} {key}")
        return process is not None and not has_ended(process)

    def _process(self, name: str) -> str | None:
        """The process that holds a lease; None if nobody does."""
        found = self._server.attempt(
            _LEASES,
            lambda connection: connection.execute(
                "SELECT process FROM leases WHERE name = %s AND expires_at > clock_timestamp()", (name,)
            ).fetchone(),
        )
        return None if found is None else found[0]

    def close(self) -> None:
        """Nothing is open."""


class _Lease:
    """A Held that the process's _Heart renews."""

    def __init__(self, heart: "_Heart", name: str, holder: str, renewed_at: float):
        self._heart = heart
        self.name = name
        self.holder = holder
        self.renewed_at = renewed_at

    def is_held(self) -> bool:
        return _now() - self.renewed_at < LEASE_S - BEAT_S

    def release(self) -> None:
        self._heart.release(self)


class _Heart:
    """Renews the leases of this process as long as it lives."""

    def __init__(self, server: Server):
        self._server = server
        # With connections of its own: waiting threads may hold all others of the process.
        self._own = connect_to(server.url, "leases")
        self._held: dict[str, _Lease] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._beat, name="store-leases", daemon=True).start()

    def keep(self, name: str, holder: str, renewed_at: float) -> _Lease:
        lease = _Lease(self, name, holder, renewed_at)
        with self._lock:
            self._held[holder] = lease
        return lease

    def release(self, lease: _Lease) -> None:
        with self._lock:
            del self._held[lease.holder]
        # It expires by itself, and whoever uses the store next meets its error.
        with contextlib.suppress(CacheError):
            self._server.transact(
                _LEASES,
                lambda statements: statements.execute(
                    "DELETE FROM leases WHERE name = ? AND holder = ?", (lease.name, lease.holder)
                ),
            )

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            # Whoever uses the store meets its error; this thread tries on.
            with contextlib.suppress(CacheError):
                self._renew()

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        if not held:
            return
        asked_at = _now()
        renewed = self._own.transact(
            _LEASES,
            lambda statements: statements.execute(
                "UPDATE leases SET expires_at = clock_timestamp() + make_interval(secs => ?) WHERE holder = ANY(?) "
                "RETURNING holder",
                (LEASE_S, list(held)),
            ),
        )
        # Leases that expired and were taken by another process since keep their old renewed_at.
        for (holder,) in renewed:
            held[holder].renewed_at = asked_at


def _now() -> float:
    # Goes on while the machine sleeps.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_hearts: dict[Server, _Heart] = {}
_hearts_lock = threading.Lock()


def _heart(server: Server) -> _Heart:
    """The _Heart of this process: a fork has another Server, and needs a thread of its own."""
    with _hearts_lock:
        if server not in _hearts:
            _hearts[server] = _Heart(server)
        return _hearts[server]

"""What PostgreSQL adds to the tests of cache, ledger, and claims: a server that goes away, and what it refuses."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sllmr.components.llm_scorer.batch.state import CREATED, CREATING, Batch, BatchState
from sllmr.components.llm_scorer.messages import CHAT
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.store import postgresql
from sllmr.components.llm_scorer.store.interface import CacheError
from sllmr.components.llm_scorer.store.opening import open_locks
from sllmr.components.llm_scorer.store.postgresql import Server
from tests.components.llm_scorer.postgresql_server import PASSWORD, PostgresqlServer, running_postgresql
from tests.components.llm_scorer.requests.test_handler import config, contexts, reasons, session

KEY = "ab" * 32


@pytest.fixture
def own_server(monkeypatch) -> Iterator[PostgresqlServer]:
    """One that a test may stop."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with running_postgresql() as server:
        yield server
        postgresql.disconnect()


HOLD = """
import sys
from sllmr.components.llm_scorer.store import leases, processes
from sllmr.components.llm_scorer.store.opening import open_locks
leases.LEASE_S, leases.BEAT_S = float(sys.argv[3]), 0.2
if sys.argv[4] == "another machine":
    processes._machine = lambda: "another boot 1"
held = open_locks(sys.argv[1], "in_flight").try_lock(sys.argv[2])
print(held is not None, flush=True)
sys.stdin.readline()
"""


def holder(store: str, lease_s: float, machine: str) -> "subprocess.Popen[str]":
    """A process that holds KEY until it is killed."""
    command = [sys.executable, "-c", HOLD, store, KEY, str(lease_s), machine]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


@pytest.mark.slow
def test_a_lease_lasts_as_long_as_its_process_and_no_longer(shared_store):
    locks = open_locks(shared_store, "in_flight")
    with holder(shared_store, 1.5, "another machine") as process:
        # Twice as long as a lease that nobody renews.
        time.sleep(3)
        assert locks.try_lock(KEY) is None
        assert locks.is_locked(KEY)
        process.kill()
    while (held := locks.try_lock(KEY)) is None:
        time.sleep(0.1)
    assert held.is_held()
    held.release()
    assert not locks.is_locked(KEY)


def test_a_killed_process_of_this_machine_holds_nothing_more(shared_store):
    locks = open_locks(shared_store, "in_flight")
    with holder(shared_store, 3600, "this machine") as process:
        assert locks.is_locked(KEY)
        assert locks.try_lock(KEY) is None
        process.kill()
    assert not locks.is_locked(KEY)
    assert locks.try_lock(KEY) is not None


def test_locks_of_one_process_exclude_each_other_and_those_of_another_name_do_not(shared_store):
    locks, others = open_locks(shared_store, "in_flight"), open_locks(shared_store, "drivers")
    held = locks.try_lock(KEY)
    assert held is not None
    assert locks.try_lock(KEY) is None
    assert others.try_lock(KEY) is not None
    held.release()
    assert locks.try_lock(KEY) is not None


def test_a_lease_that_expired_is_not_held_and_its_release_leaves_the_next_holders(shared_store, monkeypatch):
    locks = open_locks(shared_store, "in_flight")
    with monkeypatch.context() as changed:
        changed.setattr("sllmr.components.llm_scorer.store.leases.LEASE_S", 0.0)
        late = locks.try_lock(KEY)
        assert late is not None
        assert not late.is_held()
    following = locks.try_lock(KEY)
    assert following is not None
    late.release()
    assert locks.is_locked(KEY)


def test_a_claim_that_was_lost_before_the_request_was_sent_is_taken_again(stub, tmp_path, monkeypatch):
    held = iter([False])
    monkeypatch.setattr("sllmr.components.llm_scorer.store.file_locks._HeldByte.is_held", lambda self: next(held, True))
    answered = session(config(stub), stub.base_url, str(tmp_path)).score_all(contexts(1))
    assert reasons(answered) == {"": 1}
    assert len(stub.received) == 1
    totals = RunLedger(str(tmp_path), "run").totals()
    assert totals[ledger.RESERVED_NANO_USD] == totals[ledger.IN_FLIGHT_NANO_USD] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_requests_outlive_a_server_that_is_away_for_seconds_and_none_is_sent_twice(stub, own_server, number):
    store = own_server.new_database()
    stub.gate.clear()
    scoring = session(config(stub, concurrency=8), stub.base_url, store)
    answered: list = []
    thread = threading.Thread(target=lambda: answered.extend(scoring.score_all(contexts(24))))
    thread.start()
    stub.wait_until(lambda: len(stub.received) == 8)
    own_server.stop(number)
    # Their responses were paid for, and there is nowhere to store them.
    stub.gate.set()
    stub.wait_until(lambda: len(stub.answered) == 8)
    time.sleep(1)
    own_server.start()
    thread.join()
    assert reasons(answered) == {"": 24}
    assert len(stub.received) == 24
    totals = RunLedger(store, "run").totals()
    assert totals[ledger.REQUESTS_SENT] == 24
    assert totals[ledger.NANO_USD] == 24 * 195_000
    assert totals[ledger.RESERVED_NANO_USD] == totals[ledger.IN_FLIGHT_NANO_USD] == 0
    assert ledger.unsettled_reservations(store) == {}


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_job_and_its_requests_stay_reserved(stub, own_server, monkeypatch):
    monkeypatch.setattr(postgresql, "RETRY_S", 1.0)
    store = own_server.new_database()
    stub.gate.clear()
    scoring = session(config(stub, concurrency=4), stub.base_url, store)
    errors: list[CacheError] = []

    def score() -> None:
        try:
            scoring.score_all(contexts(8))
        except CacheError as error:
            errors.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    stub.wait_until(lambda: len(stub.received) == 4)
    own_server.stop()
    stub.gate.set()
    thread.join()
    (error,) = errors
    assert f"in {store} cannot be used" in str(error)
    assert "check that the server runs" in str(error)
    assert PASSWORD not in str(error)
    assert len(stub.received) == 4
    own_server.start()
    assert len(ledger.unsettled_reservations(store)) == 4


@contextlib.contextmanager
def cutting_proxy(port: int, *, before: bool) -> Iterator[int]:
    """A port that passes everything on, and cuts the first connection that commits after `cut` in its statements.

    Args:
        before: the server receives the commit, or it does not; the client never gets an answer to it.
    """
    cut = threading.Event()

    def serve(client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", port))

        def answer() -> None:
            with contextlib.suppress(OSError):
                while data := server.recv(65536):
                    client.sendall(data)

        back = threading.Thread(target=answer, daemon=True)
        back.start()
        marked = False
        with contextlib.suppress(OSError), server, client:
            while data := client.recv(65536):
                marked = marked or b"to be cut" in data
                if marked and b"COMMIT" in data and not cut.is_set():
                    cut.set()
                    client.shutdown(socket.SHUT_RDWR)
                    if not before:
                        server.sendall(data)
                        # The server answers, and nobody hears it.
                        back.join(5)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        assert cut.is_set()
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("before", [False, True], ids=["committed", "not committed"])
def test_a_commit_whose_confirmation_is_lost_takes_effect_once(postgresql, shared_store, before):
    run = RunLedger(shared_store, "run")
    run.add({"to be cut": 1})
    with cutting_proxy(postgresql.port, before=before) as port:
        through = RunLedger(shared_store.replace(str(postgresql.port), str(port)), "run")
        through.add({"to be cut": 10})
    assert run.totals() == {"to be cut": 11}


SLOW_COMMIT = """
CREATE FUNCTION wait_a_second() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER UPDATE ON counters DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_a_second()
"""
ADD_TEN = "UPDATE counters SET value = value + 10 WHERE name = 'to be cut'"


def test_a_first_commit_that_the_server_still_works_on_takes_effect_once(postgresql, shared_store):
    """The server goes on with a commit whose connection is gone, while the client already tries again."""
    run = RunLedger(shared_store, "run")
    run.add({"to be cut": 1})
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        connection.execute(SLOW_COMMIT)
    with cutting_proxy(postgresql.port, before=False) as port:
        fresh = Server(shared_store.replace(str(postgresql.port), str(port)))
        fresh.transact(ledger._RUNS, lambda statements: statements.execute(ADD_TEN))
        fresh.close()
    assert run.totals() == {"to be cut": 11}


def test_a_connection_that_was_idle_for_longer_than_its_row_is_kept_is_replaced(postgresql, shared_store):
    run = RunLedger(shared_store, "run")
    run.add({"n": 1})
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        connection.execute("DELETE FROM commits")
        run.add({"n": 10})
        (commits,) = connection.execute("SELECT COUNT(*) FROM commits WHERE number >= 0").fetchone()
    assert run.totals() == {"n": 11}
    assert commits == 1


def test_two_that_store_a_response_to_one_request_at_the_same_moment_keep_both(postgresql, shared_store):
    cache = ResponseCache(shared_store)
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as other, other.transaction():
        # Another worker's, not committed yet.
        other.execute("INSERT INTO responses VALUES ('key', '{\"n\": 1}', 'c', 5)")
        storing = threading.Thread(target=cache.put, args=("key", {"n": 2}))
        storing.start()
        while not other.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            assert storing.is_alive()
    storing.join()
    assert cache.get("key")[0] == {"n": 2}
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as other:
        assert other.execute("SELECT value FROM receipts").fetchall() == [('{"n": 1}',)]


def test_the_clock_is_the_servers(postgresql, shared_store):
    before = time.monotonic()
    run = RunLedger(shared_store, "run")
    with postgresql.connect("postgres") as connection:
        first = run.clock()
        (now,) = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
        last = run.clock()
    after = time.monotonic()
    # As far apart as the round trips of this test, at most.
    assert first - (after - before) <= float(now) <= last + (after - before)


def test_batches_come_in_the_order_in_which_they_were_added(store):
    state = BatchState(store)
    batches = [
        Batch(name=name, base_url="u", kind=CHAT, requests=2, tokens=3, creation_begun_at=at + 0.123456)
        for name, at in (("z", 1_800_000_003.0), ("a", 1_800_000_002.0), ("m", 1_800_000_001.0))
    ]
    for batch in batches:
        state.add(batch, [f"{batch.name}1", f"{batch.name}2"])
    assert state.batches((CREATING, CREATED)) == batches
    assert state.keys(batches[1]) == {"a1", "a2"}
    state.finish(batches[1], {"a1": "answered", "a2": "timeout"}, {})
    assert state.batches((CREATING,)) == [batches[0], batches[2]]
    assert (state.handing("a2").attempts, state.handing("z1").batch) == (1, "z")
    assert state.keys_in_flight() == {"z1", "z2", "m1", "m2"}


USE_TLS_BESIDE_TENSORFLOW = """
import sys
import tensorflow
from sllmr.components.llm_scorer.requests.ledger import PAIRS_DONE, RunLedger
for number in range(1, 6):
    RunLedger(sys.argv[1], f"run {number}").add({PAIRS_DONE: number})
"""


@pytest.mark.slow
def test_a_process_that_loaded_tensorflow_first_uses_the_store_over_tls(monkeypatch):
    """TensorFlow brings a TLS of its own, whose functions have the names of those that the client calls."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with running_postgresql(tls=True) as server:
        url = f"{server.new_database()}?sslmode=verify-full&sslrootcert={server.certificate}"
        subprocess.run([sys.executable, "-c", USE_TLS_BESIDE_TENSORFLOW, url], check=True)
        done = [RunLedger(url, f"run {number}").totals()[ledger.PAIRS_DONE] for number in range(1, 6)]
        assert done == [1, 2, 3, 4, 5]
        with pytest.raises(CacheError, match=r"root certificate file .* does not exist.*set sslrootcert"):
            RunLedger(url.replace(str(server.certificate), "/no/such.pem"), "run")
        postgresql.disconnect()


def test_a_wrong_password_is_named_with_where_it_comes_from(shared_store, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wrong-Hx55")
    with pytest.raises(CacheError, match=r"password authentication failed.*PGPASSWORD") as raised:
        ResponseCache(shared_store)
    assert "wrong-Hx55" not in str(raised.value)


def test_a_database_that_is_not_there_is_named_at_once(postgresql, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with pytest.raises(CacheError, match=r'/none cannot be used .*"none" does not exist.*create what is missing'):
        ResponseCache(postgresql.url("none"))


def test_a_server_that_does_not_run_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"postgresql://u@127.0.0.1:{free.getsockname()[1]}/d"
        with pytest.raises(CacheError, match=r"cannot be used.*check that the server runs"):
            RunLedger(store, "run")


def test_a_user_who_may_make_no_tables_is_told_what_to_grant(postgresql, shared_store, monkeypatch):
    with postgresql.connect("postgres") as connection:
        connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    with pytest.raises(CacheError, match=r"permission denied for schema public.*GRANT CREATE"):
        RunLedger(shared_store.replace("scorer@", "reader@"), "run")


def test_tables_that_are_not_ours_are_named(postgresql, shared_store):
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        connection.execute("CREATE TABLE counters (other INTEGER)")
    with pytest.raises(CacheError, match=r"record of runs in postgresql://.* cannot be used.*a database of its own"):
        RunLedger(shared_store, "run").add({"n": 1})


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "sllmr.components.llm_scorer.store.postgresql")
    with pytest.raises(CacheError, match=r"pip install 'psycopg\[binary\]>=3"):
        ResponseCache("postgresql://user@host/database")

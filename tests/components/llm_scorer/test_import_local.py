"""A used cache_dir, and a database that `store` names from now on: nothing is paid for twice."""

import concurrent.futures
import contextlib
import dataclasses
import sqlite3

import apache_beam as beam
import pytest

from sllmr.components.item_embedder.config import EmbeddingEndpoint
from sllmr.components.item_embedder.endpoint import EndpointEmbedder
from sllmr.components.llm_scorer.batch.job import BatchJob
from sllmr.components.llm_scorer.batch.state import CREATED, CREATING, DROPPED, REFUSED, Batch, BatchState, Handing
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs import import_local
from sllmr.components.llm_scorer.jobs.batching import batch_job
from sllmr.components.llm_scorer.jobs.forecasting import forecast_job
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.messages import CHAT, Usage
from sllmr.components.llm_scorer.requests import cache, ledger
from sllmr.components.llm_scorer.requests.cache import FILE_NAME, ResponseCache
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.pipeline.reservations import reservations
from tests.components.llm_scorer.market import market_rows
from tests.components.llm_scorer.stub_batch_server import running_batch_stub
from tests.components.llm_scorer.test_job import stub_settings, workspace

BATCH = Batch(name="b", base_url="http://e/v1", kind=CHAT, requests=2, tokens=3, creation_begun_at=1.5)
RESERVED = {ledger.RESERVED_NANO_USD: 500, ledger.RESERVED_TOKENS: 7}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "test-key-Zq81Wm42Lp97Xt65")


def train_rows() -> beam.PTransform:
    return beam.Create(market_rows())


def put(store: str, key: str, text: str) -> None:
    with contextlib.closing(ResponseCache(store)) as responses:
        responses.put(key, {"text": text})


def kept(store: str, key: str) -> tuple[str | None, list[str]]:
    """Texts of the response to a request and of its receipts."""
    with contextlib.closing(ResponseCache(store)) as responses:
        found = responses.get(key)
        receipts = [receipt["text"] for receipt in responses.receipts(key)]
    return None if found is None else found[0]["text"], sorted(receipts)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the folder of each copy that is made."""
    made: list[str] = []
    copy = import_local._copy

    def counted(directory: str, store: str) -> None:
        made.append(directory)
        copy(directory, store)

    monkeypatch.setattr(import_local, "_copy", counted)
    return made


def test_responses_receipts_ended_batches_and_reservations_are_copied_once(tmp_path, shared_store, copies):
    local = str(tmp_path)
    put(local, "key", "no score")
    put(local, "key", "a score")
    with contextlib.closing(BatchState(local)) as batches:
        batches.add(BATCH, ["answered", "lost"])
        lost = Usage(prompt=5, cached_prompt=1, completion=2)
        batches.finish(BATCH, {"answered": "answered", "lost": "timeout"}, {"lost": lost})
        for step in (REFUSED, DROPPED):
            batch = dataclasses.replace(BATCH, name=step)
            batches.add(batch, ["other"])
            batches.update(dataclasses.replace(batch, step=step))
    with contextlib.closing(RunLedger(local, "killed")) as run:
        assert run.reserve("unsettled", RESERVED, {}) == ledger.ROOM

    for _ in range(2):
        import_local.import_local(local, shared_store)

    assert copies == [local]
    assert kept(shared_store, "key") == ("a score", ["no score"])
    state = BatchState(shared_store)
    assert state.handing("lost") == Handing(attempts=1, reason="timeout", lost=lost)
    assert state.handing("answered") == Handing()
    assert [batch.name for batch in state.batches(("done", REFUSED, DROPPED))] == ["b", REFUSED, DROPPED]
    assert ledger.unsettled_reservations(shared_store) == {"unsettled": RESERVED}
    assert kept(local, "key") == ("a score", ["no score"])


def test_what_a_run_without_the_store_adds_later_is_copied_as_well(tmp_path, shared_store, copies):
    local = str(tmp_path)
    put(local, "key", "no score")
    import_local.import_local(local, shared_store)
    put(local, "key", "a score")
    put(local, "other", "new")
    for _ in range(2):
        import_local.import_local(local, shared_store)
    assert copies == [local, local]
    assert kept(shared_store, "key") == ("a score", ["no score"])
    assert kept(shared_store, "other") == ("new", [])


def test_a_response_in_the_database_stays_and_the_imported_one_is_a_receipt(tmp_path, shared_store):
    put(shared_store, "key", "a score")
    put(str(tmp_path), "key", "no score")
    import_local.import_local(str(tmp_path), shared_store)
    assert kept(shared_store, "key") == ("a score", ["no score"])


def test_a_response_that_both_have_is_paid_for_once(tmp_path, shared_store):
    with (
        contextlib.closing(ResponseCache(str(tmp_path))) as local,
        contextlib.closing(ResponseCache(shared_store)) as shared,
    ):
        for responses in (local, shared):
            responses.put_all([("key", {"text": "first"})], 5)
        shared.put_all([("key", {"text": "second"})], 6)
    import_local.import_local(str(tmp_path), shared_store)
    assert kept(shared_store, "key") == ("second", ["first"])


def test_a_copy_that_was_killed_is_completed_by_the_next(tmp_path, shared_store, monkeypatch, copies):
    monkeypatch.setattr(cache, "_COPIED_AT_ONCE", 2)
    keys = [f"key {number}" for number in range(5)]
    for key in keys:
        put(str(tmp_path), key, "no score")
        put(str(tmp_path), key, "a score")
    steps = ResponseCache.copy_to

    def killed(self, other):
        yield next(steps(self, other))
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(ResponseCache, "copy_to", killed)
        with pytest.raises(KeyboardInterrupt):
            import_local.import_local(str(tmp_path), shared_store)
    assert [kept(shared_store, key)[0] for key in keys] == ["a score"] * 2 + [None] * 3
    import_local.import_local(str(tmp_path), shared_store)
    assert [kept(shared_store, key) for key in keys] == [("a score", ["no score"])] * 5
    assert copies == [str(tmp_path)] * 2


def test_two_machines_that_import_at_once_lose_nothing(tmp_path, shared_store, monkeypatch):
    monkeypatch.setattr(cache, "_COPIED_AT_ONCE", 7)
    for machine in ("one", "two"):
        with contextlib.closing(ResponseCache(str(tmp_path / machine))) as responses:
            responses.put_all([(f"key {number}", {"text": machine}) for number in range(50)], 5)
            responses.put_all([(f"{machine} {number}", {"text": machine}) for number in range(50)], 5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        # Two commands of each machine.
        list(pool.map(lambda name: import_local.import_local(str(tmp_path / name), shared_store), ["one", "two"] * 2))
    for number in range(50):
        response, receipts = kept(shared_store, f"key {number}")
        assert sorted([response, *receipts]) == ["one", "two"]
        for machine in ("one", "two"):
            assert kept(shared_store, f"{machine} {number}") == (machine, [])


def test_a_damaged_response_is_left_out(tmp_path, shared_store):
    for key in ("damaged", "key", "zzz"):
        put(str(tmp_path), key, "true")
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE responses SET value = CAST(x'ff' AS TEXT) WHERE key = 'damaged'")
        connection.execute("UPDATE responses SET key = CAST(x'ff' AS TEXT) WHERE key = 'zzz'")
    import_local.import_local(str(tmp_path), shared_store)
    assert kept(shared_store, "damaged") == (None, [])
    assert kept(shared_store, "key") == ("true", [])


@pytest.mark.parametrize("step", [CREATING, CREATED])
def test_a_batch_in_flight_stops_the_command_with_the_fix(tmp_path, shared_store, step):
    put(str(tmp_path), "key", "a score")
    with contextlib.closing(BatchState(str(tmp_path))) as batches:
        batches.add(BATCH, ["key"])
        batches.update(dataclasses.replace(BATCH, step=step, batch_id="batch-7"))
    with pytest.raises(LlmError, match=r"batches in flight.*batch-7 at http://e/v1; remove store, fetch them with"):
        import_local.import_local(str(tmp_path), shared_store)
    assert kept(shared_store, "key") == (None, [])


def test_a_run_in_progress_stops_the_command(tmp_path, shared_store):
    with contextlib.closing(RunLedger(str(tmp_path), "run")) as run:
        with run.driven():
            run.reserve("key", RESERVED, {})
            with pytest.raises(LlmError, match=r"while a run has requests in flight.*wait for it or stop it"):
                import_local.import_local(str(tmp_path), shared_store)
        import_local.import_local(str(tmp_path), shared_store)
    assert ledger.unsettled_reservations(shared_store) == {"key": RESERVED}


def test_a_folder_without_responses_leaves_no_trace(tmp_path, shared_store, postgresql):
    import_local.import_local(str(tmp_path / "none"), shared_store)
    import_local.import_local(str(tmp_path), str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with postgresql.connect(shared_store.rsplit("/", 1)[1]) as connection:
        assert connection.execute("SELECT to_regclass('imports')").fetchone() == (None,)


@pytest.mark.slow
def test_a_plan_that_was_paid_for_in_cache_dir_is_cached_in_the_store(stub, tmp_path, shared_store):
    paid = score(workspace(tmp_path, "local", stub_settings(stub)), train_rows())
    sent = len(stub.received)
    size = forecast_job(workspace(tmp_path, "plan", stub_settings(stub), store_url=shared_store), train_rows())[-1].size
    assert (size.cached, size.to_send) == (paid.requests.sent, 0)
    assert size.prior_nano_usd == round(paid.cost_usd * 1e9)
    book = score(workspace(tmp_path, "shared", stub_settings(stub), store_url=shared_store), train_rows())
    assert (book.requests.sent, book.scored) == (0, paid.scored)
    assert len(stub.received) == sent


@pytest.mark.slow
def test_scoring_itself_imports_what_was_paid_for(stub, tmp_path, shared_store):
    score(workspace(tmp_path, "local", stub_settings(stub)), train_rows())
    book = score(workspace(tmp_path, "shared", stub_settings(stub), store_url=shared_store), train_rows())
    assert book.requests.sent == 0


@pytest.mark.slow
def test_a_batch_in_flight_in_cache_dir_is_not_submitted_to_the_store_again(tmp_path, shared_store):
    def job(name: str, **options) -> BatchJob:
        settings = stub_settings(endpoint, strategy="listwise", batch={"poll_s": 0.01})
        return batch_job(workspace(tmp_path, name, settings, **options), train_rows())

    with running_batch_stub() as endpoint:
        with contextlib.closing(job("local")) as local:
            local.run(wait=False)
            with pytest.raises(LlmError, match="remove store"):
                job("early", store_url=shared_store)
            paid = local.run(wait=True)
        with contextlib.closing(job("shared", store_url=shared_store)) as shared:
            report = shared.run(wait=True)
    assert len(endpoint.batches) == 1
    assert report.answered == paid.answered == paid.requests
    assert report.cost_usd == paid.cost_usd


def test_texts_that_were_embedded_into_cache_dir_are_cached_in_the_store(stub, tmp_path, shared_store):
    config = EmbeddingEndpoint(model="text-embedding-3-small", base_url=stub.base_url, api_key_env="STUB_KEY")
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    stub.always = lambda handler, body: handler.send_json(200, {"data": [{"embedding": [1.0, 2.0]}], "usage": usage})
    folders = str(tmp_path / "cache"), str(tmp_path)
    assert EndpointEmbedder(config, folders[0], None, folders[1]).embed(["a", "b"]).sent == 2
    embedder = EndpointEmbedder(config, folders[0], shared_store, folders[1])
    assert embedder.estimate(["a", "b"]).to_send == 0
    assert embedder.embed(["a", "b"]).sent == 0


def test_reservations_of_cache_dir_are_listed_and_released_in_the_store(tmp_path, shared_store, capsys):
    local = tmp_path / "cache"
    with contextlib.closing(RunLedger(str(local), "killed")) as run:
        run.reserve("key", RESERVED, {})
    config = tmp_path / "shop.yaml"
    config.write_text(f"name: shop\ncache_dir: {local}\nstore: {shared_store}\ndata: {{interactions: a, items: b}}")
    reservations(config, release=True)
    assert "Released: 1 requests of 1 runs" in capsys.readouterr().out
    assert ledger.unsettled_reservations(shared_store) == {}

"""A table brought up to date: who is asked again, what is kept, and how far preferences moved."""

import dataclasses
import glob
import gzip
import hashlib
import itertools
import pathlib
import re
import sqlite3

import apache_beam as beam
import pytest
import tensorflow as tf

from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.contexts.candidates import PositiveRow, context_id
from sllmr.components.llm_scorer.contexts.rescoring import pair_with_rows
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.rescoring import rescore as rescore_table
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.messages import user_key
from sllmr.components.llm_scorer.requests.cache import _checksum
from sllmr.components.llm_scorer.results import ScoringLedger, read_ledger
from sllmr.components.scores import TARGET, ScoreRecord, read_scores
from tests.components.llm_scorer.market import market_items, market_rows, row, user_rows, write_earlier_positives
from tests.components.llm_scorer.stub_server import StubHandler, StubServer, chat_response, running_stub
from tests.components.llm_scorer.test_job import stub_settings, workspace

pytestmark = pytest.mark.slow

USERS, LENGTH, CONTEXTS = 12, 6, 10
TITLE_IDS = {item.title: item_id for item_id, item in market_items().items()}


def opinion(history: str, title: str) -> float:
    """A score that depends on the whole history and the candidate."""
    return int(hashlib.sha256(f"{history}{title}".encode()).hexdigest()[:4], 16) / 0xFFFF


def history_and_candidates(body: dict) -> tuple[str, list[str]]:
    text = body["messages"][-1]["content"]
    return text.split("Score each")[0], re.findall(r"^\d+\. (.*):", text, re.MULTILINE)


def with_opinion(handler: StubHandler, body: dict) -> None:
    history, titles = history_and_candidates(body)
    entries = [{"item": n, "score": opinion(history, title)} for n, title in enumerate(titles, start=1)]
    handler.send_json(200, chat_response(entries))


@pytest.fixture(autouse=True)
def _with_opinions(stub: StubServer) -> None:
    stub.always = with_opinion


def rows_of(lengths: dict[int, int]) -> list[bytes]:
    return [line for user, length in lengths.items() for line in user_rows(user, length)]


def table_of(directory: pathlib.Path) -> dict[str, ScoreRecord]:
    return {record.context_id: record for record in read_scores(str(directory))}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The table of a first run over USERS users, who all chose LENGTH items; its cache is out of reach. Read only."""
    root = tmp_path_factory.mktemp("first")
    with running_stub() as server:
        server.always = with_opinion
        score(workspace(root, "first", stub_settings(server)), beam.Create(market_rows(USERS, LENGTH)))
        assert len(server.received) == CONTEXTS
    return root / "first" / "scores"


def users_in(table: pathlib.Path) -> list[int]:
    keys = {record.user_key for record in table_of(table).values()}
    return [user for user in range(USERS) if user_key(f"user-{user}", 0) in keys]


def grown(table: pathlib.Path, changed: int) -> dict[int, int]:
    """Everybody's number of items today: so many users of the table have chosen two more."""
    users = users_in(table)[:changed]
    return {user: LENGTH + 2 * (user in users) for user in range(USERS)}


def rescore(tmp_path, stub, table, rows, name="second", max_age_days=None, **values) -> ScoringLedger:
    book = rescore_table(
        workspace(tmp_path, name, stub_settings(stub, **values)), beam.Create(rows), str(table), max_age_days
    )
    assert book.scored + book.failed == book.requested
    return book


def test_exactly_the_users_with_new_choices_are_asked_though_every_pool_has_moved(stub, tmp_path, first):
    lengths = grown(first, 3)
    later = workspace(tmp_path, "second", stub_settings(stub))
    # What was rare is popular today: a plan drawn anew would ask everybody about other candidates.
    items = [dataclasses.replace(i, train_count=100 - i.train_count) for i in market_items().values()]
    write_catalog(later.catalog_directory, items)
    book = rescore_table(later, beam.Create(rows_of(lengths)), str(first), None)

    assert len(stub.received) == 3
    assert book.requests.sent == 3
    # A history is told latest first; the newest item in it is the one before the latest choice.
    latest = {f"i{(7 * user + 5 * (LENGTH + 2 - 2)) % 60}" for user in users_in(first)[:3]}
    told = {history_and_candidates(body)[0].split("\n")[1] for body in stub.received}
    assert {TITLE_IDS[line.removeprefix("- ").split(":")[0]] for line in told} == latest
    assert book.rescore.kept == CONTEXTS - 3
    assert book.rescore.scored_again == {"history": 3, "prompt": 0, "age": 0}
    assert (book.rescore.new, book.rescore.gone) == (0, 0)
    assert (book.contexts, book.requested, book.kept) == (CONTEXTS, 60, 6 * (CONTEXTS - 3))

    before, after = table_of(first), table_of(tmp_path / "second" / "scores")
    assert len(after) == CONTEXTS
    kept = before.keys() & after.keys()
    assert len(kept) == CONTEXTS - 3
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_the_drift_is_that_of_a_plain_loop_over_what_the_server_said(stub, tmp_path, first):
    book = rescore(tmp_path, stub, first, rows_of(grown(first, 6)))
    before = {record.user_key: record for record in table_of(first).values()}
    after = {record.user_key: record for record in table_of(tmp_path / "second" / "scores").values()}
    moved = [key for key in before if before[key].context_id != after[key].context_id]
    assert len(moved) == 6
    flipped = pairs = shared = 0
    change = 0.0
    for key in moved:
        old = dict(zip(before[key].item_ids, before[key].llm_scores, strict=True))
        new = dict(zip(after[key].item_ids, after[key].llm_scores, strict=True))
        common = [item for item in old if item in new]
        shared += len(common)
        change += sum(abs(old[item] - new[item]) for item in common)
        for a, b in itertools.combinations(common, 2):
            pairs += 1
            flipped += (old[a] > old[b]) != (new[a] > new[b])
    drift = book.rescore.drift
    assert 0 < flipped < pairs
    assert (drift.contexts, drift.shared_candidates) == (6, shared)
    assert (drift.pairs, drift.flipped) == (pairs, flipped)
    assert drift.mean_absolute_change == pytest.approx(change / shared)


def test_a_moved_context_keeps_its_candidates_and_asks_about_the_latest_choice(stub, tmp_path, first):
    rescore(tmp_path, stub, first, rows_of(grown(first, 6)))
    before = {record.user_key: record for record in table_of(first).values()}
    calibration = 0
    for record in table_of(tmp_path / "second" / "scores").values():
        old = before[record.user_key]
        if record.context_id == old.context_id:
            continue
        assert record.history_length == LENGTH + 1
        assert record.user_positives == LENGTH + 1
        user = next(u for u in range(USERS) if user_key(f"user-{u}", 0) == record.user_key)
        chosen = {f"i{(7 * user + 5 * n) % 60}" for n in range(LENGTH + 2)}
        assert bool(record.target_item_id) == bool(old.target_item_id)
        calibration += bool(record.target_item_id)
        assert set(record.item_ids) & chosen <= {record.target_item_id}
        if record.target_item_id:
            assert record.target_item_id == f"i{(7 * user + 5 * (LENGTH + 1)) % 60}"
            assert record.roles.count(TARGET) == 1
        # Two negatives beside the new target item; the slots left are the earlier candidates'.
        places = 6 - 3 * bool(record.target_item_id)
        still = set(old.item_ids) - chosen
        assert len(still & set(record.item_ids)) >= min(places, len(still))
    assert calibration > 0


def test_nothing_new_asks_nothing_and_copies_the_table_failures_included(stub, tmp_path):
    def half_valid(handler, body):
        history, titles = history_and_candidates(body)
        entries = [{"item": n, "score": opinion(history, titles[n - 1])} for n in (1, 2, 3)]
        handler.send_json(200, chat_response([*entries, {"item": 77, "score": 1}]))

    stub.always = half_valid
    settings = stub_settings(stub, max_failure_rate=0.6)
    book = score(workspace(tmp_path, "first", settings), beam.Create(market_rows(USERS, LENGTH)))
    assert (book.scored, book.failures) == (30, {messages.MISSING_ITEM: 30})
    stub.always = with_opinion
    stub.received.clear()
    first = tmp_path / "first" / "scores"
    # Whether some contexts are to be asked twice says nothing about the answers at hand.
    again = rescore(tmp_path, stub, first, market_rows(USERS, LENGTH), audit={"fraction": 1})
    assert stub.received == []
    assert (again.kept, again.scored, again.failures) == (60, 30, {messages.MISSING_ITEM: 30})
    assert again.rescore.kept == CONTEXTS
    assert again.rescore.drift.contexts == 0
    assert table_of(tmp_path / "second" / "scores") == table_of(first)
    assert failures_in(tmp_path / "second" / "scores") == failures_in(first)


def failures_in(directory: pathlib.Path) -> list[str]:
    lines = []
    for path in glob.glob(str(directory / "failures-*.gz")):
        with gzip.open(path, "rt") as file:
            lines += file.readlines()
    return sorted(lines)


def test_users_who_left_are_gone_and_their_places_go_to_users_who_were_not_in_the_table(stub, tmp_path, first):
    present = users_in(first)
    absent = set(range(USERS)) - set(present)
    assert len(absent) == 2
    lengths = {user: LENGTH for user in range(USERS) if user not in present[:3]}
    book = rescore(tmp_path, stub, first, rows_of(lengths))
    part = book.rescore
    assert (part.kept, part.new, part.gone) == (CONTEXTS - 3, 3, 3)
    assert len(stub.received) == 3
    # Two users for three places: one of them is asked about a second row.
    keys = {record.user_key for record in table_of(tmp_path / "second" / "scores").values()}
    assert keys == {user_key(f"user-{user}", 0) for user in lengths}


def aged(table: pathlib.Path, target: pathlib.Path, days: dict[str, float]) -> pathlib.Path:
    """A copy of a table in which some contexts were scored so many days earlier."""
    target.mkdir()
    with tf.io.TFRecordWriter(str(target / "scores-00000-of-00001.tfrecord.gz"), "GZIP") as writer:
        for record in table_of(table).values():
            scored_at = record.scored_at - round(86400 * days.get(record.context_id, 0))
            writer.write(dataclasses.replace(record, scored_at=scored_at).serialize())
    return target


def test_scores_beyond_the_age_are_asked_again_although_the_cache_knows_an_answer(stub, tmp_path):
    settings = stub_settings(stub)
    score(workspace(tmp_path, "first", settings), beam.Create(market_rows(USERS, LENGTH)))
    first = tmp_path / "first" / "scores"
    old = sorted(table_of(first))[:4]
    table = aged(first, tmp_path / "aged", dict.fromkeys(old, 40))
    make_answers_older(tmp_path / "cache" / "responses.sqlite", days=40)
    stub.received.clear()
    book = rescore(tmp_path, stub, table, market_rows(USERS, LENGTH), max_age_days=30)
    assert len(stub.received) == 4
    assert book.rescore.scored_again == {"history": 0, "prompt": 0, "age": 4}
    after = table_of(tmp_path / "second" / "scores")
    assert all(after[name].scored_at >= table_of(first)[name].scored_at for name in old)

    stub.received.clear()
    young = rescore(tmp_path, stub, table, market_rows(USERS, LENGTH), name="third", max_age_days=50)
    assert (stub.received, young.rescore.kept) == ([], CONTEXTS)


def make_answers_older(path: pathlib.Path, days: int) -> None:
    """Moves every answer in the cache back, with the checksums that belong to it."""
    connection = sqlite3.connect(path)
    with connection:
        for key, value, answered_at in connection.execute("SELECT key, value, answered_at FROM responses").fetchall():
            earlier = answered_at - days * 86400
            connection.execute(
                "UPDATE responses SET answered_at = ?, checksum = ? WHERE key = ?",
                (earlier, _checksum(key, value, earlier), key),
            )
    connection.close()


def test_another_prompt_or_setting_asks_everybody_again(stub, tmp_path, first):
    book = rescore(tmp_path, stub, first, market_rows(USERS, LENGTH), history_items=1)
    assert len(stub.received) == CONTEXTS
    assert book.rescore.scored_again == {"history": 0, "prompt": CONTEXTS, "age": 0}
    assert book.rescore.drift.contexts == CONTEXTS


def test_a_replay_of_the_new_table_uses_all_of_it_and_nothing_else(stub, tmp_path, first, caplog):
    caplog.set_level("INFO")
    rows = rows_of(grown(first, 3))
    rescore(tmp_path, stub, first, rows)
    second = tmp_path / "second" / "scores"
    replay = {"strategy": "replay", "replay_table": str(second), "budget": {"pairs": 60}}
    book = score(workspace(tmp_path, "replay", replay), beam.Create(rows))
    assert (book.contexts, book.scored, book.failed, book.contexts_outdated) == (CONTEXTS, 60, 0, 0)
    assert "10 of the 10 contexts of llm.replay_table are used" in caplog.text
    told = {name: (r.item_ids, r.llm_scores, r.history_item_ids) for name, r in table_of(second).items()}
    replayed = table_of(tmp_path / "replay" / "scores")
    assert {name: (r.item_ids, r.llm_scores, r.history_item_ids) for name, r in replayed.items()} == told

    # The table before is of users who have chosen more since.
    stale = score(workspace(tmp_path, "stale", {**replay, "replay_table": str(first)}), beam.Create(rows))
    assert (stale.contexts, stale.contexts_outdated) == (CONTEXTS, 3)


def test_a_replayed_table_tells_no_candidate_that_its_user_has_chosen_since(stub, tmp_path, first):
    before = table_of(first)
    # Items that are candidates of the table become further choices of their users.
    rows = market_rows(USERS, LENGTH)
    user = users_in(first)[0]
    record = next(r for r in before.values() if r.user_key == user_key(f"user-{user}", 0))
    bought = next(i for i, role in zip(record.item_ids, record.roles, strict=True) if role != TARGET)
    history = [f"i{(7 * user + 5 * n) % 60}" for n in range(LENGTH)]
    rows.append(row(f"user-{user}", LENGTH + 1, history, bought, user_positives=LENGTH))
    replay = {"strategy": "replay", "replay_table": str(first), "budget": {"pairs": 60}}
    score(workspace(tmp_path, "replay", replay), beam.Create(rows))
    replayed = table_of(tmp_path / "replay" / "scores")[record.context_id]
    assert set(record.item_ids) - set(replayed.item_ids) == {bought}


def test_an_item_that_a_user_chose_before_every_history_leaves_the_candidates_of_this_user(stub, tmp_path, first):
    user = users_in(first)[0]
    record = next(r for r in table_of(first).values() if r.user_key == user_key(f"user-{user}", 0))
    earlier = next(i for i, role in zip(record.item_ids, record.roles, strict=True) if role != TARGET)
    write_earlier_positives(str(tmp_path / "catalog"), f"user-{user}", [earlier])
    book = rescore(tmp_path, stub, first, market_rows(USERS, LENGTH))
    after = table_of(tmp_path / "second" / "scores")[record.context_id]
    assert set(record.item_ids) - set(after.item_ids) == {earlier}
    assert book.rescore.kept == CONTEXTS - 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 5}, r"none of the table's 10 contexts is of a user of today's train rows; llm\.seed=5"),
        ({"budget": {"pairs": 30}}, r"budget\.pairs must hold the 10 contexts of the table, got places for 5"),
        ({"max_age_days": -1}, "max_age_days must be above 0, got -1"),
    ],
)
def test_a_configuration_that_does_not_fit_the_table_is_one_sentence(stub, tmp_path, first, values, message):
    with pytest.raises(LlmError, match=message):
        rescore(tmp_path, stub, first, market_rows(USERS, LENGTH), **values)
    assert stub.received == []


def test_a_replay_cannot_be_rescored_nor_rescore_and_a_table_without_keys_says_so(stub, tmp_path, first):
    replay = {"strategy": "replay", "replay_table": str(first), "budget": {"pairs": 60}}
    score(workspace(tmp_path, "replay", replay), beam.Create(market_rows(USERS, LENGTH)))
    with pytest.raises(LlmError, match="--scores must be the table itself, got a replay"):
        rescore(tmp_path, stub, tmp_path / "replay" / "scores", [])
    with pytest.raises(LlmError, match="rescore needs a strategy that asks, got replay"):
        rescore_table(workspace(tmp_path, "other", replay), beam.Create([]), str(first), None)
    with pytest.raises(LlmError, match=r"--scores must be a folder with scores-\*\.tfrecord\.gz"):
        rescore(tmp_path, stub, tmp_path / "nothing", [], name="third")
    bare = tmp_path / "bare"
    bare.mkdir()
    with tf.io.TFRecordWriter(str(bare / "scores-00000-of-00001.tfrecord.gz"), "GZIP") as writer:
        for record in table_of(first).values():
            writer.write(dataclasses.replace(record, user_key="").serialize())
    with pytest.raises(LlmError, match="whose records carry a user_key"):
        rescore(tmp_path, stub, bare, [], name="fourth")


def positive_row(position: int, positives: int) -> PositiveRow:
    items = [f"i{n}" for n in range(position)]
    return PositiveRow(
        user_id="u",
        position=position,
        history_item_ids=tuple(items[-2::-1]),
        history_length=position - 1,
        item_id=items[-1],
        user_positives=positives,
    )


def record_at(at: PositiveRow, last_position: int = 5) -> ScoreRecord:
    return ScoreRecord(
        context_id=context_id(at, 0),
        history_item_ids=at.history_item_ids,
        history_length=at.history_length,
        item_ids=(),
        llm_scores=(),
        raw_scores=(),
        roles=(),
        user_positives=at.user_positives,
        last_position=last_position,
        model="m",
        strategy="s",
        prompt_version="p",
        scored_at=0,
    )


def positions(records: list[ScoreRecord], rows: list[PositiveRow]) -> list[int | None]:
    pairs = pair_with_rows(records, rows, max((row.position for row in rows), default=0), 0)
    return [None if found is None else found.position for _, found in pairs]


def test_an_unchanged_history_leaves_every_context_where_it_was():
    records = [record_at(positive_row(n, 5)) for n in (2, 5)]
    assert positions(records, [positive_row(n, 5) for n in (5, 4, 3, 2)]) == [2, 5]


def test_a_longer_history_moves_contexts_to_the_latest_moments_and_leaves_those_that_are_there():
    records = [record_at(positive_row(n, 5)) for n in (2, 4, 5)]
    assert positions(records, [positive_row(n, 6) for n in range(2, 7)]) == [6, 4, 5]
    assert positions(records, [positive_row(n, 8) for n in range(2, 9)]) == [6, 7, 8]


def test_a_window_that_takes_a_row_in_as_another_leaves_does_not_hide_the_new_history():
    records = [record_at(positive_row(n, 3)) for n in (4, 5)]
    assert positions(records, [positive_row(n, 3) for n in (4, 5, 6)]) == [6, 5]


def test_a_window_that_moved_on_leaves_the_contexts_of_users_without_new_rows_where_they_were():
    records = [record_at(positive_row(n, 4)) for n in (3, 4)]
    assert positions(records, [positive_row(n, 3) for n in (3, 4, 5)]) == [3, 4]
    # Only the context whose own row left the window moves, to the latest row that is free.
    assert positions(records, [positive_row(n, 2) for n in (4, 5)]) == [5, 4]


def test_in_a_table_without_positions_only_more_rows_are_a_new_history():
    records = [record_at(positive_row(n, 4), last_position=0) for n in (3, 4)]
    assert positions(records, [positive_row(n, 3) for n in (3, 4, 5)]) == [3, 4]
    assert positions(records, [positive_row(n, 4) for n in (3, 4, 5, 6)]) == [3, 4]
    assert positions(records, [positive_row(n, 5) for n in (3, 4, 5, 6, 7)]) == [6, 7]


def windowed(lengths: dict[int, int]) -> list[bytes]:
    """Rows of a window that has moved past position 2: the users' numbers of rows are those of today."""
    return [
        row(f"user-{user}", position, items[: position - 1], items[position - 1], user_positives=length - 2)
        for user, length in lengths.items()
        for items in [[f"i{(7 * user + 5 * n) % 60}" for n in range(length)]]
        for position in range(3, length + 1)
    ]


def test_with_a_moving_window_users_with_new_choices_are_asked_about_them_and_nobody_else(stub, tmp_path, first):
    steady = users_in(first)[:3]
    lengths = {user: LENGTH + (user in steady) for user in range(USERS)}
    book = rescore(tmp_path, stub, first, windowed(lengths))
    keys = {user_key(f"user-{user}", 0) for user in steady}
    left = [r for r in table_of(first).values() if r.user_key not in keys and r.history_length == 1]
    assert len(left) < CONTEXTS - 3
    assert book.rescore.scored_again == {"history": 3 + len(left), "prompt": 0, "age": 0}
    assert book.rescore.kept == CONTEXTS - 3 - len(left)
    after = table_of(tmp_path / "second" / "scores")
    assert {r.history_length for r in after.values() if r.user_key in keys} == {LENGTH}
    assert {r.last_position for r in after.values() if r.user_key not in keys} == {LENGTH}

    stub.received.clear()
    again = rescore(tmp_path, stub, tmp_path / "second" / "scores", windowed(lengths), name="third")
    assert (stub.received, again.rescore.kept) == ([], CONTEXTS)


def test_contexts_beyond_the_moments_that_are_left_have_none():
    records = [record_at(positive_row(n, 5)) for n in (3, 4, 5)]
    assert positions(records, [positive_row(2, 1)]) == [None, None, 2]
    assert positions(records, []) == [None, None, None]


def test_a_history_that_was_corrected_in_place_counts_as_changed():
    corrected = dataclasses.replace(positive_row(5, 5), history_item_ids=("i3", "other", "i1", "i0"))
    (pair,) = pair_with_rows(
        [record_at(positive_row(4, 5)), record_at(positive_row(5, 5))][1:], [positive_row(4, 5), corrected], 5, 0
    )
    assert pair[1] == corrected


def test_the_table_names_no_user(tmp_path, first):
    for path in first.rglob("*"):
        content = path.read_bytes()
        assert b"user-" not in (gzip.decompress(content) if path.suffix == ".gz" else content)
    assert read_ledger(first).scored == 60

"""Contexts around the rows of scored users: nothing of the validation and test splits comes in."""

import gzip
import logging
import pathlib

import apache_beam as beam
import pytest

from sllmr.components import scores
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts import scored_users
from sllmr.components.llm_scorer.contexts.candidates import PositiveRow
from sllmr.components.llm_scorer.contexts.scored_users import MAX_CANDIDATES, contexts_of_user, within_budget
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.results import read_ledger
from sllmr.components.scores import read_scores
from tests.components.llm_scorer.market import market_items, row, write_earlier_positives
from tests.components.llm_scorer.test_job import workspace

TRAIN = ["i0", "i1", "i2", "i3"]


def config(**settings) -> LlmConfig:
    return LlmConfig.model_validate({"strategy": "replay", "replay_table": "t.csv", **settings}).resolve()


def positive_rows(items=TRAIN) -> list[PositiveRow]:
    return [
        PositiveRow(
            user_id="u", position=n + 1, history_item_ids=tuple(items[:n][::-1]), history_length=n, item_id=items[n]
        )
        for n in range(1, len(items))
    ]


def made(scored, held_out=None, items=TRAIN, **settings):
    return contexts_of_user(positive_rows(items), scored, held_out or {}, market_items(200), config(**settings))


def test_the_latest_row_has_all_candidates_and_a_scored_target_item_makes_a_calibration_context():
    user = made(["i2", "i10", "i11", "i12"])
    latest, calibration = user.contexts
    assert {c.item_id for c in latest.candidates} == {"i10", "i11", "i12"}
    assert {c.role for c in latest.candidates} == {scores.REPLAYED}
    assert (latest.target_item_id, latest.history_item_ids) == ("", ("i2", "i1", "i0"))
    assert (calibration.target_item_id, calibration.history_item_ids) == ("i2", ("i1", "i0"))
    roles = {c.item_id: c.role for c in calibration.candidates}
    assert roles == {"i2": scores.TARGET, "i10": scores.NEGATIVE, "i11": scores.NEGATIVE, "i12": scores.NEGATIVE}
    assert user.dropped == {}


def test_what_the_user_interacted_with_at_any_time_is_no_candidate():
    user = made([*TRAIN, "i20", "i21", "i22", "i10", "i11", "nope"], {"i20": 1, "i21": 1, "i22": 0, "i3": 1})
    assert user.dropped == {
        "i0": scored_users.IN_HISTORY,
        "i20": scored_users.HELD_OUT_ITEM,
        "i21": scored_users.HELD_OUT_ITEM,
        "i22": scored_users.HELD_OUT_NEGATIVE,
        "nope": scored_users.UNKNOWN_ITEM,
    }
    for context in user.contexts:
        others = {c.item_id for c in context.candidates} - {context.target_item_id}
        assert others == {"i10", "i11"}
    # A repeated interaction stays a target item of its train row.
    assert [c.target_item_id for c in user.contexts] == ["i3", "i2", "i1"]


def test_an_item_that_is_in_the_history_already_is_no_target_item():
    user = made(["i0", "i1", "i10"], items=["i0", "i1", "i0", "i1"])
    assert [(c.target_item_id, c.history_length) for c in user.contexts] == [("i1", 1)]
    assert user.dropped == {"i0": scored_users.IN_HISTORY}


@pytest.mark.parametrize("scored", [["i10"], ["i1", "i2"], ["i10", "i0"]])
def test_a_user_with_no_two_items_to_compare_has_no_context(scored):
    user = made(scored)
    assert user.contexts == []
    assert set(user.dropped) == set(scored)
    assert scored_users.TOO_FEW in user.dropped.values()


def test_a_long_list_is_cut_and_what_is_left_out_is_told():
    user = made(["i2", *(f"i{n}" for n in range(50, 200))])
    latest, calibration = user.contexts
    assert len(latest.candidates) == MAX_CANDIDATES
    assert len(calibration.candidates) == config().candidates.per_context
    used = {c.item_id for context in user.contexts for c in context.candidates}
    assert user.dropped == {f"i{n}": scored_users.BEYOND_LIMIT for n in range(50, 200) if f"i{n}" not in used}


def test_the_budget_goes_to_every_user_before_second_contexts():
    ranked = [(0, 0.9, "a0", 4), (1, 0.1, "a1", 4), (0, 0.5, "b0", 4), (1, 0.2, "b1", 4)]
    assert within_budget(ranked, 8) == {"a0", "b0"}
    assert within_budget(ranked, 12) == {"a0", "b0", "a1"}
    assert within_budget(ranked, 16) == "all"
    assert within_budget(ranked, None) == "all"


def planted(user: str = "u") -> dict[str, list[bytes]]:
    """Rows of one user: TRAIN, then i30 in validation and i31 in test, each with a sampled negative."""
    everything = [*TRAIN, "i30", "i31"]
    made: dict[str, list[bytes]] = {"train": [], "held_out": []}
    for n in range(1, len(everything)):
        split = "train" if n < len(TRAIN) else "held_out"
        for item, label in ((everything[n], 1), (f"i{40 + n}", 0)):
            made[split].append(row(user, n + 1, everything[:n], item, label, user_positives=3))
    return made


def table_of(path: pathlib.Path, lines: list[str]) -> str:
    path.write_text("\n".join(["user_id,item_id,score", *lines]) + "\n")
    return str(path)


def run(tmp_path, lines: list[str], **settings):
    rows = planted()
    table = table_of(tmp_path / "t.csv", lines)
    made = workspace(
        tmp_path,
        "run",
        {"strategy": "replay", "replay_table": table, **settings},
        held_out_rows=beam.Create(rows["held_out"]),
    )
    return score(made, beam.Create(rows["train"])), list(read_scores(str(tmp_path / "run" / "scores")))


@pytest.mark.slow
def test_planted_future_items_reach_neither_candidates_nor_histories_nor_the_plan(tmp_path, caplog):
    future = ["u,i30,1", "u,i31,0.99", "u,i44,0.5", "u,i45,0.4"]
    lines = [*future, "u,i3,0.9", "u,i0,0.8", "u,i10,0.25", "u,i11,0.75", "u,i11,0.5", "u,gone,1", "x,i10,1"]
    with caplog.at_level(logging.INFO):
        book, records = run(tmp_path, lines)
    items = {item for record in records for item in (*record.item_ids, *record.history_item_ids)}
    assert items == {"i0", "i1", "i2", "i3", "i10", "i11"}
    (record,) = records
    assert record.target_item_id == "i3"
    assert dict(zip(record.item_ids, record.llm_scores, strict=True)) == pytest.approx(
        {"i3": 0.9, "i10": 0.25, "i11": 0.5}
    )
    assert book.replay_table.model_dump() == {
        "rows": 11,
        "used": 3,
        "dropped": {
            "duplicate": 1,
            "unknown_user": 1,
            "unknown_item": 1,
            "in_history": 1,
            "held_out_item": 2,
            "held_out_negative": 2,
        },
        "users": 2,
        "users_in_train": 1,
        "users_used": 1,
        "scaled_from": None,
    }
    assert "3 of 11 rows of llm.replay_table are used" in caplog.text
    assert (book.scored, book.failed, book.requests.sent) == (3, 0, 0)
    assert read_ledger(tmp_path / "run" / "scores") == book
    written = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
    for path in written:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        assert b"i30" not in text
        assert b"i31" not in text
    assert (record.user_id, len(record.user_key)) == ("", 24)


@pytest.mark.slow
def test_what_a_user_took_before_every_history_is_neither_candidate_nor_target_item(tmp_path):
    write_earlier_positives(str(tmp_path / "catalog"), "u", ["i2", "i10"])
    book, (record,) = run(tmp_path, ["u,i2,0.9", "u,i3,0.9", "u,i10,0.25", "u,i11,0.75"])
    assert (record.target_item_id, set(record.item_ids)) == ("i3", {"i3", "i11"})
    assert book.replay_table.dropped == {"in_history": 2}


@pytest.mark.slow
def test_user_ids_are_stored_if_configured(tmp_path):
    _, (record,) = run(tmp_path, ["u,i3,5", "u,i10,1", "u,i11,3"], store_user_ids=True)
    assert record.user_id == "u"
    assert record.llm_scores == (1.0, 0.0, 0.5)
    assert record.raw_scores == (5.0, 1.0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x,i10,1", "y,i11,0"], "no user_id of the table has a positive row with a history in the train split"),
        (["u,a10,1", "u,a11,0"], "no item_id of the table is in data.items: the table has ids like 'a10', data.items"),
        (["u,i30,1", "u,i31,0"], r"2 held_out_item; a user needs scores of two items .*plan --contexts FILE"),
    ],
)
def test_a_table_that_matches_nothing_says_what_to_check(tmp_path, lines, message):
    with pytest.raises(LlmError, match=message):
        run(tmp_path, lines)


def test_without_the_held_out_rows_nothing_is_replayed(tmp_path):
    table = table_of(tmp_path / "t.csv", ["u,i10,1", "u,i11,0"])
    with pytest.raises(ValueError, match="held_out_rows must be set"):
        score(
            workspace(tmp_path, "run", {"strategy": "replay", "replay_table": table}), beam.Create(planted()["train"])
        )

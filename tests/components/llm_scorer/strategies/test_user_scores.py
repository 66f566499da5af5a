"""Tables of scores by user: forms, scaling, times, duplicates, and rows that are refused."""

import gzip
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import user_key
from sllmr.components.llm_scorer.strategies import replay
from sllmr.components.llm_scorer.strategies.user_scores import UserScores

ROWS = [("u1", "i2", 0.5), ("u0", "i1", 0.25), ("u1", "i0", 1.0), ("u0", "i2", 0.0)]
EXPECTED = {"u0": {"i1": 0.25, "i2": 0.0}, "u1": {"i0": 1.0, "i2": 0.5}}


def write(path: pathlib.Path, lines: list[str], header: str = "user_id,item_id,score") -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def read(path: pathlib.Path) -> UserScores:
    table = replay.read_table(str(path)).user_scores
    assert table is not None
    return table


def scores_of(table: UserScores, field: str = "llm_score") -> dict[str, dict[str, float]]:
    return {
        user: {i: getattr(r, field) for i, r in table.results_of(user_key(user, 3), 3).items()}
        for user in table.user_ids
    }


def text(rows) -> list[str]:
    return [",".join(map(str, row)) for row in rows]


def test_every_form_of_a_table_gives_the_same_scores(tmp_path):
    write(tmp_path / "t.csv", text(ROWS))
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.csv").read_bytes().replace(b"\n", b"\r\n"))
    users, items, scores = zip(*ROWS, strict=True)
    columns = pa.table({"extra": [1] * 4, "score": scores, "item_id": items, "user_id": users})
    pq.write_table(columns, tmp_path / "t.parquet")
    pq.write_table(columns, tmp_path / "d.parquet", use_dictionary=True, row_group_size=1)
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    write(tmp_path / "parts" / "part-0.csv", text(ROWS[:1]))
    (tmp_path / "parts" / "_SUCCESS").write_text("")
    pq.write_table(columns.slice(1), tmp_path / "parts" / "part-1.parquet")
    for name in ("t.csv", "packed", "bom.csv", "t.parquet", "d.parquet", "t.parquet.gz", "parts"):
        table = read(tmp_path / name)
        assert scores_of(table) == EXPECTED, name
        assert (table.rows, table.duplicates, table.scaled_from) == (4, 0, None)
        assert table.items_of(user_key("u9", 3), 3) == []


def test_integer_ids_are_the_text_of_their_digits(tmp_path):
    pq.write_table(pa.table({"user_id": [7, 7], "item_id": [1, 2], "score": [0, 1]}), tmp_path / "t.parquet")
    assert scores_of(read(tmp_path / "t.parquet")) == {"7": {"1": 0, "2": 1}}


@pytest.mark.parametrize("values", [(-2.0, 0.0, 3.0), (0.0, 50.0, 100.0), (1.0, 4.0, 5.0)])
def test_scores_outside_0_and_1_are_scaled_by_lowest_and_highest(tmp_path, values):
    table = read(write(tmp_path / "t.csv", [f"u0,i{n},{value}" for n, value in enumerate(values)]))
    low, _, high = values
    assert scores_of(table)["u0"] == pytest.approx({f"i{n}": (v - low) / (high - low) for n, v in enumerate(values)})
    assert scores_of(table, "raw_score")["u0"] == {f"i{n}": v for n, v in enumerate(values)}
    assert table.scaled_from == (low, high)


def test_of_rows_of_one_user_and_item_the_latest_counts_and_else_the_last(tmp_path):
    lines = ["u0,i0,0.1,200", "u0,i0,0.2,100", "u0,i1,0.3,100", "u0,i1,0.4,100"]
    table = read(write(tmp_path / "t.csv", lines, "user_id,item_id,score,scored_at"))
    assert scores_of(table)["u0"] == {"i0": 0.1, "i1": 0.4}
    assert scores_of(table, "scored_at")["u0"] == {"i0": 200, "i1": 100}
    assert (table.rows, table.duplicates) == (2, 2)


@pytest.mark.parametrize("value", ["1718452800", "1718452800000", "2024-06-15T12:00:00Z", "2024-06-15 14:00:00+02:00"])
def test_scored_at_is_unix_time_or_iso_8601(tmp_path, value):
    lines = [f"u0,i0,0.1,{value}", f"u0,i1,0.2,{value}"]
    table = read(write(tmp_path / "t.csv", lines, "user_id,item_id,score,scored_at"))
    assert set(scores_of(table, "scored_at")["u0"].values()) == {1718452800}


def test_scored_at_of_parquet_may_be_a_timestamp(tmp_path):
    times = pa.array(np.array(["2024-06-15T12:00:00.5"] * 2, "datetime64[ns]"))
    columns = {"user_id": ["u0"] * 2, "item_id": ["i0", "i1"], "score": [0.1, 0.2], "scored_at": times}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert set(scores_of(read(tmp_path / "t.parquet"), "scored_at")["u0"].values()) == {1718452800}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["u0,i0,0.5", "u0,i1,nan"], r"t\.csv:3: score must be a finite number, got 'nan'"),
        (["u0,i0,inf", "u0,i1,0.1"], r"t\.csv:2: .*got 'inf'"),
        (["u0,i0,high"], r"t\.csv:2: .*got 'high'"),
        (["u0,i0,"], r"t\.csv:2: .*got ''"),
        (["u0,i0,0.5", ",i1,0.4"], r"t\.csv:3: user_id must not be empty"),
        (["u0,,0.5"], r"t\.csv:2: item_id must not be empty"),
        (["u0,i0,0.5", "u1,i1,0.5"], r"scores of .*t\.csv must differ, got 0\.5 in all 2 rows"),
        ([], r"t\.csv must hold a row for each user and item, got none"),
        (["secret-user,i0"], r"t\.csv must be a CSV file .*Expected 3 columns, got 2; write it again"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, lines, message):
    with pytest.raises(LlmError, match=message) as refusal:
        read(write(tmp_path / "t.csv", lines))
    assert "secret-user" not in str(refusal.value)


def test_a_wrong_time_is_refused(tmp_path):
    with pytest.raises(LlmError, match=r"t\.csv:3: scored_at must be .*, and not in the future, got 'June'"):
        read(write(tmp_path / "t.csv", ["u0,i0,0.5,100", "u0,i1,1,June"], "user_id,item_id,score,scored_at"))


def test_a_broken_file_is_refused(tmp_path):
    content = gzip.compress(b"user_id,item_id,score\n" + b"u0,i0,0.5\n" * 1000)
    (tmp_path / "t.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(LlmError, match=r"t\.csv\.gz must be a CSV file"):
        read(tmp_path / "t.csv.gz")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(LlmError, match=r"t\.parquet must be a CSV file in UTF-8 or a Parquet file"):
        read(tmp_path / "t.parquet")


def test_a_parquet_table_with_context_id_is_read_as_a_csv_is(tmp_path):
    columns = {"context_id": ["c0", "c0"], "item_id": ["i0", "i1"], "score": [0.25, 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    results = replay.read_table(str(tmp_path / "t.parquet")).results
    assert {item: result.llm_score for item, result in results["c0"].items()} == {"i0": 0.25, "i1": 1.0}

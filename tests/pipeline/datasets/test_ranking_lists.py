import csv
import gzip

import pytest

from sllmr.components.llm_scorer.messages import user_key
from sllmr.components.llm_scorer.strategies.user_scores import read_user_scores
from sllmr.pipeline.cli import main
from sllmr.pipeline.datasets.ranking_lists import RankingListError, convert_ranking_lists

EXPECTED = {("u1", "i9", 1.0), ("u1", "i2", 0.5), ("u1", "i5", 0.0), ("u2", "i2", 1.0), ("u2", "i9", 0.0)}

CSV_JSON = 'user_id,items\nu1,"[""i9"", ""i2"", ""i5""]"\nu2,"[""i2"", ""i9""]"\n'
CSV_PYTHON = "user_id,items\nu1,\"['i9', 'i2', 'i5']\"\nu2,\"['i2', 'i9']\"\n"
CSV_COMMA = 'item_ids,user_id\n"i9, i2, i5",u1\n"i2,i9",u2\n'
CSV_BARE_COMMA = "user,ranked\nu1,i9,i2,i5\nu2,i2,i9\n"
CSV_BLANK = "user_id,list\nu1,i9 i2  i5\n\nu2,i2 i9\n"
CSV_BAR = "user_id,n,ranking\nu1,3,i9|i2|i5\nu2,2,i2|i9\n"
JSON_LINES = '{"user_id": "u1", "items": ["i9", "i2", "i5"]}\n{"user_id": "u2", "items": ["i2", "i9"]}\n'
JSON_OBJECTS = (
    '{"uid": "u1", "recommendations": [{"item_id": "i9"}, {"item_id": "i2"}, {"item_id": "i5"}]}\n'
    '{"uid": "u2", "recommendations": [{"item_id": "i2"}, {"item_id": "i9"}]}\n'
)
FORMS = (CSV_JSON, CSV_PYTHON, CSV_COMMA, CSV_BARE_COMMA, CSV_BLANK, CSV_BAR, JSON_LINES, JSON_OBJECTS)


def rows_of(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("content", FORMS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_of_list_becomes_evenly_spaced_scores(tmp_path, content, packed):
    lists, output = tmp_path / "lists", tmp_path / ("t.csv.gz" if packed else "t.csv")
    lists.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert convert_ranking_lists(lists, output) == {"users": 2, "scores": 5, "repeated_items": 0}
    assert {(row["user_id"], row["item_id"], float(row["score"])) for row in rows_of(output)} == EXPECTED


def test_the_command_writes_what_a_replay_reads(tmp_path, capsys):
    (tmp_path / "lists.jsonl").write_text('{"u": 7, "best": [3, 1, 3, 2, 4], "scored_at": "2024-06-15T12:00:00Z"}\n')
    names = ["--user-column", "u", "--items-column", "best"]
    output = tmp_path / "t.csv"
    assert (
        main(["data", "ranking-lists", "--lists", str(tmp_path / "lists.jsonl"), "--output", str(output), *names]) == 0
    )
    results = read_user_scores([str(output)]).results_of(user_key("7", 0), 0)
    assert {i: r.llm_score for i, r in results.items()} == pytest.approx(
        {"3": 1, "1": 2 / 3, "2": 1 / 3, "4": 0}, abs=1e-5
    )
    assert {r.scored_at for r in results.values()} == {1718452800}
    printed = capsys.readouterr().out
    assert "repeated items: 1" in printed
    assert f"llm: {{strategy: replay, replay_table: {output}}}" in printed


def test_a_separator_can_be_set_for_ids_that_hold_another_one(tmp_path):
    (tmp_path / "lists.csv").write_text("user_id,items\nu1,a b;c\n")
    convert_ranking_lists(tmp_path / "lists.csv", tmp_path / "t.csv", separator=";")
    assert [row["item_id"] for row in rows_of(tmp_path / "t.csv")] == ["a b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,items\nu1,i1 i2\nu1,i3 i4\n", r"lists:3: a user must have one list, got a second one"),
        ("user_id,items\nu1,i1 i2\nu2,\n", r"lists:3: a list must have an item, got none"),
        ("user_id,items\nu1,[i1 i2]\n", r"lists:2: items in brackets must be a JSON list"),
        ("user_id,items\n,i1 i2\n", r"lists:2: the user must be an id"),
        ('{"user_id": "u1", "items": ["i1", 0.5]}\n', r"lists:1: an item must be an id, .*got 0\.5"),
        ('{"user_id": "u1", "items": [\n', r"lists:1: a line must be one JSON object"),
        (
            "who,items\nu1,i1 i2\n",
            r"lists:1: the user column must be there, user_id or .*got who, items; set --user-col",
        ),
        ("user_id,item_id\nu1,i1\n", r"the items column must be there"),
        ("user_id,items,n\nu1,i1,i2,2\n", r"lists:2: a row must have 3 fields .*got 4; quote the list"),
        ("user_id,items\n", r"lists must hold a list for each user, got none"),
    ],
)
def test_what_is_no_ranking_list_is_refused_and_nothing_is_left(tmp_path, content, message):
    (tmp_path / "lists").write_text(content)
    with pytest.raises(RankingListError, match=message):
        convert_ranking_lists(tmp_path / "lists", tmp_path / "t.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["lists"]


def test_paths_are_checked(tmp_path):
    with pytest.raises(RankingListError, match="which does not exist"):
        convert_ranking_lists(tmp_path / "lists", tmp_path / "t.csv")
    (tmp_path / "lists.csv").write_text(CSV_BLANK)
    with pytest.raises(RankingListError, match=r"must end in \.csv"):
        convert_ranking_lists(tmp_path / "lists.csv", tmp_path / "t.parquet")
    with pytest.raises(RankingListError, match="another file than --lists"):
        convert_ranking_lists(tmp_path / "lists.csv", tmp_path / "lists.csv")

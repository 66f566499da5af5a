import csv
import dataclasses
import gzip
import pathlib

import apache_beam as beam
import numpy as np
import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import read_scores
from tests.components.llm_scorer.market import context, market_items, market_rows
from tests.components.llm_scorer.test_job import workspace


def replay(path: pathlib.Path):
    return create_strategy(LlmConfig(strategy="replay", replay_table=str(path)).resolve())


def write_csv(path: pathlib.Path, lines: list[str]) -> pathlib.Path:
    path.write_text("\n".join(["context_id,item_id,score", *lines]) + "\n")
    return path


def test_a_csv_gives_its_scores_and_what_it_lacks_fails(tmp_path):
    strategy = replay(write_csv(tmp_path / "t.csv", ["c0,i20,0.25", "c0,i22,1", "other,i21,0.5"]))
    assert strategy.requests(context(), market_items()) == ()
    results = strategy.results(context(), ())
    assert [r.llm_score for r in results] == [0.25, None, 1.0]
    assert [r.reason for r in results] == ["", messages.NOT_IN_TABLE, ""]


def test_a_gzipped_csv_reads_the_same(tmp_path):
    plain = write_csv(tmp_path / "t.csv", ["c0,i20,0.25"])
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [r.llm_score for r in replay(packed).results(context(), ())] == [0.25, None, None]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["c0,i20,1.5"], r"t\.csv:2: .* score a number in \[0, 1\], got \['c0', 'i20', '1\.5'\]"),
        (["c0,i20,0.5", "c0,i21,nan"], r"t\.csv:3: .*'nan'"),
        (["c0,i20,high"], "'high'"),
        (["c0,i20"], r"t\.csv must be a CSV file .*Expected 3 columns, got 2"),
        ([",i20,0.5"], "context_id and item_id must be there"),
        (["c0,i20,0.5", "c0,i20,0.6"], r"t\.csv:3: a context and item must not repeat, got c0 i20 again"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_rule(tmp_path, lines, message):
    with pytest.raises(LlmError, match=message):
        replay(write_csv(tmp_path / "t.csv", lines))


def test_missing_columns_and_missing_tables_are_one_sentence(tmp_path):
    (tmp_path / "t.csv").write_text("context_id,item_id\n")
    with pytest.raises(LlmError, match="must have the columns context_id, item_id, score; missing: score"):
        replay(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("user,item_id,score\n")
    with pytest.raises(
        LlmError, match=r"column user_id or context_id, got user, item_id, score; .*plan --contexts FILE"
    ):
        replay(tmp_path / "t.csv")
    with pytest.raises(LlmError, match=r"a folder with scores-\*\.tfrecord\.gz, got .*nothing; .*user_id, item_id"):
        replay(tmp_path / "nothing")


@pytest.mark.slow
def test_a_run_that_replays_a_table_leaves_the_same_scores_whichever_form_it_has(tmp_path):
    """Scores by vectors, then replayed from the folder that they left, and from a CSV with some rows taken out."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", item_id=np.array(list(market_items())), vector=generator.normal(size=(60, 4)))
    settings = {"budget": {"pairs": 60}}
    scoring = workspace(tmp_path, "first", {**settings, "strategy": "embedding"})
    with_vectors = dataclasses.replace(scoring, item_vectors_file=str(tmp_path / "v.npz"))
    first = score(with_vectors, beam.Create(market_rows()))
    assert (first.scored, first.requests.sent, first.cost_usd, first.model) == (60, 0, 0, "item_vectors")
    records = {r.context_id: r for r in read_scores(str(tmp_path / "first" / "scores"))}

    folder = {**settings, "strategy": "replay", "replay_table": str(tmp_path / "first" / "scores")}
    score(workspace(tmp_path, "folder", folder), beam.Create(market_rows()))
    replayed = {r.context_id: r for r in read_scores(str(tmp_path / "folder" / "scores"))}
    assert {(k, r.item_ids, r.llm_scores, r.raw_scores, r.roles, r.scored_at) for k, r in replayed.items()} == {
        (k, r.item_ids, r.llm_scores, r.raw_scores, r.roles, r.scored_at) for k, r in records.items()
    }

    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["context_id", "item_id", "score"])
        for record in records.values():
            writer.writerows(
                (record.context_id, item, score)
                for item, score in list(zip(record.item_ids, record.llm_scores, strict=True))[1:]
            )
    table = {**settings, "strategy": "replay", "replay_table": str(tmp_path / "t.csv"), "max_failure_rate": 0.5}
    book = score(workspace(tmp_path, "csv", table), beam.Create(market_rows()))
    assert (book.scored, book.failures) == (50, {messages.NOT_IN_TABLE: 10})
    with pytest.raises(LlmError, match=r"max_failure_rate=0\.1, got 10 of 60"):
        score(workspace(tmp_path, "strict", {**table, "max_failure_rate": 0.1}), beam.Create(market_rows()))

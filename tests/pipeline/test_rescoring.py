"""`sllmr rescore` as users run it: two snapshots of the interactions, the LLM a stub, then a replay of the result."""

import csv
import pathlib
import re
import shutil
from collections.abc import Iterator

import pytest
import yaml

from sllmr.components.llm_scorer.messages import user_key
from sllmr.components.llm_scorer.results import ScoringLedger, read_ledger
from sllmr.components.scores import read_scores
from sllmr.pipeline.cli import main
from tests.components.llm_scorer.stub_server import StubHandler, StubServer, chat_response, running_stub

USERS, LENGTH, ITEMS = 15, 7, 40


def by_title(handler: StubHandler, body: dict) -> None:
    """Scores that depend on the candidate and on how long the told history is."""
    text = body["messages"][-1]["content"]
    told = text.count("\n- ")
    numbers = re.findall(r"^(\d+)\. Film number (\d+)", text, re.MULTILINE)
    entries = [{"item": int(n), "score": (int(film) * (told + 1)) % 41 / 40} for n, film in numbers]
    handler.send_json(200, chat_response(entries))


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        server.always = by_title
        yield server


def write_interactions(file: pathlib.Path, changed: set[int]) -> None:
    with open(file, "w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            writer.writerows(
                (f"user-{user}", f"i{(7 * user + 5 * n) % ITEMS}", 1_000_000_000 + 86400 * n)
                for n in range(LENGTH + 2 * (user in changed))
            )


@pytest.fixture
def shop(tmp_path: pathlib.Path, stub: StubServer) -> pathlib.Path:
    write_interactions(tmp_path / "interactions.csv", set())
    with open(tmp_path / "items.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        writer.writerows((f"i{n}", f"Film number {n}", ("Crime", "Comedy", "Drama")[n % 3]) for n in range(ITEMS))
    configure(
        tmp_path / "shop.yaml",
        {
            "model": "gpt-4o-mini",
            "base_url": stub.base_url,
            "api_key_env": "NO_SUCH_KEY",
            "concurrency": 2,
            "audit": {"fraction": 0.4},
        },
    )
    return tmp_path / "shop.yaml"


def configure(file: pathlib.Path, llm: dict) -> None:
    settings = {
        "cache_dir": "cache",
        "data": {"interactions": "interactions.csv", "items": "items.csv"},
        "item_vectors": {"source": "none"},
        "gate": {"mode": "supervised"},
        "llm": {
            "budget": {"pairs": 60},
            "candidates": {"per_context": 6, "negatives_per_target": 2, "popularity_pool": 20},
            **llm,
        },
    }
    file.write_text(yaml.safe_dump(settings))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def book_of(directory: pathlib.Path) -> ScoringLedger:
    return read_ledger(directory)


@pytest.mark.slow
def test_a_table_is_brought_up_to_date_and_replayed(shop, stub, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["score", "--config", str(shop), "--output", str(first)]) == 0
    said = squeezed(capsys.readouterr().out)
    audited = book_of(first).audit.contexts
    assert 0 < audited < 10
    assert f"order audit: 0.0% of {book_of(first).audit.pairs} pairs flip" in said
    assert "scores: 0.0 to 0.0 days old, median 0.0; 0.0% of their users have new interactions" in said

    # Four users choose two more items; the cache is lost.
    keys = {record.user_key for record in read_scores(str(first))}
    changed = set([user for user in range(USERS) if user_key(f"user-{user}", 0) in keys][:4])
    write_interactions(tmp_path / "interactions.csv", changed)
    shutil.rmtree(tmp_path / "cache")
    stub.received.clear()
    command = ["rescore", "--config", str(shop), "--scores", str(first), "--output", str(second)]
    assert main(command) == 0
    said = squeezed(capsys.readouterr().out)
    book = book_of(second)
    moved = {r.context_id for r in read_scores(str(second))} - {r.context_id for r in read_scores(str(first))}
    assert len(moved) == 4
    # One call for each user, and one more where the new context is audited.
    twice = sum(record.is_audited and record.context_id in moved for record in read_scores(str(second)))
    assert len(stub.received) == 4 + twice
    assert "│ contexts kept │ 6 (36 pairs) │" in said
    assert "│ contexts scored again │ 4 (4 by history) │" in said
    assert "│ contexts new, gone │ 0, 0 │" in said
    assert said.index("6 are kept, 4 scored again and 0 gone; 0 new ones") < said.index("requests, 0 of them cached")
    assert f"drift: {book.rescore.drift.flip_rate:.1%} of {book.rescore.drift.pairs} pairs" in said
    assert (book.contexts, book.scored, book.kept) == (10, 60, 36)

    # Now both tables are replayed on today's rows.
    stub.received.clear()
    for table, outdated in (("second", 0), ("first", 4)):
        configure(shop, {"strategy": "replay", "replay_table": table, "max_age_days": 1e-6})
        assert main(["score", "--config", str(shop), "--output", str(tmp_path / "replay")]) == 0
        said = squeezed(capsys.readouterr().out)
        replayed = book_of(tmp_path / "replay")
        assert (replayed.contexts, replayed.failed, replayed.contexts_outdated) == (10, 0, outdated)
        assert f"{outdated * 10:.1f}% of their users have new interactions" in said
        assert "at most llm.max_age_days=1e-06 days old" in said
        assert "sllmr rescore" in said
    assert stub.received == []


@pytest.mark.slow
def test_a_stopped_rescore_says_how_to_go_on(shop, stub, tmp_path, capsys):
    first, output = tmp_path / "first", tmp_path / "second"
    assert main(["score", "--config", str(shop), "--output", str(first)]) == 0
    before = {file.name: file.read_bytes() for file in first.iterdir() if file.is_file()}
    capsys.readouterr()
    command = ["rescore", "--config", str(shop), "--scores", str(first), "--output", str(output)]
    assert main([*command, "--max-age-days", "-3"]) == 1
    said = capsys.readouterr()
    assert "max_age_days must be above 0, got -3" in said.err
    assert f"to resume: sllmr {' '.join(command)} --max-age-days -3" in squeezed(said.out)
    assert list(output.glob("*.gz")) == []

    stub.received.clear()
    assert main(command) == 0
    assert stub.received == []
    assert len(list(read_scores(str(output)))) == len(list(read_scores(str(first)))) == 10
    assert {file.name: file.read_bytes() for file in first.iterdir() if file.is_file()} == before


def in_prose(handler: StubHandler, body: dict) -> None:
    response = chat_response([])
    response["choices"][0]["message"]["content"] = "I would recommend the first one."
    handler.send_json(200, response)


@pytest.mark.slow
def test_requests_without_a_score_are_queried_again_by_rescore_unless_that_is_refused(shop, stub, tmp_path):
    first = tmp_path / "first"
    settings = yaml.safe_load(shop.read_text())
    configure(shop, {**settings["llm"], "audit": {"fraction": 0}, "max_failure_rate": 1})
    assert main(["score", "--config", str(shop), "--output", str(first)]) == 0
    keys = {record.user_key for record in read_scores(str(first))}
    changed = next(user for user in range(USERS) if user_key(f"user-{user}", 0) in keys)
    write_interactions(tmp_path / "interactions.csv", {changed})
    command = ["rescore", "--config", str(shop), "--scores", str(first), "--output"]
    stub.received.clear()
    stub.replies = [in_prose]
    for name, options, sent, failed in (("a", [], 1, 6), ("b", ["--no-retry-failed"], 1, 6), ("c", [], 2, 0)):
        assert main([*command, str(tmp_path / name), *options]) == 0
        assert (len(stub.received), book_of(tmp_path / name).failed) == (sent, failed)


def test_a_table_is_not_rescored_in_place(shop, stub, tmp_path, capsys):
    command = ["rescore", "--config", str(shop), "--scores", str(tmp_path / "a"), "--output", str(tmp_path / "a")]
    assert main(command) == 1
    assert "--output must be another folder than --scores, got" in capsys.readouterr().err
    assert stub.received == []

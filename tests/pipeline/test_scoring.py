"""`sllmr plan` and `sllmr score`: the whole command on two small tables, the LLM a stub."""

import contextlib
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from rich.console import Console

from sllmr.components.llm_scorer.results import read_ledger
from sllmr.components.scores import read_scores
from sllmr.pipeline import scoring
from sllmr.pipeline.cli import main
from tests.components.llm_scorer.stub_server import StubServer, failing, running_stub

USERS, LENGTH, ITEMS = 15, 7, 40
CONTEXTS = 10


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with running_stub() as server:
        yield server


@pytest.fixture
def config_file(tmp_path: pathlib.Path, stub: StubServer) -> pathlib.Path:
    with open(tmp_path / "interactions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            writer.writerows(
                (f"user-{user}", f"i{(7 * user + 5 * n) % ITEMS}", 1_000_000_000 + 86400 * n) for n in range(LENGTH)
            )
    with open(tmp_path / "items.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        writer.writerows((f"i{n}", f"Film number {n}", ("Crime", "Comedy", "Drama")[n % 3]) for n in range(ITEMS))
    settings = {
        "cache_dir": "cache",
        "data": {"interactions": "interactions.csv", "items": "items.csv"},
        "item_vectors": {"source": "none"},
        "gate": {"mode": "supervised"},
        "llm": {
            "model": "gpt-4o-mini",
            "base_url": stub.base_url,
            "api_key_env": "NO_SUCH_KEY",
            "max_retries": 0,
            "concurrency": 2,
            "budget": {"pairs": 6 * CONTEXTS},
            "candidates": {"per_context": 6, "negatives_per_target": 2, "popularity_pool": 20},
        },
    }
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "shop.yaml"


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_plan_tells_the_bill_and_the_reach_without_a_call(config_file, stub, capsys, tmp_path):
    contexts = tmp_path / "contexts.jsonl"
    assert main(["plan", "--config", str(config_file), "--contexts", str(contexts)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert stub.received == []
    assert "│ pairs │ 60 in 10 contexts │" in said
    assert "│ requests │ 10, 0 of them answered by the cache │" in said
    assert f"│ users │ 10 │ {USERS} │ 66.7% │" in said
    # Leave-last-two: positions 2 to 5 train, with histories of 1 to 4 items; up to 3 are short.
    assert f"│ {3 * USERS} │" in said.split("short histories")[1].split("%")[0]
    assert "│ 50% │ 30 │ 5 │ $" in said
    assert said.endswith(f"No request was sent. Contexts {contexts}")
    planned = [json.loads(line) for line in contexts.read_text().splitlines()]
    assert sum(len(c["candidates"]) for c in planned) == 60
    assert "user-" not in contexts.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("cap", "value"), [("max_cost_usd", 1e-6), ("max_tokens", 100)])
def test_plan_says_when_the_cap_would_stop_it(config_file, capsys, cap, value):
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"]["budget"][cap] = value
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["plan", "--config", str(config_file)]) == 0
    assert f"llm.budget.{cap}={value:g} would stop this before its end" in squeezed(capsys.readouterr().out)


@pytest.mark.slow
def test_plan_says_which_budget_makes_a_preference_pair_per_ten_positives_and_plans_it_without_one(config_file, capsys):
    settings = yaml.safe_load(config_file.read_text())
    # One pair of a context and two labeled ones of every second: 1 of one context, 4 of two, 7 of three.
    settings["pairs"] = {"max_per_context": 1}
    settings["llm"]["budget"]["pairs"] = 12
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["plan", "--config", str(config_file)]) == 0
    positives = USERS * (LENGTH - 3)
    few = f"4 preference pairs are fewer than one per 10 of the {positives} train positives"
    said = squeezed(capsys.readouterr().out)
    assert few in said
    assert "llm.budget.pairs: 18 would suffice, for about $" in said
    del settings["llm"]["budget"]
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["plan", "--config", str(config_file)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert "│ pairs │ 18 in 3 contexts │" in said
    assert "fewer than one per 10" not in said


@pytest.mark.slow
def test_score_asks_what_was_planned_and_a_replay_of_its_folder_asks_nothing(config_file, stub, capsys, tmp_path):
    contexts = tmp_path / "contexts.jsonl"
    main(["plan", "--config", str(config_file), "--contexts", str(contexts)])
    output = tmp_path / "scores"
    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert len(stub.received) == CONTEXTS
    assert "llm: 60/60 pairs, 10/10 requests" in said
    assert "│ requests sent │ 10, 0 more failed │" in said
    book = read_ledger(output)
    assert (book.scored, book.failed) == (60, 0)
    planned = {json.loads(line)["context_id"] for line in contexts.read_text().splitlines()}
    assert {record.context_id for record in read_scores(str(output))} == planned
    assert not (output / "work").exists()

    settings = yaml.safe_load(config_file.read_text())
    settings["llm"] = {
        "strategy": "replay",
        "replay_table": "scores",
        "budget": settings["llm"]["budget"],
        "candidates": settings["llm"]["candidates"],
    }
    config_file.write_text(yaml.safe_dump(settings))
    # Into the same folder: the table is read to the end before it is replaced.
    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    assert len(stub.received) == CONTEXTS
    again = read_ledger(output)
    assert (again.scored, again.strategy) == (60, "replay")


@pytest.mark.slow
def test_a_table_that_is_there_outlives_a_job_that_fails(config_file, stub, capsys, tmp_path):
    output = tmp_path / "scores"
    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    before = {file.name: file.read_bytes() for file in output.glob("*.gz")}
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"]["seed"] = 1
    config_file.write_text(yaml.safe_dump(settings))
    stub.always = failing(401, {"message": "no"})
    capsys.readouterr()
    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 1
    said = capsys.readouterr()
    assert "refuses the key" in said.err
    assert "Traceback" not in said.err
    assert f"to resume: sllmr score --config {config_file} --output {output}" in squeezed(said.out)
    assert {file.name: file.read_bytes() for file in output.glob("*.gz")} == before


def table_of(folder: pathlib.Path) -> dict[str, bytes]:
    """What any program finds at the top of an output folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith((".gz", ".json"))}


@pytest.mark.slow
def test_a_table_of_a_job_with_too_many_failures_is_kept_apart_and_named(
    config_file, stub, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where the folder is linked, as Beam cannot read its name
    output = tmp_path / "scores[1]*"
    command = ["score", "--config", str(config_file), "--output", str(output)]
    assert main(command) == 0
    before, records = table_of(output), list(read_scores(str(output)))
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"]["seed"] = 1
    config_file.write_text(yaml.safe_dump(settings))
    stub.replies = [failing(500, {"message": "oops"})] * 4
    capsys.readouterr()
    assert main(command) == 1
    said = capsys.readouterr()
    assert "max_failure_rate=0.1, got 24 of 60" in said.err
    failed = output / "work" / "failed"
    assert f"Failed {failed}" in squeezed(said.out)
    assert f"--output '{output}'" in said.out  # so that a shell takes it as it is
    assert read_ledger(failed).failed == 24
    assert table_of(output) == before
    assert list(read_scores(str(output))) == records

    assert main(command) == 0
    assert read_ledger(output).scored == 60
    assert not (output / "work").exists()
    assert {r.context_id for r in read_scores(str(output))}.isdisjoint(r.context_id for r in records)


def test_answers_are_said_to_be_kept_only_where_there_are_any(config_file, capsys, tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n")
    assert main(["score", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 1
    said = squeezed(capsys.readouterr().out)
    assert "Every response" not in said
    assert "Stopped. To resume: sllmr score" in said


@pytest.mark.parametrize("command", ["score", "rescore", "batch"])
def test_nothing_is_read_before_the_folder_is_held(config_file, tmp_path, monkeypatch, command):
    seen = []

    @contextlib.contextmanager
    def lock(folder: pathlib.Path, console: Console) -> Iterator[None]:
        seen.append(f"{folder.name} held")
        yield

    def stop(*_: object) -> None:
        seen.append("reading")
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "folder_lock", lock)
    monkeypatch.setattr(scoring, "_prepare", stop)
    table = ["--scores", str(tmp_path / "earlier")] if command == "rescore" else []
    assert main([command, "--config", str(config_file), "--output", str(tmp_path / "out"), *table]) == 130
    assert seen == ["out held", "reading"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_score_goes_on_where_it_was(config_file, stub, capsys, tmp_path, how):
    output = tmp_path / "scores"
    stub.free_answers = 4
    stub.gate.clear()
    command = [
        sys.executable,
        "-m",
        "sllmr.pipeline.cli",
        "score",
        "--config",
        str(config_file),
        "--output",
        str(output),
    ]
    # A shell's background job, as tests may be run, ignores SIGINT, and so would its children.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Two calls wait at the gate, so both threads have stored all that they were answered before.
    stub.wait_until(lambda: len(stub.received) == 6)
    os.kill(process.pid, how)
    if how != signal.SIGKILL:
        # What is in flight ends; nothing more is sent.
        stub.gate.set()
    out, err = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 128 + how, err
        assert err == {signal.SIGINT: "sllmr: interrupted\n", signal.SIGTERM: "sllmr: terminated\n"}[how]
        assert "Every response so far is kept in" in squeezed(out)
        assert f"to resume: sllmr score --config {config_file} --output {output}" in squeezed(out)
    else:
        assert process.returncode == -signal.SIGKILL
    stub.gate.set()
    capsys.readouterr()
    assert main(["reservations", "--config", str(config_file)]) == 0
    reserved = squeezed(capsys.readouterr().out)
    if how == signal.SIGKILL:
        # The configuration has no cap: what was in flight is known all the same.
        assert "Ended without a response, may be on the bill: 2 requests of 1 runs, at most $0.0" in reserved
    else:
        assert reserved.startswith("No request of an earlier run")
    answered = {json.dumps(body) for body in stub.answered[:4]}
    before = len(stub.received)
    assert before <= 8

    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    later = {json.dumps(body) for body in stub.received[before:]}
    assert not later & answered
    assert read_ledger(output).scored == 60
    said = squeezed(capsys.readouterr().out)
    assert ("2 requests of earlier runs ended without a response" in said) == (how == signal.SIGKILL)
    assert main(["reservations", "--config", str(config_file), "--release"]) == 0
    assert main(["reservations", "--config", str(config_file)]) == 0
    assert squeezed(capsys.readouterr().out).endswith("may be on the bill without a response.")


@pytest.mark.slow
def test_a_table_of_scores_by_user_is_planned_and_scored_without_held_out_items(config_file, stub, capsys, tmp_path):
    """Scores of every item by some users; the last two interactions of each are held out by leave-last-two."""
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"] = {"strategy": "replay", "replay_table": "mine.csv"}
    config_file.write_text(yaml.safe_dump(settings))
    lines = [f"user-{user},i{n},{(n * 7 + user) % 40}" for user in range(5) for n in range(ITEMS)]
    (tmp_path / "mine.csv").write_text("\n".join(["user_id,item_id,score", *lines, "nobody,i0,1"]) + "\n")
    assert main(["plan", "--config", str(config_file)]) == 0
    assert f"│ users │ 5 │ {USERS} │" in squeezed(capsys.readouterr().out)
    assert main(["score", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 0
    said = squeezed(capsys.readouterr().out)
    assert stub.received == []
    assert "scores of llm.replay_table are in [0, 39] and were scaled to [0, 1]" in said
    book = read_ledger(tmp_path / "scores").replay_table
    assert (book.rows, book.users, book.users_used) == (5 * ITEMS + 1, 6, 5)
    assert book.used + sum(book.dropped.values()) == book.rows
    assert (book.dropped["held_out_item"], book.dropped["unknown_user"]) == (5 * 2, 1)
    assert "│ rows dropped: held_out_item │ 10 │" in said
    records = list(read_scores(str(tmp_path / "scores")))
    orders = {user: [f"i{(7 * user + 5 * n) % ITEMS}" for n in range(LENGTH)] for user in range(5)}
    for record in records:
        # The histories tell whose context it is: its items in reverse are how the user began.
        (user,) = (
            u for u, order in orders.items() if order[: record.history_length] == [*record.history_item_ids][::-1]
        )
        train, held_out = orders[user][:-2], orders[user][-2:]
        assert record.history_length < len(train)
        assert record.target_item_id == orders[user][record.history_length]
        assert not {*record.item_ids} & {*held_out, *train} - {record.target_item_id}
        for item, score in zip(record.item_ids, record.llm_scores, strict=True):
            assert score == pytest.approx((int(item[1:]) * 7 + user) % 40 / 39)
    assert len(records) == 5 * (LENGTH - 3)


@pytest.mark.slow
def test_plan_prices_vectors_of_an_endpoint_and_score_makes_them_once(config_file, stub, capsys, tmp_path):
    stub.always = lambda handler, body: handler.send_json(
        200,
        {"data": [{"embedding": [len(body["input"]), body["input"].count("1"), 1]}], "usage": {"prompt_tokens": 5}},
    )
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"] = {"strategy": "embedding", "budget": settings["llm"]["budget"]}
    endpoint = {"model": "text-embedding-3-small", "base_url": stub.base_url, "api_key_env": "NO_SUCH_KEY"}
    settings["item_vectors"] = {"source": "endpoint", "endpoint": endpoint}
    config_file.write_text(yaml.safe_dump(settings))

    assert main(["plan", "--config", str(config_file)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert f"│ texts │ {ITEMS}, 0 of them in the cache │" in said
    assert "The vectors are not there yet" in said
    assert stub.received == []

    for _ in range(2):
        assert main(["score", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 0
    assert sorted(body["input"] for body in stub.received) == sorted(
        f"Film number {n}. {('Crime', 'Comedy', 'Drama')[n % 3]}" for n in range(ITEMS)
    )
    assert all(record.strategy == "embedding" for record in read_scores(str(tmp_path / "scores")))

    assert main(["plan", "--config", str(config_file)]) == 0
    assert f"│ texts │ {ITEMS}, {ITEMS} of them in the cache │" in squeezed(capsys.readouterr().out)


@pytest.mark.slow
def test_what_a_user_rated_low_after_the_train_split_is_no_candidate_of_a_table_by_user(config_file, capsys, tmp_path):
    """Low ratings make no row: they are known from a file beside the catalog."""
    rows = [line.split(",") for line in (tmp_path / "interactions.csv").read_text().splitlines()[1:]]
    low = [(f"user-{user}", f"i{(7 * user + 1) % ITEMS}", str(1_000_000_000 + 86400 * LENGTH)) for user in range(5)]
    lines = [",".join([*row, "5"]) for row in rows] + [",".join([*row, "1"]) for row in low]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,rating", *lines]) + "\n")
    scored = [f"user-{user},i{n},{n % 7 / 7}" for user in range(5) for n in range(ITEMS)]
    (tmp_path / "mine.csv").write_text("\n".join(["user_id,item_id,score", *scored]) + "\n")
    settings = yaml.safe_load(config_file.read_text())
    settings["data"]["min_rating"] = 4
    settings["llm"] = {"strategy": "replay", "replay_table": "mine.csv", "store_user_ids": True}
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["score", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 0
    replayed = read_ledger(tmp_path / "scores").replay_table
    assert replayed is not None
    assert replayed.dropped["held_out_negative"] >= len(low)
    disliked = {(user, item) for user, item, _ in low}
    for record in read_scores(str(tmp_path / "scores")):
        assert not disliked & {(record.user_id, item) for item in record.item_ids}


@pytest.mark.slow
def test_what_a_user_took_before_the_window_and_every_history_is_no_candidate(config_file, tmp_path):
    """Days 2 to 4 of each user's seven train; a history of one item does not reach day 0."""
    settings = yaml.safe_load(config_file.read_text())
    settings["data"] |= {
        "split": {"strategy": "global_date"},
        "window": {"days": 5, "until": "2001-09-16"},
        "sizes": {"history": 1},
    }
    settings["llm"] |= {"store_user_ids": True, "budget": {"pairs": 6 * 3 * USERS}}
    config_file.write_text(yaml.safe_dump(settings))
    contexts = tmp_path / "contexts.jsonl"
    assert main(["plan", "--config", str(config_file), "--contexts", str(contexts)]) == 0
    planned = [json.loads(line) for line in contexts.read_text().splitlines()]
    assert len(planned) == 3 * USERS
    for context in planned:
        user = int(context["user_id"].removeprefix("user-"))
        taken = {f"i{(7 * user + 5 * n) % ITEMS}" for n in range(LENGTH - 2)}
        assert taken.isdisjoint({item["item_id"] for item in context["candidates"]} - {context["target_item_id"]})

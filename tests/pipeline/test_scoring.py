"""`sllmr plan` and `sllmr score`: the whole command on two small tables, the LLM a stub."""

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

from components.scores import read_scores
from pipeline.cli import main
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
        "llm": {
            "model": "gpt-4o-mini",
            "base_url": stub.base_url,
            "api_key_env": "NO_SUCH_KEY",
            "max_retries": 0,
            "concurrency": 2,
            "budget": {"pairs": 6 * CONTEXTS},
            "candidates": {"per_context": 6, "negatives_per_probe": 2, "popularity_pool": 20},
        },
    }
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "shop.yaml"


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_plan_tells_the_bill_and_the_reach_without_a_call(config_file, stub, capsys, tmp_path):
    contexts = tmp_path / "contexts.jsonl"
    assert main(["plan", "--config", str(config_file), "--contexts", str(contexts)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert stub.received == []
    assert "│ pairs │ 60 in 10 contexts │" in said
    assert "│ requests │ 10, 0 of them answered by the cache │" in said
    assert f"│ users │ 10 │ {USERS} │ 66.7% │" in said
    # Leave-last-two: positions 2 to 5 train, with histories of 1 to 4 items; up to 3 are cold.
    assert f"│ {3 * USERS} │" in said.split("cold contexts")[1].split("%")[0]
    assert "│ 50% │ 30 │ 5 │ $" in said
    assert said.endswith(f"Nothing was asked. Contexts {contexts}")
    planned = [json.loads(line) for line in contexts.read_text().splitlines()]
    assert sum(len(c["candidates"]) for c in planned) == 60
    assert "user-" not in contexts.read_text()


@pytest.mark.parametrize(("cap", "value"), [("max_cost_usd", 1e-6), ("max_tokens", 100)])
def test_plan_says_when_the_cap_would_stop_it(config_file, capsys, cap, value):
    settings = yaml.safe_load(config_file.read_text())
    settings["llm"]["budget"][cap] = value
    config_file.write_text(yaml.safe_dump(settings))
    assert main(["plan", "--config", str(config_file)]) == 0
    assert f"llm.budget.{cap}={value:g} would stop this before its end" in squeezed(capsys.readouterr().out)


def test_score_asks_what_was_planned_and_a_replay_of_its_folder_asks_nothing(config_file, stub, capsys, tmp_path):
    contexts = tmp_path / "contexts.jsonl"
    main(["plan", "--config", str(config_file), "--contexts", str(contexts)])
    output = tmp_path / "scores"
    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    said = squeezed(capsys.readouterr().out)
    assert len(stub.received) == CONTEXTS
    assert "llm: 60/60 pairs, 10/10 calls" in said
    assert "│ calls sent │ 10, 0 more failed │" in said
    book = json.loads((output / "ledger.json").read_text())
    assert (book["scored"], book["failed"]) == (60, 0)
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
    again = json.loads((output / "ledger.json").read_text())
    assert (again["scored"], again["strategy"]) == (60, "replay")


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
    assert f"to go on: sllmr score --config {config_file} --output {output}" in squeezed(said.out)
    assert {file.name: file.read_bytes() for file in output.glob("*.gz")} == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_score_goes_on_where_it_was(config_file, stub, tmp_path, how):
    output = tmp_path / "scores"
    stub.free_answers = 4
    stub.gate.clear()
    command = [sys.executable, "-m", "pipeline.cli", "score", "--config", str(config_file), "--output", str(output)]
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
    if how == signal.SIGINT:
        # What is under way ends; nothing more is sent.
        stub.gate.set()
    out, err = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130, err
        assert "Every answer so far is kept in" in squeezed(out)
        assert f"to go on: sllmr score --config {config_file} --output {output}" in squeezed(out)
    else:
        assert process.returncode == -signal.SIGKILL
    stub.gate.set()
    answered = {json.dumps(body) for body in stub.answered[:4]}
    before = len(stub.received)
    assert before <= 8

    assert main(["score", "--config", str(config_file), "--output", str(output)]) == 0
    later = {json.dumps(body) for body in stub.received[before:]}
    assert not later & answered
    assert json.loads((output / "ledger.json").read_text())["scored"] == 60

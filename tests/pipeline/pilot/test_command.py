"""`sllmr pilot`: the whole command on two small tables, the LLM a stub."""

import csv
import json
import pathlib
import random

import pytest
import yaml

from sllmr.pipeline.cli import main
from sllmr.pipeline.pilot.result import COVERAGES, PilotReport
from tests.components.llm_scorer.stub_server import running_stub

USERS, LENGTH, ITEMS = 120, 9, 60


def write_shop(folder: pathlib.Path, base_url: str, **llm) -> pathlib.Path:
    """Two tables of users with one of three tastes, and a configuration with a small model."""
    draw = random.Random(0)
    with open(folder / "interactions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            liked = draw.sample(range(user % 3, ITEMS, 3), LENGTH)
            writer.writerows((f"user-{user}", f"i{item}", 1_000_000_000 + 86400 * n) for n, item in enumerate(liked))
    with open(folder / "items.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        writer.writerows((f"i{n}", f"Film number {n}", ("Crime", "Comedy", "Drama")[n % 3]) for n in range(ITEMS))
    settings = {
        "cache_dir": "cache",
        "data": {"interactions": "interactions.csv", "items": "items.csv"},
        "item_vectors": {"source": "none"},
        "model": {"embedding_dim": 4, "mlp": [4]},
        "train": {"epochs": 1},
        "llm": {
            "model": "gpt-4o-mini",
            "base_url": base_url,
            "api_key_env": "NO_SUCH_KEY",
            "max_retries": 0,
            "budget": {"pairs": 500},
            "candidates": {"calibration_fraction": 0.8},
            **llm,
        },
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(settings))
    return folder / "shop.yaml"


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"loss": {"llm_weight": 0}}, "set loss.llm_weight above 0"),
        (
            {"llm": {"candidates": {"calibration_fraction": 0}}},
            "llm.candidates.calibration_fraction is 0; set it above",
        ),
        ({"llm": {"model": "gpt-4o-mini", "api_key_env": "NO_SUCH_KEY"}}, "NO_SUCH_KEY is not set; set it"),
    ],
    ids=["no LLM", "no calibration pairs", "no key"],
)
def test_a_configuration_without_a_pilot_names_the_fix(tmp_path, capsys, changes, fix):
    config_file = write_shop(tmp_path, "http://127.0.0.1:9/v1")
    settings = yaml.safe_load(config_file.read_text())
    config_file.write_text(yaml.safe_dump({**settings, **changes}))
    assert main(["pilot", "--config", str(config_file), "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert fix in said
    assert "Traceback" not in said


def test_an_amount_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pilot", "--config", "shop.yaml", "--output", "out", "--usd", "-1"])
    assert "must be an amount of US dollars above 0, got '-1'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pilot_says_what_it_found_and_its_responses_count_towards_the_full_run(tmp_path, capsys):
    with running_stub() as stub:
        config_file = write_shop(tmp_path, stub.base_url)
        output = tmp_path / "out"
        assert main(["pilot", "--config", str(config_file), "--output", str(output)]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        report = PilotReport.model_validate_json((output / "pilot.json").read_text())
        sampled = len(stub.received)
        assert main(["score", "--config", str(config_file), "--output", str(tmp_path / "scores")]) == 0
        assert len(stub.received) == 50  # 500 pairs in contexts of 10

    assert sampled == report.contexts == 40  # the fraction .8 of the 50 contexts
    assert report.users == 40
    assert report.pairs == 80
    assert [part.coverage for part in report.predicted] == list(COVERAGES)
    # Of the whole plan only the contexts that are not calibration contexts are left to pay for.
    book = json.loads((tmp_path / "scores" / "ledger.json").read_text())
    assert book["requests"]["cached"] == 40
    assert 0 < report.predicted[-1].cost_usd < report.cost_usd
    assert report.predicted[-1].users_reached == pytest.approx(50 / USERS)
    # The stub's scores know nothing of the users.
    assert report.recommendation == "do_not_spend"
    assert "Do not spend money on this LLM" in said
    assert report.reason in (output / "pilot.html").read_text()
    assert "user-" not in (output / "pilot.json").read_text()
    assert not (output / "work").exists()


@pytest.mark.slow
def test_a_pilot_of_a_persons_own_scores_costs_nothing(tmp_path, capsys):
    config_file = write_shop(tmp_path, "http://127.0.0.1:9/v1")
    draw = random.Random(1)
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "score"])
        writer.writerows((f"user-{u}", f"i{i}", f"{draw.random():.3f}") for u in range(USERS) for i in range(ITEMS))
    settings = yaml.safe_load(config_file.read_text())
    llm = {"strategy": "replay", "replay_table": "scores.csv", "candidates": settings["llm"]["candidates"]}
    config_file.write_text(yaml.safe_dump({**settings, "llm": llm}))
    output = tmp_path / "out"
    assert main(["pilot", "--config", str(config_file), "--output", str(output)]) == 0, capsys.readouterr().err
    report = PilotReport.model_validate_json((output / "pilot.json").read_text())
    assert report.cost_usd == 0
    assert report.users == USERS // 2  # the base model is trained on the others
    assert report.gain.lower < 0 < report.gain.upper  # random scores add nothing
    assert report.recommendation == "do_not_spend"

"""`sllmr backtest`: the whole command on a small shop, the LLM a stub that counts."""

import collections
import json
import os
import pathlib
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tfx.components import StatisticsGen
from tfx.orchestration.metadata import sqlite_metadata_connection_config
from tfx.orchestration.pipeline import Pipeline

from benchmarks.schedule import configuration, scores_of, write_tables
from sllmr.components.artifacts import LlmScores
from sllmr.components.curated_schema.component import CuratedSchema
from sllmr.components.example_validator.component import StrictExampleValidator
from sllmr.components.example_validator.drift_report import read_drift_report
from sllmr.components.interactions_example_gen.component import InteractionsExampleGen
from sllmr.components.llm_scorer.errors import LlmError, NothingToReplay
from sllmr.components.llm_scorer.executor import LAST_SCORES, Executor
from sllmr.components.llm_scorer.results import read_ledger
from sllmr.models.features import row_features
from sllmr.models.schema import schema
from sllmr.pipeline import run_folder, runner
from sllmr.pipeline.backtest import command
from sllmr.pipeline.backtest.gains import parts_of
from sllmr.pipeline.backtest.result import RESCORED, SCORED_ONCE, SLICES, BacktestReport
from sllmr.pipeline.cli import main
from sllmr.pipeline.config import Config
from sllmr.pipeline.dag_runner import DagRunner
from sllmr.pipeline.graph import pipeline_name
from sllmr.pipeline.last_scores import EXAMPLES, LAST, LastScoresStrategy
from sllmr.pipeline.last_statistics import LAST as LAST_STATISTICS
from sllmr.pipeline.last_statistics import last_statistics
from sllmr.pipeline.run_folder import ARTIFACTS_DIRECTORY, METADATA_FILE
from sllmr.pipeline.run_summary import RunSummary
from sllmr.pipeline.runner import SUMMARY_FILE
from sllmr.pipeline.summary import Step, read_steps
from tests.components.llm_scorer.stub_server import StubHandler, StubServer, chat_response, running_stub
from tests.pipeline.test_report import summary
from tests.pipeline.test_schedule import prepare

WINDOWS = 3
CONTEXTS = 30


def write_shop(folder: pathlib.Path, base_url: str, **changes: Any) -> pathlib.Path:
    """The shop of benchmarks.schedule with days for WINDOWS windows of 14, and a configuration that trains fast."""
    write_tables(folder, WINDOWS - 1)
    return write_configuration(folder, base_url, **changes)


def write_configuration(folder: pathlib.Path, base_url: str, **changes: Any) -> pathlib.Path:
    """The configuration alone, with changed keys by section."""
    settings = configuration(base_url, 0)
    del settings["data"]["window"]["until"]
    del settings["llm"]["rescore"]
    settings["llm"]["budget"] = {"pairs": 10 * CONTEXTS}
    settings["train"] = {"batch_size": 256, "epochs": 2}
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    (folder / "shop.yaml").write_text(yaml.safe_dump(settings))
    return folder / "shop.yaml"


def stub_answers(server: StubServer) -> None:
    def answer(handler: StubHandler, body: dict[str, Any]) -> None:
        handler.send_json(200, chat_response(scores_of(body["messages"][-1]["content"])))

    server.always = answer


def run(config_file: pathlib.Path, output: pathlib.Path, windows: int = WINDOWS) -> int:
    return main(["backtest", "--config", str(config_file), "--output", str(output), "--windows", str(windows)])


def read(output: pathlib.Path) -> BacktestReport:
    return BacktestReport.model_validate_json((output / "backtest.json").read_text())


def test_fewer_than_two_windows_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["backtest", "--config", "shop.yaml", "--output", "out", "--windows", "1"])
    assert "must be a number of at least 2, got '1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "windows", "fix"),
    [
        ({"data": {"window": None}}, 3, "a backtest needs data.window, got none; set data:"),
        ({}, 4, "got 16 in .*interactions.csv, from 2026-02-15 to 2026-03-03; set --windows 3, or lower"),
        ({"loss": {"llm_weight": 0}}, 3, "set loss.llm_weight above 0"),
        ({"train": {"compare": False}}, 3, "set train.compare: true"),
        ({"llm": {"strategy": "replay", "replay_table": "items.csv"}}, 3, "set the strategy that the table was"),
        ({"data": {"window": {"days": 4}}}, 3, "raise data.window.days to at least 5"),
        ({"llm": {"base_url": None, "api_key_env": "NO_SUCH_KEY"}}, 3, "NO_SUCH_KEY is not set; set it"),
    ],
    ids=["no window", "short table", "no LLM", "no comparison", "replay", "no common train day", "no key"],
)
def test_a_configuration_without_a_backtest_names_the_fix_before_anything_runs(
    tmp_path, monkeypatch, capsys, changes, windows, fix
):
    def no_run(*arguments: Any) -> None:
        raise AssertionError("a run started")

    monkeypatch.setattr(runner.DagRunner, "run", no_run)
    config_file = write_shop(tmp_path, "http://127.0.0.1:9/v1", **changes)
    assert run(config_file, tmp_path / "out", windows) == 1
    said = capsys.readouterr().err
    assert re.search(fix, said), said
    assert "Traceback" not in said


class Killed(KeyboardInterrupt):
    """As Ctrl-C in the middle of a run."""


class ScoringRuns:
    """In place of whole runs: their rows and scores by the real steps, without an orchestrator or a model.

    Attributes:
        folders: of each run, by name, in order.
        sent: requests that the stub has got after each run.
        stop_before: number of the run that is killed before it ends.
    """

    def __init__(self, root: pathlib.Path, stub: StubServer):
        self.folders: list[str] = []
        self.sent: list[int] = []
        self.stop_before = -1
        self._root, self._stub = root, stub
        self._tables: list[LlmScores] = []

    def run_config(self, config, output, log_file, console, again) -> RunSummary:
        number = len(self.folders)
        self.folders.append(output.name)
        if number == self.stop_before:
            raise Killed
        directory = self._root / f"run-{number}"
        (directory / "scores").mkdir(parents=True)
        made, catalog = prepare(directory, config, number=100 + number)
        scores = LlmScores()
        scores.id, scores.uri = 200 + number, str(directory / "scores")
        tables = self._tables if config.llm.rescore else []
        found = LastScoresStrategy().resolve_artifacts(None, {EXAMPLES: [made], LAST: tables})
        Executor(Executor.Context(tmp_dir=str(directory / "tmp"), unique_id="1")).Do(
            {"examples": [made], "catalog": [catalog], LAST_SCORES: found[LAST]},
            {"scores": [scores]},
            {
                "config": config.llm.model_dump_json(),
                "pair_yield": "",
                "cache_directory": config.cache_dir,
                "store_url": "",
            },
        )
        if config.llm.rescore:
            self._tables.append(scores)
        self.sent.append(len(self._stub.received))
        (output / METADATA_FILE).touch()
        (output / SUMMARY_FILE).touch()
        self._steps = {"LlmScorer": Step(seconds=1.0, cached=False, outputs={"scores": scores.uri})}
        ledger = read_ledger(scores.uri)
        return summary(
            verdict=verdict(cost_usd=ledger.cost_usd + ledger.cost_of_cached_responses_usd), **ledger.model_dump()
        )

    def read_steps(self, folder: pathlib.Path) -> dict[str, Step]:
        return self._steps

    def parts(self, steps) -> dict[str, Any]:
        """Of 20 users; the models of each run differ."""
        generator = np.random.default_rng(len(self.folders))
        labels = np.tile([0, 1], 60)
        users = np.repeat([f"u{n}" for n in range(20)], 6)
        logits = generator.normal(size=(2, 120)) + labels
        return parts_of(users, labels, *logits, {name: np.ones(120, bool) for name in SLICES})


def verdict(cost_usd: float) -> dict[str, Any]:
    found = {"difference": 0.01, "lower": -0.02, "upper": 0.04, "with_llm": 0.71, "without_llm": 0.7}
    return {
        "answer": "not_distinguishable",
        "users_needed": None,
        "slices": {name: {**found, "users": 20, "examples": 120} for name in SLICES},
        "choice": {"with_llm": True, "difference": 0.01, "standard_error": 0.01, "reason": "it is better"},
        "cost_usd": cost_usd,
        "seconds": 1.0,
    }


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Iterator[tuple[ScoringRuns, StubServer]]:
    with running_stub() as stub:
        stub_answers(stub)
        found = ScoringRuns(tmp_path / "runs", stub)
        monkeypatch.setattr(runner, "run_config", found.run_config)
        monkeypatch.setattr(command, "read_steps", found.read_steps)
        monkeypatch.setattr(command, "_parts", found.parts)
        yield found, stub


@pytest.mark.slow
def test_scoring_once_sends_nothing_after_the_first_window_and_an_interruption_asks_nothing_twice(
    tmp_path, runs, capsys
):
    made, stub = runs
    config_file, output = write_shop(tmp_path, stub.base_url), tmp_path / "out"
    made.stop_before = 2
    assert run(config_file, output) == 130
    begun = read(output)
    assert {name: len(one.windows) for name, one in begun.series.items()} == {RESCORED: 2, SCORED_ONCE: 1}
    assert "run the same command to continue" in (output / "backtest.html").read_text()
    assert run(config_file, output) == 0, capsys.readouterr().err
    assert "3 of 6 windows of the two series are there already" in capsys.readouterr().out
    report = read(output)

    # The first run is of both series; the third one was killed and is run again.
    assert made.folders == [RESCORED, RESCORED, SCORED_ONCE, SCORED_ONCE, RESCORED, SCORED_ONCE]
    first, second, second_once, third, third_once = made.sent
    assert first == CONTEXTS
    assert first < second == second_once < third == third_once < 3 * CONTEXTS
    requests = collections.Counter(json.dumps(body, sort_keys=True) for body in stub.received)
    assert set(requests.values()) == {1}

    rescored, once = report.series[RESCORED], report.series[SCORED_ONCE]
    assert begun.series[RESCORED].windows == rescored.windows[:2]
    assert once.windows[0] == rescored.windows[0]
    assert [w.requests.planned for w in rescored.windows] == [first, second - first, third - second]
    assert [w.requests.planned for w in once.windows] == [first, 0, 0]
    assert [w.cost_usd for w in once.windows[1:]] == [0, 0]
    price = rescored.windows[0].cost_usd / first
    assert price > 0
    assert report.rescoring.requests == third - first
    assert report.rescoring.cost_usd == pytest.approx(price * (third - first))
    for window in rescored.windows[1:]:
        assert window.rescore.kept + sum(window.rescore.scored_again.values()) + window.rescore.gone == CONTEXTS
    # What has left the window is lost to the series that scores once.
    assert CONTEXTS >= once.windows[1].contexts >= once.windows[2].contexts > 0


def fake_runs(monkeypatch, folders: list[str]) -> None:
    """Runs that make nothing but numbers."""

    def run_config(config, output, *rest):
        folders.append(output.name)
        for name in (METADATA_FILE, SUMMARY_FILE):
            (output / name).touch()
        (output / "scores").mkdir(exist_ok=True)
        return summary(verdict=verdict(cost_usd=0.5))

    def steps(folder):
        return {"LlmScorer": Step(seconds=1.0, cached=False, outputs={"scores": str(folder / "scores")})}

    monkeypatch.setattr(runner, "run_config", run_config)
    monkeypatch.setattr(command, "read_steps", steps)
    monkeypatch.setattr(command, "_parts", ScoringRuns.parts.__get__(SimpleNamespace(folders=folders)))


def test_scores_of_window_one_that_fit_no_row_end_their_series_alone(tmp_path, monkeypatch, capsys):
    folders: list[str] = []
    fake_runs(monkeypatch, folders)
    run_config = runner.run_config

    def without_contexts(config, folder, *rest):
        if folder.name == SCORED_ONCE:
            folders.append(folder.name)
            raise NothingToReplay("none of the 30 contexts of llm.replay_table is in the train rows")
        return run_config(config, folder, *rest)

    monkeypatch.setattr(runner, "run_config", without_contexts)
    config_file, output = write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out"
    for _ in range(2):  # the second command has nothing to do
        assert run(config_file, output) == 0, capsys.readouterr().err
        assert folders == [RESCORED, RESCORED, SCORED_ONCE, RESCORED]
    report = read(output)
    assert [len(one.windows) for one in report.series.values()] == [3, 1]
    assert "train rows of window 2; raise data.window.days" in report.series[SCORED_ONCE].ended_because
    assert report.rescoring is None
    assert report.series[SCORED_ONCE].ended_because in (output / "backtest.html").read_text()


@pytest.mark.parametrize("error", [LlmError("the endpoint refuses the key"), RuntimeError("a defect")])
def test_another_error_of_a_run_stops_the_backtest(tmp_path, monkeypatch, capsys, error):
    fake_runs(monkeypatch, [])
    run_config = runner.run_config

    def failing(config, folder, *rest):
        if folder.name == SCORED_ONCE:
            raise error
        return run_config(config, folder, *rest)

    monkeypatch.setattr(runner, "run_config", failing)
    assert run(write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out") == 1
    assert str(error) in capsys.readouterr().err
    assert [len(one.windows) for one in read(tmp_path / "out").series.values()] == [2, 1]


def test_a_finished_backtest_runs_nothing_again(tmp_path, monkeypatch):
    folders: list[str] = []
    fake_runs(monkeypatch, folders)
    config_file, output = write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out"
    assert run(config_file, output) == 0
    assert folders == [RESCORED, RESCORED, SCORED_ONCE, RESCORED, SCORED_ONCE]
    before = read(output)
    # Keys that change how requests are sent, and not what is found, may change.
    changes = {"concurrency": 3, "budget": {"pairs": 10 * CONTEXTS, "max_cost_usd": 9}}
    write_configuration(tmp_path, "http://127.0.0.1:9/v1", llm=changes)
    assert run(config_file, output) == 0
    assert len(folders) == 5
    assert read(output).series == before.series


def test_a_correction_before_the_first_run_has_begun_is_taken(tmp_path, monkeypatch, capsys):
    folders: list[str] = []
    fake_runs(monkeypatch, folders)
    whole = runner.run_config

    def refused(*arguments):
        raise LlmError("the endpoint does not know the model")

    monkeypatch.setattr(runner, "run_config", refused)
    config_file, output = write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out"
    assert run(config_file, output, 2) == 1
    assert read(output).series[RESCORED].windows == ()
    monkeypatch.setattr(runner, "run_config", whole)
    write_configuration(tmp_path, "http://127.0.0.1:9/v1", llm={"model": "another"})
    assert run(config_file, output, 2) == 0, capsys.readouterr().err
    assert read(output).model == "another"


def test_windows_of_another_configuration_are_not_mixed(tmp_path, monkeypatch, capsys):
    folders: list[str] = []
    fake_runs(monkeypatch, folders)
    config_file, output = write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out"
    assert run(config_file, output, 2) == 0
    kept = (output / "backtest.json").read_text()

    write_configuration(tmp_path, "http://127.0.0.1:9/v1", model={"embedding_dim": 4})
    assert run(config_file, output, 2) == 1
    assert "model.embedding_dim was 8 and is 4; name another --output, or remove" in capsys.readouterr().err

    write_configuration(tmp_path, "http://127.0.0.1:9/v1")
    assert run(config_file, output, 3) == 1
    assert "it has 2 windows up to 2026-03-03, and the command 3 up to 2026-03-03" in capsys.readouterr().err
    os.utime(tmp_path / "items.csv", ns=(1, 1))
    assert run(config_file, output, 2) == 1
    assert "the tables have been written since" in capsys.readouterr().err
    (output / "backtest.json").rename(tmp_path / "backtest.json")
    assert run(config_file, output, 2) == 1
    assert "backtest.json, which says of what, is gone; remove" in capsys.readouterr().err
    (output / "backtest.json").write_text("{}")
    assert run(config_file, output, 2) == 1
    assert "cannot be read as the report of an earlier command" in capsys.readouterr().err
    assert len(folders) == 3
    assert (tmp_path / "backtest.json").read_text() == kept


def first_steps(config: Config, folder: pathlib.Path) -> Pipeline:
    """The steps of a run that compare its rows with those of the last one."""
    rows = InteractionsExampleGen(config=config.data, code_fingerprint="")
    statistics = StatisticsGen(examples=rows.outputs["examples"])
    columns = row_features(config.data.feature_sizes, has_weights=False)
    curated = CuratedSchema(text=text_format.MessageToString(schema(columns)))
    last = last_statistics(statistics.outputs["statistics"])
    validator = StrictExampleValidator(
        statistics=statistics.outputs["statistics"],
        schema=curated.outputs["schema"],
        last_statistics=last.outputs[LAST_STATISTICS],
        config=config.drift,
        code_fingerprint="",
    )
    return Pipeline(
        pipeline_name=pipeline_name(config),
        pipeline_root=str(folder / ARTIFACTS_DIRECTORY),
        components=[rows, statistics, curated, last, validator],
        metadata_connection_config=sqlite_metadata_connection_config(str(folder / METADATA_FILE)),
    )


@pytest.mark.slow
def test_the_second_window_of_each_series_finds_what_the_one_first_run_left(tmp_path, monkeypatch, capsys):
    """The first steps run in TFX: their record of the first window serves both series."""
    folders: list[str] = []
    fake_runs(monkeypatch, folders)
    faked = runner.run_config

    def run_config(config, folder, log_file, console, again):
        made = faked(config, folder, log_file, console, again)
        if not (folder / METADATA_FILE).stat().st_size:
            (folder / METADATA_FILE).unlink()  # made by the fake
        run_folder.prepare(folder, pipeline_name(config), console)
        DagRunner(config.beam).run(first_steps(config, folder))
        steps = read_steps(folder)
        found = read_drift_report(steps["StrictExampleValidator"].outputs["anomalies"])
        last_runs.append(found.last_run)
        statistics.append(steps["StatisticsGen"].outputs["statistics"])
        return made.model_copy(update={"drift": found})

    last_runs: list[str | None] = []
    statistics: list[str] = []
    monkeypatch.setattr(runner, "run_config", run_config)
    config_file, output = write_shop(tmp_path, "http://127.0.0.1:9/v1"), tmp_path / "out"
    assert run(config_file, output, 2) == 0, capsys.readouterr().err

    assert folders == [RESCORED, RESCORED, SCORED_ONCE]
    assert last_runs == [None, statistics[0], statistics[0]]
    assert [pathlib.Path(path).relative_to(output).parts[0] for path in statistics] == folders
    report = read(output)
    assert [len(w.drift) for one in report.series.values() for w in one.windows] == [0, 5, 0, 5]
    assert report.series[RESCORED].windows[1].drift == report.series[SCORED_ONCE].windows[1].drift

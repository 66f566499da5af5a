"""The real graph on real MovieLens rows with the real local LLM, driven as its users drive it."""

import csv
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from sllmr.components.scores import read_scores
from sllmr.pipeline.datasets.movielens import prepare_movielens_100k
from sllmr.pipeline.summary import Step, read_steps
from tests.downloads import DOWNLOADS, link_models

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = [
    "InteractionsExampleGen",
    "StatisticsGen",
    "CuratedSchema",
    "LastStatistics",
    "StrictExampleValidator",
    "Transform",
    "LeakageGuard",
    "ItemEmbedder",
    "LlmScorer",
    "PairBuilder",
    "LeakageGuardOfPairs",
    "TrainerWithoutPairs",
    "Trainer",
    "LlmComparison",
    "Resolver",
    "Evaluator",
    "Pusher",
]
OUTPUT = "out[1]"
"""Its brackets are a pattern to TFX and Beam."""

CONFIG = """\
name: small
cache_dir: cache
data:
  interactions: interactions.csv.gz
  items: items.csv.gz
  min_rating: 4
  split: {strategy: global_date}
llm: {budget: {pairs: 40}}
train: {epochs: 2, batch_size: 256, pairs_per_batch: 32}
evaluation: {min_auc: {overall: MIN_AUC}, beat_popularity: []}
"""


def sllmr(config: pathlib.Path, output: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sllmr.pipeline.cli", "run", "--config", str(config), "--output", str(output)],
        capture_output=True,
        text=True,
        cwd=config.parent,
        env={**os.environ, "HOME": str(config.parent)},  # where the folder is linked, for its brackets
        check=False,
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    """120 users and 600 films of MovieLens-100K, and two configurations that differ in what they demand."""
    directory = tmp_path_factory.mktemp("run")
    tables = prepare_movielens_100k(directory / "full", DOWNLOADS)
    for table in (tables.interactions, tables.items):
        with gzip.open(table, "rt") as source, gzip.open(directory / table.name, "wt") as target:
            reader = csv.DictReader(source)
            writer = csv.DictWriter(target, reader.fieldnames or [])
            writer.writeheader()
            kept = (row for row in reader if int(row["item_id"]) <= 600)
            writer.writerows(row for row in kept if int(row.get("user_id", 0)) % 8 == 0)
    # The weights alone are shared: a cache of responses would keep the LLM out of every later run of this test.
    (directory / "cache").mkdir()
    link_models(directory / "cache")
    (directory / "small.yaml").write_text(CONFIG.replace("MIN_AUC", "0.5"))
    (directory / "demanding.yaml").write_text(CONFIG.replace("MIN_AUC", "0.999"))
    return directory


class FirstRun(NamedTuple):
    """What the first run left, before other tests run again in the same folder."""

    stdout: str
    steps: dict[str, Step]
    summary: dict
    page: str


@pytest.fixture(scope="module")
def finished(directory) -> FirstRun:
    result = sllmr(directory / "small.yaml", directory / OUTPUT)
    assert result.returncode == 0, result.stdout + result.stderr
    return FirstRun(
        stdout=result.stdout,
        steps=read_steps(directory / OUTPUT),
        summary=json.loads((directory / OUTPUT / "summary.json").read_text()),
        page=(directory / OUTPUT / "report.html").read_text(),
    )


@pytest.fixture(scope="module")
def summary(finished) -> dict:
    return finished.summary


def test_every_step_ran_once_in_order(finished):
    assert list(finished.steps) == STEPS
    assert not any(step.cached for step in finished.steps.values())


def test_the_terminal_names_every_step_and_ends_with_table_and_paths(finished, directory):
    for number, step in enumerate(STEPS, start=1):
        assert f"[{number:2d}/{len(STEPS)}] {step}" in finished.stdout
    assert "popularity" in finished.stdout
    assert "report.html" in finished.stdout.replace("\n", "")


def test_the_summary_counts_the_test_rows_of_every_slice(summary):
    overall = summary["metrics"]["overall"]
    assert overall["examples"] == summary["data"]["splits"]["test"]["rows"]
    assert overall["positives"] * 2 == overall["examples"]
    cold, warm = summary["metrics"]["cold"], summary["metrics"]["warm"]
    assert cold["examples"] > 0
    assert cold["examples"] + warm["examples"] == overall["examples"]
    for name, metrics in summary["metrics"].items():
        assert metrics["lower"] <= metrics["auc"] <= metrics["upper"]
        assert summary["popularity_baseline"][name]["examples"] == metrics["examples"]


def test_the_gates_means_are_those_of_its_regions(summary):
    cells = [cell for cell in summary["training"]["gate"] if cell["tail"] is True and cell["pairs"]]
    expected = sum(c["mean_alpha"] * c["pairs"] for c in cells) / sum(c["pairs"] for c in cells)
    assert summary["gate_means"]["tail"] == pytest.approx(expected)
    assert summary["gate_means"]["overall"] == pytest.approx(summary["training"]["gate"][0]["mean_alpha"])


def test_every_pair_asked_is_scored_or_failed(summary, finished):
    llm = summary["llm"]
    assert 0 < llm["requested"] <= 40
    assert llm["requested"] == llm["scored"] + llm["failed"]
    assert llm["requests"]["sent"] > 0
    records = list(read_scores(finished.steps["LlmScorer"].outputs["scores"]))
    assert sum(len(record.item_ids) for record in records) == llm["scored"]
    assert all(record.user_id == "" for record in records)


def test_the_pushed_model_scores_with_tensorflow_alone(summary, tmp_path):
    assert summary["blessed"]
    # TensorFlow itself loads no variables from a folder with brackets in its name, as this run's has.
    pushed = shutil.copytree(summary["pushed_path"], tmp_path / "1")
    program = """
import json, sys, importlib.abc
class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tfx", "tensorflow_transform", "tfx_bsl", "tensorflow_recommenders",
                                  "tf_keras", "openai", "sllmr"):
            raise ImportError(name)
sys.meta_path.insert(0, Forbid())
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
signature = model.signatures["raw"]
inputs = {}
for name, spec in signature.structured_input_signature[1].items():
    inputs[name] = tf.fill([2] + list(spec.shape[1:]), tf.constant("", tf.string))
print(json.dumps({k: v.numpy().ravel().tolist() for k, v in signature(**inputs).items()}))
print(sorted(model.signatures))
"""
    # Without the switch to Keras 2, as where TensorFlow alone is installed.
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(pushed)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    scores, signatures = done.stdout.splitlines()[-2:]
    assert all(0 < score < 1 for score in json.loads(scores)["scores"])
    assert signatures == "['rank', 'raw', 'serving_default']"


def test_the_verdict_compares_both_models_on_the_test_rows(summary, finished):
    verdict = summary["verdict"]
    overall = verdict["slices"]["overall"]
    assert overall["examples"] == summary["metrics"]["overall"]["examples"]
    taken = overall["with_llm"] if verdict["choice"]["with_llm"] else overall["without_llm"]
    assert taken == pytest.approx(summary["metrics"]["overall"]["auc"], abs=1e-6)
    assert overall["lower"] <= overall["difference"] <= overall["upper"]
    assert set(verdict["slices"]) == set(summary["metrics"])
    assert verdict["seconds"] > 0
    assert "Test AUC with the LLM against without" in finished.stdout


def test_the_report_is_one_page_that_fetches_nothing(summary, finished):
    page = finished.page
    assert page.count("<svg") == 6  # none of alpha by epoch: the default gate is constant while the model trains
    assert "src=" not in page
    assert "<link" not in page
    assert f"{summary['metrics']['cold']['auc']:.4f}" in page


def test_a_model_below_its_threshold_is_not_pushed_and_the_llm_is_not_asked_again(summary, directory):
    before = summary["pushed_path"]
    result = sllmr(directory / "demanding.yaml", directory / OUTPUT)
    assert result.returncode == 0, result.stdout + result.stderr
    second = json.loads((directory / OUTPUT / "summary.json").read_text())
    assert not second["blessed"]
    assert second["pushed_path"] is None
    assert any("auc on slice overall" in reason for reason in second["not_blessed_because"])
    served = {path.name for path in pathlib.Path(before).parent.iterdir()}
    assert served == {pathlib.Path(before).name, f"{pathlib.Path(before).name}.md"}
    for step in ("InteractionsExampleGen", "Transform", "LlmScorer", "PairBuilder", "TrainerWithoutPairs", "Trainer"):
        assert second["steps"][step]["cached"], step
    assert "Not blessed" in result.stdout


def test_tfx_run_create_by_path_registers_and_runs_from_any_directory(finished, directory, tmp_path):
    environment = {
        **os.environ,
        "LOCAL_HOME": str(tmp_path / "registered"),  # where TFX keeps what it knows of pipelines
        "SLLMR_CONFIG": str(directory / "small.yaml"),
        "SLLMR_OUTPUT": str(directory / OUTPUT),
        "HOME": str(directory),
    }
    command = [str(ROOT / "bin" / "tfx"), "run", "create", "--engine=local"]
    done = subprocess.run(
        [*command, f"--pipeline_path={os.path.relpath(ROOT / 'local_runner.py', tmp_path)}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'Pipeline "sllmr-small" registered.' in done.stdout
    assert json.loads((directory / OUTPUT / "summary.json").read_text())["blessed"]
    registered = json.loads((tmp_path / "registered" / "sllmr-small" / "pipeline_args.json").read_text())
    assert registered["pipeline_dsl_path"] == str(ROOT / "local_runner.py")

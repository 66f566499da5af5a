"""`sllmr ablate` on two small tables, with vectors from a file as the LLM scorer: the whole command."""

import csv
import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
import tensorflow as tf
import yaml
from optuna.trial import TrialState
from rich.console import Console
from tfx.components.trainer.fn_args_utils import FnArgs

from sllmr.components.trainer import executor, run_fn
from sllmr.components.trainer.config import TrainerConfig
from sllmr.models import features
from sllmr.models.training.report import TrainingReport
from sllmr.pipeline.ablation import matrix
from sllmr.pipeline.ablation.cells import CellScores, Scores, Trained
from sllmr.pipeline.ablation.config import load_ablation
from sllmr.pipeline.ablation.domain import Domain, prepare_domain
from sllmr.pipeline.ablation.further_metrics import FURTHER_METRICS
from sllmr.pipeline.ablation.results import read
from sllmr.pipeline.ablation.tuning import TRIALS_FILE
from sllmr.pipeline.cli import main
from sllmr.pipeline.config import ConfigError
from sllmr.pipeline.summary import read_steps
from tests.pipeline.ablation.test_cells import domain as made_domain

pytestmark = pytest.mark.slow

USERS, ITEMS, LENGTH = 60, 40, 8
ARMS = ("none", "global", "gated_supervised", "pointwise", "distill", "text_features", "late_fusion")


def write_market(directory: pathlib.Path) -> pathlib.Path:
    """Each user likes one of two groups of items; an item's vector tells its group."""
    source = random.Random(3)
    with open(directory / "interactions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            taken = source.sample(range(user % 2, ITEMS, 2), source.randint(5, LENGTH))
            writer.writerows((f"user-{user}", f"i{item}", 1_000_000_000 + 86400 * n) for n, item in enumerate(taken))
    with open(directory / "items.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "categories"])
        writer.writerows((f"i{n}", f"Film number {n}", "Film") for n in range(ITEMS))
    noise = np.random.default_rng(0).normal(size=(ITEMS, 4)) * 0.2
    vectors = np.eye(2, 4)[np.arange(ITEMS) % 2] + noise
    np.savez(directory / "v.npz", item_id=[f"i{n}" for n in range(ITEMS)], vector=vectors.astype(np.float32))
    matrix = {
        "domains": {
            "shop": {
                "data": {"interactions": "interactions.csv", "items": "items.csv"},
                "item_vectors": {"source": "file", "file": "v.npz"},
                "llm": {"budget": {"pairs": 10 * USERS}},
            }
        },
        "shared": {
            "cache_dir": "cache",
            "llm": {"strategy": "embedding", "candidates": {"popularity_pool": 20}},
            "model": {"embedding_dim": 4, "mlp": [8]},
            "train": {"epochs": 1, "batch_size": 64, "pairs_per_batch": 16},
        },
        "backbones": ["dcn"],
        "arms": [*ARMS, "global_half"],
        "own_arms": {"global_half": {"gate": {"mode": "frozen"}, "scored_fraction": 0.5}},
        "seeds": [1],
    }
    (directory / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    return directory / "matrix.yaml"


def ablate(file: pathlib.Path) -> list[str]:
    """The command's arguments."""
    return ["ablate", "--config", str(file), "--output", str(file.parent / "out")]


def lines(file: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def killed_and_finished(tmp_path_factory) -> tuple[pathlib.Path, list[bytes]]:
    """The matrix, killed once its first results stood in the file, then run to its end."""
    file = write_market(tmp_path_factory.mktemp("matrix"))
    results = file.parent / "out" / "results.jsonl"
    command = [sys.executable, "-m", "sllmr.pipeline.cli", *ablate(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = results.read_bytes().splitlines()
    with open(results, "ab") as torn:
        torn.write(b'{"domain": "sh')
    assert main(ablate(file)) == 0
    return file, before


@pytest.fixture(scope="module")
def prepared(killed_and_finished) -> Domain:
    """The matrix' domain, from the cached results of its steps."""
    file, _ = killed_and_finished
    ablation = load_ablation(file)
    return prepare_domain(
        "shop", ablation.domain("shop"), file.parent / "out" / "shop", Console(quiet=True), ablation.config.ranking
    )


def test_a_killed_matrix_goes_on_where_it_stopped(killed_and_finished):
    file, before = killed_and_finished
    found = (file.parent / "out" / "results.jsonl").read_bytes().splitlines()

    assert found[: len(before)] == before
    cells = [(line["backbone"], line["arm"], line["seed"]) for line in map(json.loads, found)]
    assert sorted(cells) == sorted(("dcn", arm, 1) for arm in (*ARMS, "global_half"))


def test_all_arms_are_judged_on_the_same_rows_with_their_counts(killed_and_finished):
    found = lines(killed_and_finished[0].parent / "out" / "results.jsonl")

    assert len({json.dumps(line["hashes"] | {"cell": ""}) for line in found}) == 1
    assert {json.dumps(line["definitions"]) for line in found} == {json.dumps(found[0]["definitions"])}
    for line in found:
        overall = line["metrics"]["overall"]
        assert (overall["examples"], overall["positives"]) == (2 * USERS, USERS)
        assert line["seconds"] > 0
        assert line["versions"]["tensorflow"]
        assert line["baselines"]["popularity"]["overall"] is not None


def test_the_llm_scorer_that_knows_the_groups_lifts_late_fusion_and_stands_beside_it(killed_and_finished):
    found = lines(killed_and_finished[0].parent / "out" / "results.jsonl")
    fused = [line for line in found if line["arm"] == "late_fusion"]

    for line in fused:
        # Half of the negatives are of the user's own group, which the LLM scorer cannot tell from the positives.
        assert line["baselines"]["llm_scorer"]["overall"] > 0.65
        assert line["versus"]["none"]["overall"]["difference"] > 0.1
        assert line["training"]["fusion"]["llm_scorer"] > 0


def test_each_arm_is_compared_with_all_before_it_by_the_difference_of_the_two_aucs(killed_and_finished):
    found = {line["arm"]: line for line in lines(killed_and_finished[0].parent / "out" / "results.jsonl")}

    before: list[str] = []
    for arm, line in found.items():
        assert list(line["versus"]) == before  # also of the arms that ran before the kill
        for other, differences in line["versus"].items():
            assert {name for name, difference in differences.items() if difference} >= {"overall"}
            for name, difference in differences.items():
                if difference:
                    expected = line["metrics"][name]["auc"] - found[other]["metrics"][name]["auc"]
                    assert difference["difference"] == pytest.approx(expected, abs=1e-6)
                    assert difference["standard_error"] >= 0
        before.append(arm)


def test_every_arm_ranks_the_same_candidates_and_none_of_them_is_the_users_own(killed_and_finished, prepared):
    file, _ = killed_and_finished
    found = lines(file.parent / "out" / "results.jsonl")
    ranking = prepared.rankings["sampled"]

    assert [line["rankings"] for line in found] == [{"sampled": ranking.info.model_dump()}] * len(found)
    own: dict[int, set[int]] = {}
    with open(file.parent / "interactions.csv") as table:
        for row in csv.DictReader(table):
            user = int(tf.strings.to_hash_bucket_fast(row["user_id"], features.USER_HASHES))
            own.setdefault(user, set()).add(row["item_id"])
    ids = [*prepared.item_ids, None]
    index = np.asarray(ranking.items[features.ITEM_INDEX])
    users = np.asarray(ranking.users[features.USER_HASH]).tolist()
    assert sorted(users) == sorted(own)
    for user, candidates in zip(users, ranking.candidates, strict=True):
        positive, *negatives = [ids[index[row] - 1] for row in candidates if row >= 0]
        assert positive in own[user]
        assert len(set(negatives)) == len(negatives) == ITEMS - len(own[user])  # fewer than 100: all of them
        assert not set(negatives) & own[user]


def test_the_positive_is_scored_among_the_candidates_as_it_is_among_the_test_rows(killed_and_finished, prepared):
    file, _ = killed_and_finished
    found = lines(file.parent / "out" / "results.jsonl")
    users = np.asarray(prepared.test[features.USER_HASH])
    labels = np.asarray(prepared.test[features.LABEL])
    rows = [np.flatnonzero((users == user) & (labels == 1)) for user in prepared.rankings["sampled"].users["user_hash"]]
    store = CellScores(file.parent / "out" / "shop" / "scores")
    for line in found:
        scores = store.load(line["arm"], line["hashes"]["cell"])
        ranked = scores.rankings["sampled"].logits[:, 0]
        np.testing.assert_allclose(ranked, scores.test[[row for (row,) in rows]], rtol=1e-4, atol=1e-5)


def test_each_cell_has_every_metric_with_its_differences_to_the_arms_before_it(killed_and_finished):
    found = {line["arm"]: line for line in lines(killed_and_finished[0].parent / "out" / "results.jsonl")}

    before: list[str] = []
    for arm, line in found.items():
        measures = {metric: slices["overall"] for metric, slices in line["further_metrics"].items()}
        assert set(measures) == {metric for metric in FURTHER_METRICS if not metric.startswith("all_items")}
        for metric, measure in measures.items():
            assert list(measure["versus"]) == before
            for other, compared in measure["versus"].items():
                expected = measure["value"] - found[other]["further_metrics"][metric]["overall"]["value"]
                assert compared["difference"] == pytest.approx(expected, abs=1e-6)
        before.append(arm)
    fused = found["late_fusion"]["further_metrics"]
    assert fused["sampled_ndcg_at_10"]["overall"]["versus"]["none"]["difference"] > 0.1
    assert fused["log_loss"]["overall"]["versus"]["none"]["difference"] < -0.1


def test_arms_differ_by_their_configuration_alone(killed_and_finished):
    found = {line["arm"]: line for line in lines(killed_and_finished[0].parent / "out" / "results.jsonl")}

    def without(line: dict, *sections: str) -> dict:
        return {name: values for name, values in line["hyperparameters"].items() if name not in sections}

    for arm in ARMS:
        assert without(found[arm], "gate", "loss", "model") == without(found["none"], "gate", "loss", "model")
    assert found["gated_supervised"]["hyperparameters"]["gate"]["mode"] == "supervised"
    assert found["gated_supervised"]["training"]["gate_weights"]
    assert found["text_features"]["hyperparameters"]["model"]["item_vectors_file"] == "v.npz"
    assert found["global_half"]["fraction_of_users_scored"] == 0.5
    assert found["none"]["fraction_of_users_scored"] is None


def test_the_report_is_made_of_the_results_alone(killed_and_finished, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_bytes((killed_and_finished[0].parent / "out" / "results.jsonl").read_bytes())
    assert main(["ablate", "--report", "--results", str(results)]) == 0

    written = {file.suffix for file in tmp_path.iterdir()}
    assert {".md", ".html"} <= written


@pytest.mark.parametrize("arm", ["none", "gated_supervised"])
def test_the_products_trainer_comes_to_the_model_of_the_matrixs_cell(killed_and_finished, tmp_path, arm):
    file, _ = killed_and_finished
    (cell,) = (line for line in lines(file.parent / "out" / "results.jsonl") if line["arm"] == arm)
    config = load_ablation(file).cell("shop", "dcn", arm, 1)
    steps = {name: step.outputs for name, step in read_steps(file.parent / "out" / "shop").items()}
    examples = pathlib.Path(steps["Transform"]["transformed_examples"])
    trainer = TrainerConfig(
        sizes=config.data.feature_sizes, model=config.model, gate=config.gate, loss=config.loss, train=config.train
    )
    run_fn.run_fn(
        FnArgs(
            train_files=[str(examples / "Split-train" / "*")],
            eval_files=[str(examples / "Split-valid" / "*")],
            transform_output=steps["Transform"]["transform_graph"],
            serving_model_dir=str(tmp_path / "model"),
            model_run_dir=str(tmp_path),
            custom_config={
                executor.CONFIG: trainer.model_dump_json(),
                executor.CATALOG_DIRECTORY: steps["InteractionsExampleGen"]["catalog"],
                executor.PAIRS_PATTERNS: [str(pathlib.Path(steps["PairBuilder"]["pairs"]) / "Split-train" / "*")],
            },
        )
    )

    report = TrainingReport.model_validate_json((tmp_path / run_fn.REPORT_FILE).read_text())
    assert report.best_valid_auc == pytest.approx(cell["valid_auc"], abs=1e-6)
    by_epoch = [epoch.valid_auc for epoch in report.epochs]
    assert by_epoch == pytest.approx(cell["training"]["valid_auc_by_epoch"], abs=1e-5)  # rounded there
    assert report.gate_weights == pytest.approx(cell["training"]["gate_weights"], abs=1e-4)
    assert bool(report.gate_weights) == (arm != "none")


def test_tuning_gives_backbone_and_arm_their_trials_and_the_matrix_reads_what_it_wrote(killed_and_finished):
    file, _ = killed_and_finished
    matrix = yaml.safe_load(file.read_text()) | {
        "arms": ["none", "text_features", "global"],
        "tuning": {"trials": 2, "backbone": "dcn"},
    }
    tuned_file = file.parent / "tuned.yaml"
    small = file.parent / "small.yaml"
    small.write_text(yaml.safe_dump(matrix))
    assert main([*ablate(small), "--tune", str(tuned_file)]) == 0
    small.write_text(yaml.safe_dump(matrix | {"tuned": "tuned.yaml"}))

    tuned = yaml.safe_load(tuned_file.read_text())
    storage = f"sqlite:///{file.parent / 'out' / 'shop' / 'tuning' / TRIALS_FILE}"
    searches = {name.rsplit(" ", 1)[0]: name for name in optuna.get_all_study_names(storage)}
    studies = {what: optuna.load_study(study_name=name, storage=storage) for what, name in searches.items()}
    cell = load_ablation(small).cell("shop", "dcn", "global", 1)
    finished = {what: study.get_trials(states=[TrialState.COMPLETE]) for what, study in studies.items()}
    assert {what: len(trials) for what, trials in finished.items()} == {
        "dcn global": 2,
        "dcn none": 2,
        "dcn text_features": 2,
    }
    assert 0 < tuned["valid_auc"]["dcn"] <= 1
    assert cell.model.dropout == tuned["backbones"]["dcn"]["model"]["dropout"]
    assert cell.loss.llm_weight == tuned["arms"]["global"]["loss"]["llm_weight"]
    assert tuned["text_backbones"]["dcn"].keys() == tuned["backbones"]["dcn"].keys()
    assert tuned["arms"].keys() == {"global"}
    starts = {what: study.trials[0].params for what, study in studies.items()}
    assert starts["dcn none"] == {"model.embedding_l2": 0.05, "model.dropout": 0.2, "train.learning_rate": 0.001}
    assert _flat(tuned["backbones"]["dcn"]) == starts["dcn text_features"]


def _flat(sections: dict[str, dict]) -> dict:
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def test_a_domain_that_the_matrix_does_not_hold_is_refused(killed_and_finished, capsys):
    file, _ = killed_and_finished

    assert main([*ablate(file), "--domains", "shp"]) == 1
    assert "--domains must be among shop, got shp" in capsys.readouterr().err


GATE = {"mode": "stacked", "signals": ["short_history"]}
TAKING = {"gate": GATE, "loss": {"form": "distillation"}, "gate_from": "stall/stacked"}


def write_two_domains(directory: pathlib.Path) -> pathlib.Path:
    domain = {"data": {"interactions": "i.csv", "items": "t.csv"}}
    matrix = {
        "domains": {"shop": domain, "stall": domain},
        "backbones": ["dcn"],
        "arms": ["none", "stacked", "taking"],
        "own_arms": {"taking": TAKING},
        "seeds": [1],
    }
    (directory / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    return directory / "matrix.yaml"


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, str, dict | None]]:
    """Domain, gate mode and taken gate of each training, which no model is trained in."""
    seen = []

    def prepare(name, config, output, console, ranking):
        popularity = {"overall": 0.5, "cold": 0.5, "tail": 0.5}
        return dataclasses.replace(
            made_domain(),
            name=name,
            baselines={"popularity": popularity, "llm_scorer": None},
            hashes={"test_rows": "0" * 64},
        )

    def train(domain, config, arm, gate_weights):
        seen.append((domain.name, config.gate.mode, gate_weights))
        scores = np.arange(len(domain.test[features.LABEL]))
        training = {"gate_weights": {"llm:bias": float(len(seen))}}
        return Trained(scores=Scores(valid=scores, test=scores), valid_auc=0.5, training=training)

    monkeypatch.setattr(matrix, "prepare_domain", prepare)
    monkeypatch.setattr(matrix, "train_arm", train)
    return seen


def test_an_arm_waits_for_the_gate_of_a_later_domain(tmp_path, trained):
    file = write_two_domains(tmp_path)
    matrix.run_matrix(file, tmp_path / "out", tmp_path / "results.jsonl")

    assert [(domain, gate) for domain, _, gate in trained] == [
        ("shop", None),
        ("shop", None),
        ("stall", None),
        ("stall", None),
        ("stall", {"llm:bias": 4.0}),
        ("shop", {"llm:bias": 4.0}),
    ]
    matrix.run_matrix(file, tmp_path / "out", tmp_path / "results.jsonl")
    assert len(trained) == 6


def test_an_arm_whose_gate_no_domain_of_the_run_brings_says_so_after_all_others(tmp_path, trained):
    with pytest.raises(ConfigError, match=r"gate_from stall/stacked needs a run of that arm with dcn and seed 1"):
        matrix.run_matrix(
            write_two_domains(tmp_path), tmp_path / "out", tmp_path / "results.jsonl", matrix.Part(domains=["shop"])
        )
    assert len(trained) == 2


def test_cells_from_before_the_further_metrics_stay_done_and_are_compared_by_what_they_have(tmp_path, trained):
    file = write_two_domains(tmp_path)
    results = tmp_path / "results.jsonl"
    matrix.run_matrix(file, tmp_path / "out", results, matrix.Part(domains=["stall"], arms=["none"]))
    (old,) = lines(results)
    for key in ("further_metrics", "rankings"):
        del old[key]
    results.write_text(json.dumps(old) + "\n")
    for scores in (tmp_path / "out" / "stall" / "scores").iterdir():
        with np.load(scores) as archive:
            rows = {"valid": archive["valid"], "test": archive["test"]}
        np.savez(scores, **rows)
    matrix.run_matrix(file, tmp_path / "out", results, matrix.Part(domains=["stall"], arms=["stacked"]))

    assert [line["arm"] for line in lines(results)] == ["none", "stacked"]
    assert len(trained) == 2
    measured = lines(results)[1]["further_metrics"]["log_loss"]["overall"]
    assert measured["versus"] == {"none": {"difference": 0.0, "standard_error": 0.0}}
    assert [bool(run.further_metrics) for run in read(results)] == [False, True]


def test_late_fusion_is_made_anew_when_none_comes_out_otherwise(tmp_path, trained, monkeypatch):
    file = write_two_domains(tmp_path)
    changes = {"arms": ["none", "global", "late_fusion"], "own_arms": {}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    fused = []

    def fuse(domain, none):
        fused.append(none.test)
        return Trained(scores=none, valid_auc=0.5, training={})

    def run() -> None:
        matrix.run_matrix(file, tmp_path / "out", tmp_path / "results.jsonl", matrix.Part(domains=["shop"]))

    monkeypatch.setattr(matrix, "fuse", fuse)
    run()
    run()
    assert len(fused) == 1
    (scores,) = (tmp_path / "out" / "shop" / "scores").glob("none-*.npz")
    np.savez(scores, valid=fused[0] + 1, test=fused[0] + 1)
    run()
    assert len(fused) == 2
    np.testing.assert_array_equal(fused[1], fused[0] + 1)
    arms = [line["arm"] for line in lines(tmp_path / "results.jsonl")]
    assert arms == ["none", "global", "late_fusion", "late_fusion"]

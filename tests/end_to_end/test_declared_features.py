"""Features of every kind by configuration alone, from three tables to the served model's signatures."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import yaml

from sllmr.pipeline.cli import main
from tests.components.interactions_example_gen.test_features import shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """The folder of a run without an LLM on the test's shop."""
    directory = tmp_path_factory.mktemp("shop")
    data = shop(directory)
    config = {
        "name": "shop",
        "cache_dir": str(directory / "cache"),
        "data": {key: getattr(data, key) for key in ("interactions", "items", "users")}
        | {"features": data.features.model_dump(exclude_defaults=True)},
        "item_vectors": {"source": "none"},
        "model": {"embedding_dim": 4, "mlp": [8], "item_vectors": False, "text_match": False},
        "gate": {"mode": "supervised"},
        "loss": {"llm_weight": 0},
        "train": {"epochs": 2, "batch_size": 64},
        "evaluation": {"min_auc": {"overall": 0.0}, "beat_popularity": []},
    }
    (directory / "shop.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "--config", str(directory / "shop.yaml"), "--output", str(directory / "run")]) == 0
    return directory


def model_of(directory: pathlib.Path) -> str:
    (version,) = (path for path in (directory / "run" / "serving" / "shop").iterdir() if path.is_dir())
    return str(version)


def test_every_feature_is_in_the_signatures_of_the_pushed_model(finished):
    loaded = tf.saved_model.load(model_of(finished))
    inputs = {name: set(s.structured_input_signature[1]) for name, s in loaded.signatures.items()}
    own = {"age_band", "price", "history_price", "tags", "device", "hour"}
    assert own <= inputs["raw"]
    assert inputs["rank"] == {"history_item_ids", "candidate_item_ids", "age_band", "device", "hour"}
    assert inputs["serving_default"] == {"examples"}


def test_the_request_s_features_change_the_scores_of_rank(finished):
    rank = tf.saved_model.load(model_of(finished)).signatures["rank"]

    def scores(age_band: str) -> np.ndarray:
        return rank(
            history_item_ids=tf.constant([["i01", "i02"]]),
            candidate_item_ids=tf.constant([["i03", "i04", "i05"]]),
            age_band=tf.constant([age_band]),
            device=tf.constant(["u03-1"]),
            hour=tf.constant([2.0]),
        )["scores"].numpy()

    assert np.abs(scores("early") - scores("late")).max() > 0


def test_the_summary_tells_how_often_each_feature_is_missing(finished):
    features = json.loads((finished / "run" / "summary.json").read_text())["data"]["features"]
    assert {name: f["kind"] for name, f in features.items()} == {
        "age_band": "categorical",
        "price": "numeric",
        "tags": "list",
        "device": "categorical",
        "hour": "numeric",
    }
    page = (finished / "run" / "report.html").read_text()
    assert "age_band" in page


def test_predict_looks_up_the_features_of_users_and_takes_those_of_the_request(finished):
    def predicted(*request: str) -> list[str]:
        output = finished / "best.csv"
        command = ["predict", "--config", str(finished / "shop.yaml"), "--model", model_of(finished)]
        assert main([*command, "--output", str(output), "-n", "2", *request]) == 0
        return output.read_text().splitlines()

    missing = predicted()
    assert len(missing) == 1 + 2 * 30
    given = predicted("--request", "device=u03-1", "--request", "hour=2")
    assert len(given) == len(missing)
    assert given != missing


@pytest.mark.parametrize(
    ("request_option", "message"),
    [
        (
            "devise=phone",
            "--request must name a feature of interactions that the model reads (device, hour), got devise",
        ),
        ("hour=late", "--request hour: hour must be a finite number, got 'late'"),
        ("hour", "must be NAME=VALUE, got 'hour'"),
    ],
)
def test_a_wrong_request_is_named(finished, capsys, request_option, message):
    command = ["top", "--config", str(finished / "shop.yaml"), "--model", model_of(finished), "--user", "u03"]
    try:
        returned = main([*command, "--request", request_option])
    except SystemExit as stop:  # of a value that cannot be parsed
        returned = stop.code
    assert returned != 0
    assert message in " ".join(capsys.readouterr().err.split())

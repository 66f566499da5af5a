"""The specification for Kubeflow Pipelines v2 and Vertex AI, compiled by TFX's runner and read; no cluster."""

import json
import pathlib
import re
import runpy
import subprocess

import pytest
import yaml

from sllmr.pipeline.config import load_config
from sllmr.pipeline.kubeflow import KubeflowError, compile_pipeline, from_environment, remote_paths

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE, REMOTE, PIPELINE_ROOT = "registry.example/sllmr:1", "/gcs/bucket/shop", "gs://bucket/artifacts"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "tables").mkdir()
    (folder / "tables" / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1000000000\n")
    (folder / "tables" / "items.csv").write_text("item_id,title\ni,T\n")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "weights.json").write_text("{}")
    config = folder / "config" / "My_Shop.yaml"
    config.parent.mkdir()
    values = {
        "data": {
            "interactions": "../tables/interactions.csv",
            "items": "../tables/items.csv",
            "sizes": {"history": 5},
        },
        "gate": {"mode": "stacked", "weights_from": "../elsewhere/weights.json"},
        "cache_dir": "cache",
    }
    config.write_text(yaml.safe_dump(values))
    return config


@pytest.fixture(scope="module")
def text(configuration, tmp_path_factory):
    output = tmp_path_factory.mktemp("spec")
    compile_pipeline(configuration, image=IMAGE, root=REMOTE, pipeline_root=PIPELINE_ROOT, output=output)
    return (output / "pipeline.json").read_text()


@pytest.fixture(scope="module")
def spec(text):
    return json.loads(text)["pipelineSpec"]


def test_no_path_of_this_machine_is_in_the_specification(text, configuration):
    shop = str(configuration.parents[1])
    assert shop not in text
    for path in (ROOT, pathlib.Path.home(), pathlib.Path.cwd()):
        assert not re.search(rf"{re.escape(str(path))}(?![\w-])", text), path
    places = re.findall(r"(?<![\w:/.<])/(?!gcs/bucket/shop)[A-Za-z][\w.-]*/[\w./-]+", text)
    assert not places


def test_tables_cache_and_pushed_models_lie_under_the_root(text):
    for name in ("interactions.csv", "items.csv", "weights.json", "cache", "serving/My_Shop"):
        assert f"{REMOTE}/{name}" in text, name


def test_every_step_is_a_task_that_waits_for_its_inputs(spec):
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks.keys() == {
        *(
            "InteractionsExampleGen",
            "StatisticsGen",
            "CuratedSchema",
            "StrictExampleValidator",
            "Transform",
            "LeakageGuard",
            "LeakageGuardOfPairs",
        ),
        *("ItemEmbedder", "LlmScorer", "PairBuilder", "Trainer", "TrainerWithoutPairs", "LlmComparison", "Evaluator"),
        *("Resolver-model-resolver", "Resolver-model-blessing-resolver", "Pusher"),
    }
    assert "PairBuilder" in tasks["Trainer"]["dependentTasks"]
    assert not {"LlmScorer", "PairBuilder"} & set(tasks["Evaluator"]["dependentTasks"])
    producers = {a["taskOutputArtifact"]["producerTask"] for a in tasks["Evaluator"]["inputs"]["artifacts"].values()}
    assert {"InteractionsExampleGen", "CuratedSchema", "LlmComparison"} <= producers
    assert not producers & {"LlmScorer", "PairBuilder"}


def test_every_container_is_the_image_and_runs_an_executor_of_this_project_or_of_tfx(spec):
    containers = [e["container"] for e in spec["deploymentSpec"]["executors"].values() if "container" in e]
    assert len(containers) == 15
    assert {container["image"] for container in containers} == {IMAGE}
    classes = [c["args"][c["args"].index("--executor_class_path") + 1] for c in containers]
    assert {name.partition(".")[0] for name in classes} == {"sllmr", "tfx"}


def test_names_are_what_kubeflow_takes(spec, text):
    assert spec["pipelineInfo"]["name"] == "sllmr-my-shop-h5-c4"
    titles = {
        yaml.safe_load(artifact["artifactType"]["instanceSchema"])["title"]
        for component in spec["components"].values()
        for side in ("inputDefinitions", "outputDefinitions")
        for artifact in component.get(side, {}).get("artifacts", {}).values()
    }
    own = {"ItemCatalog", "DataReport", "LlmScores", "ItemVectors", "ModelComparison", "LeakageReport"}
    assert {title for title in titles if title.startswith("sllmr.")} == {f"sllmr.{name}" for name in own}
    assert all(re.fullmatch(r"[a-zA-Z]\w*\.\w+", title) for title in titles)
    assert json.loads(text)["runtimeConfig"]["gcsOutputDirectory"] == PIPELINE_ROOT


def test_the_schema_travels_in_the_specification(spec):
    schema = spec["root"]["dag"]["tasks"]["CuratedSchema"]["inputs"]["parameters"]["text"]
    assert 'name: "history_item_ids"' in schema["runtimeValue"]["constant"]


def test_two_files_of_one_place_are_refused(configuration, tmp_path):
    values = yaml.safe_load(configuration.read_text())
    (tmp_path / "a").mkdir()
    for name in ("a/table.csv", "table.csv"):
        (tmp_path / name).write_text("")
    values["data"] |= {"interactions": str(tmp_path / "a" / "table.csv"), "items": str(tmp_path / "table.csv")}
    (configuration.parent / "same.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(KubeflowError, match=r"one place, got /gcs/bucket/shop/table\.csv for .*; rename one of them"):
        remote_paths(load_config(configuration.parent / "same.yaml"), configuration.parent, REMOTE)


def test_what_is_missing_in_the_environment_is_named(configuration, tmp_path):
    with pytest.raises(KubeflowError, match="needs SLLMR_IMAGE, SLLMR_PIPELINE_ROOT in the environment"):
        from_environment({"SLLMR_ROOT": REMOTE}, configuration)
    with pytest.raises(
        KubeflowError, match=r"SLLMR_ROOT must be an absolute path in the containers, got 'gs://bucket'"
    ):
        compile_pipeline(configuration, image=IMAGE, root="gs://bucket", pipeline_root=PIPELINE_ROOT, output=tmp_path)


def environment_of(configuration, folder):
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "SLLMR_CONFIG": str(configuration),
        "SLLMR_OUTPUT": str(folder),
        "SLLMR_IMAGE": IMAGE,
        "SLLMR_ROOT": REMOTE,
        "SLLMR_PIPELINE_ROOT": PIPELINE_ROOT,
    }


def test_the_runner_writes_the_same_specification_as_a_program(configuration, text, tmp_path, monkeypatch, capsys):
    for name, value in environment_of(configuration, tmp_path).items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(ROOT / "kubeflow_runner.py"), run_name="__main__")
    assert f"interactions.csv -> {REMOTE}/interactions.csv" in capsys.readouterr().out
    assert json.loads((tmp_path / "pipeline.json").read_text())["pipelineSpec"] == json.loads(text)["pipelineSpec"]


@pytest.mark.parametrize("engine", ["vertex", "kubeflow"])
def test_tfx_pipeline_create_compiles_into_its_own_folder(configuration, text, tmp_path, engine):
    made = subprocess.run(
        [str(ROOT / "bin" / "tfx"), "pipeline", "create", f"--engine={engine}", "--pipeline_path=kubeflow_runner.py"],
        env=environment_of(configuration, tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    (file,) = (tmp_path / "tfx" / engine).glob("*/pipeline.json")
    assert file.parent.name == "sllmr-my-shop-h5-c4"
    assert json.loads(file.read_text())["pipelineSpec"] == json.loads(text)["pipelineSpec"]

"""The graph itself: order, what changes a step's inputs, and that nothing of the LLM reaches evaluation or serving."""

import functools
import itertools
import json
import shutil

import pytest
from google.protobuf import text_format
from ml_metadata.proto import metadata_store_pb2 as proto
from tfx.dsl.compiler.compiler import Compiler
from tfx.orchestration import metadata
from tfx.orchestration.portable.input_resolution.channel_resolver import resolve_single_channel
from tfx.proto.orchestration.pipeline_pb2 import InputSpec

from sllmr.components.interactions_example_gen.tables import DataError
from sllmr.pipeline import graph as graph_module
from sllmr.pipeline.code_version import PACKAGES, code_version
from sllmr.pipeline.config import Config
from sllmr.pipeline.graph import build_pipeline, pipeline_name
from sllmr.pipeline.warm_start import BASE_MODEL, BASE_MODEL_WITH_VECTOR_PAIRS, BASE_MODEL_WITHOUT_PAIRS


@pytest.fixture
def tables(tmp_path) -> dict[str, str]:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "items.csv").write_text("item_id,title\ni,T\n")
    return {"interactions": str(tmp_path / "interactions.csv"), "items": str(tmp_path / "items.csv")}


def graph(tables, tmp_path, **sections):
    config = Config.model_validate({"name": "t", "data": tables, "cache_dir": str(tmp_path / "cache"), **sections})
    return {component.id: component for component in build_pipeline(config, tmp_path / "out").components}


def producers(component) -> set[str]:
    return {channel.producer_component_id for channel in component.inputs.values()}


def test_evaluation_and_serving_never_read_the_scorers_output(tables, tmp_path):
    steps = graph(tables, tmp_path)
    for name in ("Evaluator", "Pusher", "Transform", "StatisticsGen"):
        assert not producers(steps[name]) & {"LlmScorer", "PairBuilder"}, name
    assert "PairBuilder" in producers(steps["Trainer"])


def test_leakage_is_looked_for_before_the_first_query_and_before_training(tables, tmp_path):
    steps = graph(tables, tmp_path)
    order = list(steps)
    assert order.index("LeakageGuard") < order.index("LlmScorer")
    assert order.index("PairBuilder") < order.index("LeakageGuardOfPairs") < order.index("TrainerWithoutPairs")
    assert producers(steps["LeakageGuard"]) == {"InteractionsExampleGen", "Transform"}
    assert producers(steps["LeakageGuardOfPairs"]) == {
        "InteractionsExampleGen",
        "Transform",
        "LlmScorer",
        "PairBuilder",
    }


def test_each_step_waits_for_the_one_before(tables, tmp_path):
    steps = list(graph(tables, tmp_path).values())
    for earlier, later in itertools.pairwise(steps):
        assert earlier in later.upstream_nodes


def test_without_a_weight_for_the_llm_nothing_is_asked(tables, tmp_path):
    assert not {"LlmScorer", "PairBuilder"} & set(graph(tables, tmp_path, loss={"llm_weight": 0}))


def test_the_model_without_pairs_depends_on_nothing_of_the_llm(tables, tmp_path):
    plain = graph(tables, tmp_path)["TrainerWithoutPairs"]
    other = graph(tables, tmp_path, gate={"mode": "frozen"}, loss={"llm_weight": 0.7}, llm={"seed": 3})
    assert producers(plain) == {"Transform", "InteractionsExampleGen", "ItemEmbedder"}
    assert plain.exec_properties == other["TrainerWithoutPairs"].exec_properties
    assert plain.exec_properties != other["Trainer"].exec_properties


def test_the_evaluator_and_the_pusher_take_the_model_that_the_comparison_chose(tables, tmp_path):
    steps = graph(tables, tmp_path)
    assert producers(steps["LlmComparison"]) == {"Trainer", "TrainerWithoutPairs", "InteractionsExampleGen"}
    for name in ("Evaluator", "Pusher"):
        assert "LlmComparison" in producers(steps[name])
        assert "Trainer" not in producers(steps[name])


def test_a_model_is_loaded_into_the_servers_image_before_it_is_pushed_if_a_tag_names_one(tables, tmp_path):
    assert "InfraValidator" not in graph(tables, tmp_path)
    steps = graph(tables, tmp_path, serving={"infra_validation_tag": "2.19.1"})
    assert list(steps)[-2:] == ["InfraValidator", "Pusher"]
    assert steps["Pusher"].inputs["infra_blessing"] is steps["InfraValidator"].outputs["blessing"]
    assert json.loads(steps["InfraValidator"].exec_properties["serving_spec"]) == {
        "tensorflow_serving": {"tags": ["2.19.1"]},
        "local_docker": {},
    }


def test_item_vectors_are_made_where_the_model_reads_them_and_both_trainers_get_them(tables, tmp_path):
    assert "ItemEmbedder" not in graph(tables, tmp_path, item_vectors={"source": "none"})
    steps = graph(tables, tmp_path)
    for name in ("Trainer", "TrainerWithoutPairs"):
        assert steps[name].inputs["item_vectors"] is steps["ItemEmbedder"].outputs["item_vectors"]
    assert producers(steps["ItemEmbedder"]) == {"InteractionsExampleGen"}


def test_the_scorer_and_the_embedder_get_the_shared_store(tables, tmp_path):
    url = "postgresql://scorer@db/shop"
    for steps, expected in ((graph(tables, tmp_path, store=url), url), (graph(tables, tmp_path), "")):
        for name in ("LlmScorer", "ItemEmbedder"):
            assert steps[name].exec_properties["store_url"] == expected
            assert steps[name].exec_properties["cache_directory"] == str(tmp_path / "cache")


def test_a_file_of_vectors_that_is_written_anew_changes_the_cache_key(tables, tmp_path):
    file = tmp_path / "v.npz"

    def properties() -> dict:
        source = {"source": "file", "file": str(file)}
        steps = graph(tables, tmp_path, model={"item_vectors": True}, item_vectors=source)
        return steps["ItemEmbedder"].exec_properties

    file.write_bytes(b"one")
    before, again = properties(), properties()
    file.write_bytes(b"another")
    assert before == again != properties()


def test_without_a_comparison_the_model_with_pairs_goes_on(tables, tmp_path):
    steps = graph(tables, tmp_path, train={"compare": False})
    assert not {"TrainerWithoutPairs", "LlmComparison"} & set(steps)
    assert "Trainer" in producers(steps["Evaluator"])
    assert steps["Trainer"].exec_properties == graph(tables, tmp_path)["Trainer"].exec_properties


def test_another_shape_of_the_rows_is_another_schema(tables, tmp_path):
    texts = [
        graph(tables | {"sizes": {"history": length}}, tmp_path, loss={"llm_weight": 0})[
            "CuratedSchema"
        ].exec_properties["text"]
        for length in (5, 6, 5)
    ]
    assert texts[0] == texts[2] != texts[1]


def test_a_missing_table_is_named_before_anything_runs(tables, tmp_path):
    with pytest.raises(DataError, match=r"none\.csv"):
        graph(tables | {"items": str(tmp_path / "none.csv")}, tmp_path)


def test_rows_of_another_shape_are_another_pipeline(tables, tmp_path):
    def name(**sizes):
        return pipeline_name(Config.model_validate({"name": "t", "data": tables | {"sizes": sizes}}))

    assert name() == name(history=20, categories=4) == "sllmr-t"
    assert len({name(), name(history=5), name(categories=5), name(history=5, categories=5)}) == 4


@pytest.mark.slow
def test_a_comment_changes_no_step_and_changed_code_only_the_steps_that_run_it(tables, tmp_path, monkeypatch):
    copies = {name: tmp_path / name for name in PACKAGES}
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, copies[name], ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(graph_module, "code_version", functools.partial(code_version, packages=copies))

    def changed(package: str, file: str, text: str) -> set[str]:
        before = graph(tables, tmp_path)
        with open(copies[f"sllmr.{package}"] / file, "a") as source:
            source.write(text)
        after = graph(tables, tmp_path)
        return {name for name in before if before[name].exec_properties != after[name].exec_properties}

    assert changed("models", "losses.py", "\n# a comment\n") == set()
    # ItemEmbedder sends with the scorer's client.
    assert changed("components", "llm_scorer/requests/handler.py", "\nFACTOR = 2\n") == {"LlmScorer", "ItemEmbedder"}
    assert {"Trainer", "TrainerWithoutPairs"} <= changed("models", "losses.py", "\nFACTOR = 2\n")
    assert changed("models", "metrics.py", "\nFACTOR = 2\n") == {"Evaluator"}


@pytest.mark.slow
def test_pairs_of_item_vectors_are_compared_beside_the_llms_and_reach_no_pushed_model(tables, tmp_path):
    plain = graph(tables, tmp_path)
    steps = graph(tables, tmp_path, train={"compare_vectors": True})
    added = {"VectorScorer", "VectorPairBuilder", "LeakageGuardOfVectorPairs", "TrainerWithVectorPairs"}
    assert set(steps) - set(plain) == {*added, "VectorComparison"}
    assert producers(steps["VectorComparison"]) == {
        "TrainerWithVectorPairs",
        "TrainerWithoutPairs",
        "InteractionsExampleGen",
    }
    assert "VectorPairBuilder" in producers(steps["TrainerWithVectorPairs"])
    assert not {"LlmScorer", "PairBuilder"} & producers(steps["TrainerWithVectorPairs"])
    for name in ("Evaluator", "Pusher", "LlmComparison", "Trainer"):
        assert producers(steps[name]) == producers(plain[name])
        # So that switching it on trains nothing again.
        assert steps[name].exec_properties == plain[name].exec_properties
    scorer = json.loads(steps["VectorScorer"].exec_properties["config"])
    assert scorer["strategy"] == "embedding"
    assert scorer["candidates"] == json.loads(plain["LlmScorer"].exec_properties["config"])["candidates"]
    assert scorer["budget"]["pairs"] is None
    assert steps["VectorScorer"].inputs["item_vectors"] is steps["ItemEmbedder"].outputs["item_vectors"]


@pytest.mark.slow
def test_a_schedules_model_to_start_from_and_scores_to_bring_up_to_date_are_inputs_of_their_steps(tables, tmp_path):
    data = {**tables, "split": {"strategy": "global_date"}}
    steps = graph({**data}, tmp_path, train={"warm_start": True}, llm={"rescore": True})

    assert steps["Trainer"].inputs["base_model"] is steps["WarmStart"].outputs[BASE_MODEL]
    assert "LastScores" in producers(steps["LlmScorer"])
    order = list(steps)
    assert order.index("LastScores") < order.index("LlmScorer")
    assert order.index("WarmStart") < order.index("TrainerWithoutPairs")
    assert not {"WarmStart", "LastScores"} & set(graph(data, tmp_path))


@pytest.mark.slow
def test_each_arm_of_a_schedule_starts_from_a_model_of_its_own(tables, tmp_path):
    data = {**tables, "split": {"strategy": "global_date"}}
    arms = {
        "Trainer": BASE_MODEL,
        "TrainerWithoutPairs": BASE_MODEL_WITHOUT_PAIRS,
        "TrainerWithVectorPairs": BASE_MODEL_WITH_VECTOR_PAIRS,
    }
    steps = graph({**data}, tmp_path, train={"warm_start": True, "compare_vectors": True})
    for name, arm in arms.items():
        assert steps[name].inputs["base_model"] is steps["WarmStart"].outputs[arm]
    alone = graph({**data}, tmp_path, train={"warm_start": True, "compare": False})
    assert alone["Trainer"].inputs["base_model"] is alone["WarmStart"].outputs[BASE_MODEL]


@pytest.mark.slow
def test_of_the_comparisons_of_earlier_runs_a_warm_start_tells_that_of_vectors_from_that_of_the_llm(tables, tmp_path):
    """By what TFX makes of the graph, in a record of one run in which each comparison chose a model."""
    data = {**tables, "split": {"strategy": "global_date"}}
    config = Config.model_validate({"name": "t", "data": data, "train": {"warm_start": True}})
    nodes = [node.pipeline_node for node in Compiler().compile(build_pipeline(config, tmp_path / "out")).nodes]
    (warm_start,) = [node for node in nodes if node.node_info.id == "WarmStart"]
    channels = {c for of in warm_start.inputs.inputs.values() for c in map(as_text, of.channels)}
    with metadata.Metadata(metadata.sqlite_metadata_connection_config(str(tmp_path / "metadata.sqlite"))) as handle:
        chosen = {name: chosen_model(handle.store, name) for name in ("LlmComparison", "VectorComparison")}
        found = [
            sorted(model.id for model in resolve_single_channel(handle, text_format.Parse(c, InputSpec.Channel())))
            for c in channels
            if 'name: "Model"' in c
        ]
    assert sorted(found) == sorted([sorted(chosen.values()), [chosen["VectorComparison"]]])


def as_text(channel) -> str:
    return text_format.MessageToString(channel)


def chosen_model(store, component: str) -> int:
    """Records a run of a component with the output `model`; returns the id of the model."""
    artifact_type = store.put_artifact_type(proto.ArtifactType(name="Model"))
    execution_type = store.put_execution_type(proto.ExecutionType(name=component))
    event = proto.Event(type=proto.Event.OUTPUT)
    event.path.steps.add(key="model")
    event.path.steps.add(index=0)
    contexts = [
        proto.Context(type_id=store.put_context_type(proto.ContextType(name=kind)), name=name)
        for kind, name in (("pipeline", "sllmr-t"), ("node", f"sllmr-t.{component}"))
    ]
    model = proto.Artifact(type_id=artifact_type, uri=component, state=proto.Artifact.LIVE)
    execution = proto.Execution(type_id=execution_type, last_known_state=proto.Execution.COMPLETE)
    _, (model_id,), _ = store.put_execution(execution, [(model, event)], contexts, reuse_context_if_already_exist=True)
    return model_id


def test_a_warm_start_needs_a_split_by_date(tables):
    with pytest.raises(ValueError, match=r"train.warm_start needs a split by date, .* got .* leave_last_two; set data"):
        Config.model_validate({"data": tables, "train": {"warm_start": True}})

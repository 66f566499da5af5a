"""The graph itself: order, and that nothing of the LLM reaches evaluation or serving."""

import itertools

import pytest

from pipeline.config import Config
from pipeline.graph import build_pipeline


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


def test_each_step_waits_for_the_one_before(tables, tmp_path):
    steps = list(graph(tables, tmp_path).values())
    for earlier, later in itertools.pairwise(steps):
        assert earlier in later.upstream_nodes


def test_without_a_weight_for_the_llm_nothing_is_asked(tables, tmp_path):
    assert not {"LlmScorer", "PairBuilder"} & set(graph(tables, tmp_path, loss={"llm_weight": 0}))


def test_another_shape_of_the_rows_is_another_schema_file(tables, tmp_path):
    graph(tables, tmp_path)
    graph(tables | {"sizes": {"history": 5}}, tmp_path)
    assert len(list((tmp_path / "out" / "schema").iterdir())) == 2


def test_a_missing_table_is_named_before_anything_runs(tables, tmp_path):
    with pytest.raises(ValueError, match=r"none\.csv"):
        graph(tables | {"items": str(tmp_path / "none.csv")}, tmp_path)

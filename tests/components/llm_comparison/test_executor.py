"""What the executor leaves with the model that it chose."""

import pathlib

import pytest
from tfx.dsl.components.base import base_executor
from tfx.types import standard_artifacts

from sllmr.components import examples
from sllmr.components.artifacts import ModelComparison
from sllmr.components.llm_comparison import executor
from sllmr.components.llm_comparison.executor import WITH_LLM_ID, WITHOUT_LLM_ID, Executor
from tests.components.llm_comparison.test_verdict import rows


@pytest.mark.parametrize(("gain", "chosen"), [(0.8, "7"), (-0.8, "8")])
def test_the_chosen_model_is_copied_and_names_both_that_were_compared(tmp_path, monkeypatch, gain, chosen):
    monkeypatch.setattr(executor, "score_rows", lambda *arguments: rows(100, gain))
    models = []
    for number in (7, 8):
        made = standard_artifacts.Model()
        made.id, made.uri = number, str(tmp_path / str(number))
        pathlib.Path(made.uri).mkdir()
        (pathlib.Path(made.uri) / "weights").write_text(str(number))
        models.append(made)
    given, model, comparison = standard_artifacts.Examples(), standard_artifacts.Model(), ModelComparison()
    given.uri, model.uri, comparison.uri = (str(tmp_path / name) for name in ("rows", "model", "comparison"))
    examples.prepare(given, ["train", "valid", "test"])
    Executor(base_executor.BaseExecutor.Context(tmp_dir=str(tmp_path / "tmp"), unique_id="1")).Do(
        {"with_llm": models[:1], "without_llm": models[1:], "examples": [given]},
        {"model": [model], "comparison": [comparison]},
        {"slices": "{}"},
    )
    assert (tmp_path / "model" / "weights").read_text() == chosen
    assert model.get_int_custom_property(WITH_LLM_ID) == 7
    assert model.get_int_custom_property(WITHOUT_LLM_ID) == 8

"""The reference pages are generated from the code and complete."""

import ast
import importlib.util
import json
import pathlib
import re
from typing import Literal

import pytest
import yaml

from sllmr.components.interactions_example_gen.config import CsvConfig, IsoTime

ROOT = pathlib.Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
assert spec is not None
assert spec.loader is not None
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def keys(value: object, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [key for name, inner in value.items() for key in keys(inner, f"{prefix}.{name}".lstrip("."))]


def test_every_key_of_the_quickstart_is_in_the_configuration_reference():
    page = generate.configuration_page()
    quickstart = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))

    for key in keys(quickstart):
        documented = f"`{key}`" in page or f"`{key.rsplit('.', 1)[0]}`" in page
        assert documented, key


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        (str, "str"),
        (CsvConfig | None, "CsvConfig \\| None"),
        (Literal["any", "latest"], "'any' \\| 'latest'"),
        (IsoTime | None, "str \\| None"),
        (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
    ],
)
def test_a_type_is_named_without_modules_and_validators(annotation, name):
    assert generate.type_name(annotation) == name


@pytest.mark.slow
def test_every_result_model_is_on_the_schemas_page():
    """A model with a schema version, wherever it is declared, and the models of RESULT_FILES that exist."""
    page = generate.schemas_page()
    declared = {
        node.name
        for folder in ("models", "components", "pipeline")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and (
            node.name in generate.RESULT_FILES
            or any(isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "schema_version" for n in node.body)
        )
    }

    assert declared >= {"DataReport", "EvaluationResult", "TrainingReport"}
    assert declared == set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    schemas = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert {schema["title"] for schema in schemas} == declared


def test_every_command_is_in_the_command_line_reference():
    page = generate.cli_page()

    for command in ("run", "plan", "score", "batch", "rescore", "ablate", "data movielens-100k"):
        assert f"## sllmr {command}\n" in page

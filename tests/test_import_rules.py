"""The direction of imports, and who may import TFX and the LLM's client."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = ("models", "components", "pipeline")
MAY_IMPORT_TFX = {
    "components/artifacts.py",
    "components/examples.py",
    "components/trainer/run_fn.py",
}


def imported_modules(source: str) -> list[str]:
    """Every module that the source imports, at any depth of nesting."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def violations(path: str, source: str) -> list[str]:
    """Sentences about the rules that a file at `path` breaks."""
    layer, *rest = path.removesuffix(".py").split("/")
    result = []
    for module in imported_modules(source):
        top, *inner = module.split(".")
        if top in LAYERS and LAYERS.index(top) > LAYERS.index(layer):
            result.append(f"{path} imports {module}: imports go pipeline -> components -> models")
        if layer == "components" and top == "components" and len(rest) > 1 and inner:
            is_component = (ROOT / "components" / inner[0]).is_dir()
            if is_component and inner[0] != rest[0]:
                result.append(f"{path} imports {module}: components do not import each other")
        tfx_allowed = layer == "pipeline" or path in MAY_IMPORT_TFX or rest[-1] in ("component", "executor")
        if top == "tfx" and not tfx_allowed:
            result.append(f"{path} imports {module}: tfx belongs in component.py, executor.py, the run_fn, pipeline/")
        if top == "openai" and path != "components/llm_scorer/client.py":
            result.append(f"{path} imports {module}: only the scorer's client module may")
    return result


def test_no_source_file_breaks_the_import_rules():
    found = []
    for layer in LAYERS:
        for file in sorted((ROOT / layer).rglob("*.py")):
            found += violations(file.relative_to(ROOT).as_posix(), file.read_text())
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/gate.py", "from components.scores import ScoreRecord"),
        ("components/catalog.py", "import pipeline.config"),
        ("components/pair_builder/pairs.py", "from components.llm_scorer import cache"),
        ("models/ranking.py", "def f():\n    from tfx import v1"),
        ("components/llm_scorer/candidates.py", "import openai"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str):
    assert len(violations(path, source)) >= 1


def test_the_client_imports_openai_lazily():
    tree = ast.parse((ROOT / "components/llm_scorer/client.py").read_text())
    top_level = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [alias.name for node in top_level for alias in node.names] + [
        node.module for node in top_level if isinstance(node, ast.ImportFrom)
    ]
    assert not any(name and name.split(".")[0] == "openai" for name in names)

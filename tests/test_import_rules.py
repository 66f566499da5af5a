"""The direction of imports, circles, and who may import TFX and the LLM's client."""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARENT = "sllmr"
LAYERS = ("models", "components", "pipeline")
USES_OTHERS = {"item_embedder": {"llm_scorer"}}
"""ItemEmbedder has the scorer's client, cache and ledger; the scorer knows nothing of it."""

CLIENT = "components/llm_scorer/endpoint/client.py"
MAY_IMPORT_TFX = {
    "components/artifacts.py",
    "components/examples.py",
    "components/trainer/run_fn.py",
}


@functools.cache
def imported_modules(source: str, *, at_top_level: bool = False) -> tuple[str, ...]:
    """Every module that the source imports, at any depth of nesting unless `at_top_level`."""
    tree = ast.parse(source)
    found = []
    for node in tree.body if at_top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


def sources() -> dict[str, str]:
    """Path -> text of every source file of the package."""
    files = (file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def violations(path: str, source: str) -> list[str]:
    """Sentences about the rules that a file at `path` breaks."""
    layer, *rest = path.removesuffix(".py").split("/")
    result = []
    for imported in imported_modules(source):
        if imported.split(".")[0] in LAYERS:
            result.append(f"{path} imports {imported}: a second copy of {PARENT}.{imported}, write that")
        top, *inner = imported.removeprefix(f"{PARENT}.").split(".")
        if top in LAYERS and LAYERS.index(top) > LAYERS.index(layer):
            result.append(f"{path} imports {imported}: imports go pipeline -> components -> models")
        if layer == "components" and top == "components" and len(rest) > 1 and inner:
            is_component = (ROOT / "components" / inner[0]).is_dir()
            if is_component and inner[0] not in {rest[0], *USES_OTHERS.get(rest[0], ())}:
                result.append(f"{path} imports {imported}: components do not import each other")
        tfx_allowed = layer == "pipeline" or path in MAY_IMPORT_TFX or rest[-1] in ("component", "executor")
        if top == "tfx" and not tfx_allowed:
            result.append(f"{path} imports {imported}: tfx belongs in component.py, executor.py, the run_fn, pipeline/")
        if top == "openai" and path != CLIENT:
            result.append(f"{path} imports {imported}: only the scorer's client module may")
    return result


def import_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports, nested imports included."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    graph = {}
    for name, path in names.items():
        imported = {module.removeprefix(f"{PARENT}.") for module in imported_modules(files[path])}
        graph[name] = {module for module in imported if module in names and module != name}
    return graph


def rooms(graph: dict[str, set[str]], parent: str) -> dict[str, set[str]]:
    """The graph between the packages and modules directly below `parent`."""

    def room(module: str) -> str | None:
        inner = module.removeprefix(f"{parent}.")
        return inner.split(".")[0] if inner != module else None

    result: dict[str, set[str]] = {}
    for name, imported in graph.items():
        if (here := room(name)) is not None:
            result.setdefault(here, set()).update({r for r in map(room, imported) if r is not None} - {here})
    return result


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, in order; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if found := walk(following, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_no_source_file_breaks_the_import_rules():
    found = []
    for path, source in sources().items():
        found += violations(path, source)
    assert found == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/gate.py", "from sllmr.components.scores import ScoreRecord"),
        ("components/catalog.py", "import sllmr.pipeline.config"),
        ("components/pair_builder/pairs.py", "from sllmr.components.llm_scorer.requests import cache"),
        ("components/llm_scorer/jobs/scoring.py", "import sllmr.components.item_embedder.job"),
        ("models/ranking.py", "def f():\n    from tfx import v1"),
        ("components/llm_scorer/contexts/candidates.py", "import openai"),
        ("pipeline/graph.py", "from models import features"),
    ],
)
def test_a_planted_violation_is_caught(path: str, source: str):
    assert len(violations(path, source)) >= 1


def test_no_module_is_part_of_an_import_circle():
    assert circle(import_graph(sources())) == []


@pytest.mark.parametrize("parent", ["components", "components.llm_scorer", "models", "pipeline"])
def test_no_room_is_part_of_an_import_circle(parent: str):
    graph = rooms(import_graph(sources()), parent)
    assert len(graph) > 3
    assert circle(graph) == []


def test_a_planted_circle_is_caught():
    files = {"models/a.py": "from sllmr.models import b", "models/b.py": "def f():\n    import sllmr.models.a"}
    assert sorted(circle(import_graph(files))) == ["models.a", "models.b"]
    apart = {
        "models/x/a.py": "import sllmr.models.y.b",
        "models/y/b.py": "",
        "models/y/c.py": "import sllmr.models.x.a",
    }
    assert circle(import_graph(apart)) == []
    assert sorted(circle(rooms(import_graph(apart), "models"))) == ["x", "y"]


@pytest.mark.parametrize("library", ["openai", "tokenizers"])
def test_a_library_that_only_some_runs_need_is_imported_where_it_is_needed(library: str):
    def imports(source: str, **kinds: bool) -> bool:
        return any(name.split(".")[0] == library for name in imported_modules(source, **kinds))

    assert any(imports(source) for source in sources().values())
    assert [path for path, source in sources().items() if imports(source, at_top_level=True)] == []

"""Fingerprints of the code that a step runs, because TFX's cache does not see the code behind a dotted path."""

import ast
import functools
import hashlib
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from sllmr import components, models

PACKAGES: Mapping[str, pathlib.Path] = {
    package.__name__: pathlib.Path(str(package.__file__)).parent for package in (components, models)
}
"""Folder of each package whose code runs in a step."""


def code_version(*modules: str, packages: Mapping[str, pathlib.Path] = PACKAGES) -> str:
    """16 hex digits over the code of these modules and of everything in `packages` that they import.

    Python is compared as a syntax tree without docstrings, so that comments and layout change nothing. Other files,
    such as prompts, count if they lie beside an imported module. A string that names a module counts as its import.

    Args:
        modules: full names, as `sllmr.components.trainer.component`; none means every module.
        packages: folders by package name.

    Raises:
        ValueError: there is no such module.
    """
    sources = _Sources(packages)
    for module in modules:
        if sources.file(module) is None:
            raise ValueError(f"code_version needs modules of {', '.join(packages)}, got {module}; correct the name")
    found: set[str] = set()
    waiting = list(modules or sources.every_module())
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += sources.imports(module)
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module}\0{sources.meaning(module)}\0".encode())
        for file in sources.data_files(module):
            digest.update(f"{module}/{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class _Source(NamedTuple):
    """What counts of a source file.

    Attributes:
        meaning: its syntax tree without docstrings, as text.
        names: what it imports, and what its strings may name: modules or something in them.
    """

    meaning: str
    names: tuple[str, ...]


class _Sources:
    """The source files of some packages."""

    def __init__(self, packages: Mapping[str, pathlib.Path]):
        self._packages = packages

    def file(self, module: str) -> pathlib.Path | None:
        """The file of a module; None if it is none of these packages."""
        for package, folder in self._packages.items():
            if module == package or module.startswith(package + "."):
                path = folder.joinpath(*module.removeprefix(package).split(".")[1:])
                for file in (path / "__init__.py", path.with_suffix(".py")):
                    if file.is_file():
                        return file
        return None

    def every_module(self) -> list[str]:
        """The full name of each source file."""
        names = []
        for package, folder in self._packages.items():
            for file in folder.rglob("*.py"):
                path = file.relative_to(folder).with_suffix("")
                names.append(".".join((package, *(part for part in path.parts if part != "__init__"))))
        return names

    def imports(self, module: str) -> list[str]:
        """The modules of these packages that a module imports, anywhere in it; its parents first."""
        parts = module.split(".")
        parents = [".".join(parts[:n]) for n in range(1, len(parts))]
        return [name for name in (*parents, *self._source(module).names) if self.file(name) is not None]

    def meaning(self, module: str) -> str:
        """The syntax tree of a module, as text."""
        return self._source(module).meaning

    def data_files(self, module: str) -> list[pathlib.Path]:
        """The files other than Python in a module's folder, and in its subfolders that are not packages."""
        folder = self._file(module).parent
        beside = [p for p in folder.iterdir() if p.is_file()]
        for inner in folder.iterdir():
            if inner.is_dir() and inner.name != "__pycache__" and not (inner / "__init__.py").exists():
                beside += [p for p in inner.rglob("*") if p.is_file()]
        return sorted(p for p in beside if p.suffix not in (".py", ".pyc") and p.name != "py.typed")

    def _source(self, module: str) -> _Source:
        file = self._file(module)
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        return _read(file, file.stat().st_mtime_ns, package)

    def _file(self, module: str) -> pathlib.Path:
        file = self.file(module)
        assert file is not None
        return file


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops every string that stands alone: docstrings, and those below a constant."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


@functools.cache
def _read(file: pathlib.Path, modified: int, package: str) -> _Source:
    """The source of a module of a package; `modified`, the file's time stamp, only keys the cache."""
    tree = _WithoutDocstrings().visit(ast.parse(file.read_text(encoding="utf-8")))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += [node.value, node.value.rpartition(".")[0]]  # "package.module.function"
    return _Source(meaning=ast.dump(tree), names=tuple(dict.fromkeys(names)))

"""Docs and code use the terms of docs/glossary.md: retired words fail."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]

RETIRED = {
    r"first[- ]stage": "base model",
    r"dealt anew": "permuted",
    r"labell?ed probes?|probes?": "calibration pair",
    r"judge[sd]?|judge?ments?": "LLM scorer, score",
    r"push(?:es|ed)?[- ]?backs?": "throttled",
    r"under way": "in flight",
    r"hand(?:s|ed|ing)? (?:\w+ )?over": "submit",
    r"(?:is|are|was|were) (?:asked|told)": "query, prompt",
    r"(?:asking|asks?|asked|tells?|told) the (?:LLM|model)": "query, prompt",
    r"dropout passes": "MC-dropout samples",
    r"(?:per|each|a|over the) pass(?:es)?(?= (?:over|of) (?:the )?(?:rows|data|train))": "epoch",
    r"(?:an?|the|its|their|of) shares?(?! (?:one|the same))": "fraction",
    r"unchosen|the chosen item|chosen items?": "target item",
    r"fused (?:judge?ments?|probabilit(?:y|ies)|gate|targets?|order)": "stacked target",
    r"(?:command|run|it|job) goes on(?! to)": "resume",
    r"made again": "rerun",
    r"may be billed": "possibly billed",
    r"\w*(?:general|maxim|minim|normal|optim|priorit|regular|serial|standard|token)is(?:e[ds]?|ing|ation)": "-ize",
    r"(?:colour|behaviour|favour|centre)\w*": "American spelling",
}
"""Regular expression of a retired phrase, without its word boundaries -> the term to use."""

DOCS = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs")
CODE = ("models", "components", "pipeline")

PATTERNS = {re.compile(rf"\b(?:{phrase})\b", re.IGNORECASE): term for phrase, term in RETIRED.items()}


def findings(text: str) -> list[str]:
    """Returns one line for each retired phrase in prose; code in backticks and fences is not prose."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", lambda code: re.sub(r"[^\n]", " ", code[0]), text, flags=re.DOTALL)
    return [
        f"line {prose[: hit.start()].count(chr(10)) + 1}: {hit[0]!r}, use: {term}"
        for pattern, term in PATTERNS.items()
        for hit in pattern.finditer(prose)
    ]


def prose_of(source: str) -> Iterator[str]:
    """Yields the docstrings and the `description=` and `help=` strings of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.keyword) and node.arg in ("description", "help"):
            yield " ".join(
                part.value
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            )


def pages() -> list[pathlib.Path]:
    found = [p for name in DOCS for p in ([ROOT / name] if name.endswith(".md") else (ROOT / name).rglob("*.md"))]
    return [p for p in found if "reference" not in p.parts]  # generated from the code, which is checked below


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_has_no_retired_word(page):
    assert findings(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("folder", CODE)
def test_a_code_folder_has_no_retired_word(folder):
    assert [
        f"{path.relative_to(ROOT)}: {finding}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in prose_of(path.read_text(encoding="utf-8"))
        for finding in findings(text)
    ] == []


@pytest.mark.parametrize(
    "text",
    [
        "the first stage",
        "A labelled probe",
        "is asked about",
        "a share of the rows",
        "Handed over",
        "first-stage",
        "not normalised",
    ],
)
def test_a_retired_word_is_found(text):
    assert findings(text)


@pytest.mark.parametrize(
    "text", ["tests pass", "both share a cache", "a first step", "`calibration_fraction`", "ask the team", "a problem"]
)
def test_other_words_are_not_found(text):
    assert findings(text) == []

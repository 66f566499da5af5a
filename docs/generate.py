"""Writes the reference pages from the code: configuration keys, command line, JSON Schemas. Run by `make docs`."""

import argparse
import json
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel

REFERENCE = pathlib.Path(__file__).parent / "reference"


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yields the Pydantic models that a type annotation contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def type_name(annotation: object) -> str:
    """Returns an annotation without module names and validators, escaped for a Markdown table."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " \\| ".join(type_name(argument) for argument in arguments)
    if origin is Literal:
        return " \\| ".join(repr(value) for value in arguments)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(type_name(argument) for argument in arguments)}]"
    return {type(None): "None", Ellipsis: "..."}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def section(
    model: type[BaseModel], prefix: str, path: tuple[type, ...] = (), defaults: BaseModel | None = None
) -> list[str]:
    """Returns one table for the keys of `model`, then the tables of the models nested in it.

    `defaults` holds the values of a file that leaves out what it can; None takes the classes' own.
    """
    rows, nested = [], []
    for name, field in model.model_fields.items():
        key = f"{prefix}.{name}" if prefix else name
        inner = [m for m in models_in(field.annotation) if m not in path]
        if inner:
            for other in inner:
                value = getattr(defaults, name, None)
                nested += section(other, key, (*path, model), value if isinstance(value, other) else None)
        if field.is_required():
            default = "required"
        elif inner and field.default_factory is not None:
            default = "see below"
        else:
            value = field.get_default(call_default_factory=True)
            if defaults is not None:
                value = getattr(defaults, name)
            default = "see below" if isinstance(value, BaseModel) else f"`{value!r}`".replace("|", "\\|")
        text = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{key}` | {type_name(field.annotation)} | {default} | {text} |")
    title = f"## `{prefix}`" if prefix else "## Top level"
    return [title, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, "", *nested]


def configuration_page() -> str:
    """Returns the reference of every configuration key."""
    from sllmr.pipeline.config import Config

    defaults = Config.model_validate({"data": {"interactions": "interactions.csv", "items": "items.csv"}})
    tables = section(Config, "", defaults=defaults)
    return "\n".join(["# Configuration", "", "Generated from the configuration models.", "", *tables])


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a parser and the parsers of its commands, depth first."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from parsers(child)


def cli_page() -> str:
    """Returns the help text of every command."""
    from sllmr.pipeline.cli import _parser

    lines = ["# Command line", "", "Generated from the argument parser.", ""]
    for parser in parsers(_parser()):
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
        lines += [f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


RESULT_FILES = {
    "DataReport": "`data_report.json` of InteractionsExampleGen, and `data` in `summary.json`",
    "Comparison": "`comparison.json` of LlmComparison",
    "Verdict": "`verdict` in `summary.json`",
    "EmbeddingReport": "`item_vectors.json` of ItemEmbedder, and `item_vectors` in `summary.json`",
    "EvaluationResult": "`decision.json` of the Evaluator; its `decision` is also in `summary.json`",
    "TrainingReport": "`training.json` of the Trainer, and `training` in `summary.json`",
    "BacktestReport": "`backtest.json` of `sllmr backtest`",
    "PilotReport": "`pilot.json` of `sllmr pilot`",
    "ScoringLedger": "`ledger.json` beside a score table",
    "BatchReport": "`batch.json` of `sllmr batch`",
    "RunSummary": "`summary.json` of a run",
    "LlmSummary": "`llm` in `summary.json`",
}
"""Where each published result model is written; models with a field `schema_version` are published too."""


def result_models() -> list[type[BaseModel]]:
    """Returns the published result models: those of RESULT_FILES and every other one with a field `schema_version`."""
    import importlib
    import re

    import sllmr.models

    root = pathlib.Path(sllmr.models.__file__).parents[1]
    declares = re.compile(rf"^    schema_version: |^class ({'|'.join(RESULT_FILES)})\b", re.MULTILINE)
    found = {}
    for package in ("models", "components", "pipeline"):
        for file in sorted((root / package).rglob("*.py")):
            if not declares.search(file.read_text(encoding="utf-8")):
                continue
            name = ".".join(("sllmr", *file.relative_to(root).with_suffix("").parts))
            for model in vars(importlib.import_module(name)).values():
                is_model = isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == name
                if is_model and (model.__name__ in RESULT_FILES or "schema_version" in model.model_fields):
                    found[model.__name__] = model
    return [found[name] for name in sorted(found)]


def schemas_page() -> str:
    """Returns the JSON Schema of every published result."""
    lines = ["# JSON Schemas of published results", "", "Generated from the typed models of the results.", ""]
    for model in result_models():
        schema = json.dumps(model.model_json_schema(), indent=2)
        where = RESULT_FILES.get(model.__name__)
        lines += [f"## {model.__name__}", "", *([f"Written to {where}.", ""] if where else [])]
        lines += ["```json", schema, "```", ""]
    return "\n".join(lines)


PAGES = {"configuration.md": configuration_page, "cli.md": cli_page, "schemas.md": schemas_page}


def main() -> int:
    """Writes every page into docs/reference, which is not committed."""
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

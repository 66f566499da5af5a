"""The YAML in the docs is valid, every key that the docs name exists, and tables of keys are complete."""

import pathlib
import re

import pytest
import yaml
from pydantic import BaseModel

from sllmr.components.llm_comparison.verdict import Answer
from sllmr.components.llm_scorer.config import STRATEGY_NAMES, CandidateConfig
from sllmr.models.config import BackboneName, GateConfig, LossConfig
from sllmr.pipeline.ablation.arms import ARMS, Arm
from sllmr.pipeline.ablation.config import AblationConfig
from sllmr.pipeline.config import Config

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    p
    for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "reference" not in p.parts
]
TABLES = {"interactions": "interactions.csv", "items": "items.csv"}


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def yaml_blocks() -> list:
    return [
        pytest.param(body, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
        for page in PAGES
        for number, body in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    ]


def inline_yaml() -> list[str]:
    """Code such as `data: {min_rating: 4}` or `gate.mode: stacked`, and dotted keys without a value."""
    return sorted(
        {
            code
            for page in PAGES
            for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
            if code.split(".")[0].split(":")[0] in Config.model_fields
            and re.fullmatch(r"\w+(\.\w+)+(: .*)?|\w+: \{.*\}", code)
        }
    )


def column(page: str, heading: str) -> set[str]:
    """The names in backticks in the first column of the table under a header row that starts with `heading`."""
    table = text_of(page).split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def merged(one: dict, other: dict) -> dict:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return {**one, **other, **both}


@pytest.mark.parametrize("body", yaml_blocks())
def test_a_yaml_block_is_a_valid_configuration(body):
    values = yaml.safe_load(body)
    if values.keys() & {"own_arms", "ranking"}:
        AblationConfig.model_validate({"domains": {"toys": {"data": TABLES}}, **values})
    else:
        Config.model_validate(merged({"data": TABLES}, values))


@pytest.mark.parametrize("code", inline_yaml())
def test_a_key_in_a_sentence_exists(code):
    if ": {" in code:
        Config.model_validate(merged({"data": TABLES}, yaml.safe_load(code)))
        return
    model: object = Config
    for part in code.partition(": ")[0].split("."):
        assert isinstance(model, type), code
        assert issubclass(model, BaseModel), code
        assert part in model.model_fields, f"{model.__name__} has no key {part}"
        model = model.model_fields[part].annotation
        model = next((m for m in getattr(model, "__args__", ()) if isinstance(m, type)), model)


def test_the_default_that_is_written_out_is_the_default():
    (block,) = (b for b in re.findall(r"```yaml\n(.*?)```", text_of("gate.md"), re.DOTALL))
    told, config = yaml.safe_load(block), Config.model_validate({"data": TABLES}).model_dump(mode="json")

    candidates = told.pop("llm")["candidates"]
    assert candidates == {k: v for k, v in config["llm"]["candidates"].items() if k != "per_context"}
    for section, values in told.items():
        assert values == {key: config[section][key] for key in values}


def test_the_table_of_candidates_names_every_key():
    assert column("llm.md", "key | default | meaning") == CandidateConfig.model_fields.keys()


def test_the_table_of_candidates_has_the_defaults():
    rows = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", text_of("llm.md"), re.MULTILINE)
    told = {key: value for key, value in rows if key in CandidateConfig.model_fields}

    candidates = Config.model_validate({"data": TABLES}).llm.candidates
    assert told == {key: str(value) for key, value in candidates.model_dump().items()}


def test_the_tables_of_arms_name_every_arm_and_key():
    assert column("evaluation.md", "arm | what it trains") == ARMS.keys()
    assert column("evaluation.md", "key | meaning") >= Arm.model_fields.keys() - {"late_fusion", "backbones"}


@pytest.mark.parametrize(
    ("page", "heading", "names"),
    [
        ("llm.md", "`llm.strategy` | how it scores a candidate", STRATEGY_NAMES),
        ("evaluation.md", "`answer` | condition on the overall slice", Answer.__args__),  # type: ignore[attr-defined]
        ("gate.md", "`gate.mode` | alpha", GateConfig.model_fields["mode"].annotation.__args__),  # type: ignore[union-attr]
        ("gate.md", "`loss.form` | loss on pairs", LossConfig.model_fields["form"].annotation.__args__),  # type: ignore[union-attr]
        ("architecture.md", "`model.backbone` | network", BackboneName.__args__),  # type: ignore[attr-defined]
    ],
)
def test_a_table_of_values_is_complete(page, heading, names):
    table = text_of(page).split(f"| {heading}", 1)[1].split("\n\n", 1)[0]

    assert {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")} == set(names)

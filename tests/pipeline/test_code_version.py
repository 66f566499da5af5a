"""What changes the fingerprint of a step's code, on a copy of the sources."""

import pathlib
import shutil

import pytest

from sllmr.pipeline.code_version import PACKAGES, code_version

TRAINER = "sllmr.components.trainer.component"
SCORER = "sllmr.components.llm_scorer.component"
EVALUATOR = "sllmr.components.evaluator.component"


@pytest.fixture
def copy(tmp_path) -> dict[str, pathlib.Path]:
    """The sources by package, to be edited."""
    for name, folder in PACKAGES.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return {name: tmp_path / name for name in PACKAGES}


def edited(copy: dict[str, pathlib.Path], package: str, file: str, old: str, new: str) -> None:
    path = copy[f"sllmr.{package}"] / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_copy_has_the_fingerprint_of_the_original(copy):
    assert code_version(TRAINER, packages=copy) == code_version(TRAINER)


def test_comments_docstrings_and_layout_change_nothing(copy):
    before = code_version(TRAINER, packages=copy)
    edited(copy, "models", "losses.py", '"""', '"""Other words. ')
    edited(copy, "models", "losses.py", "\ndef ", "\n\n# a comment\ndef ")
    assert code_version(TRAINER, packages=copy) == before


@pytest.mark.slow
def test_a_changed_loss_changes_the_trainer_and_not_the_scorer(copy):
    before = [code_version(step, packages=copy) for step in (TRAINER, SCORER)]
    with open(copy["sllmr.models"] / "losses.py", "a") as file:
        file.write("\nFACTOR = 2\n")
    after = [code_version(step, packages=copy) for step in (TRAINER, SCORER)]
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.slow
def test_a_changed_scorer_changes_the_scorer_and_neither_training_nor_evaluation(copy):
    steps = (SCORER, TRAINER, EVALUATOR)
    before = [code_version(step, packages=copy) for step in steps]
    with open(copy["sllmr.components"] / "llm_scorer/requests/handler.py", "a") as source:
        source.write("\nFACTOR = 2\n")
    after = [code_version(step, packages=copy) for step in steps]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False, False]


@pytest.mark.slow
def test_a_changed_prompt_changes_the_scorer(copy):
    before = code_version(SCORER, packages=copy)
    with open(copy["sllmr.components"] / "llm_scorer/strategies/prompts/yes_no.v1.txt", "a") as file:
        file.write("?")
    assert code_version(SCORER, packages=copy) != before


def test_what_only_a_string_names_counts(copy):
    """The Trainer's run_fn is a dotted path."""
    before = code_version(TRAINER, packages=copy)
    with open(copy["sllmr.components"] / "trainer/run_fn.py", "a") as file:
        file.write("\nFACTOR = 2\n")
    assert code_version(TRAINER, packages=copy) != before


@pytest.mark.slow
def test_without_a_name_every_module_counts(copy):
    before = code_version(packages=copy)
    assert before == code_version()
    with open(copy["sllmr.components"] / "llm_scorer/batch/job.py", "a") as file:
        file.write("\nFACTOR = 2\n")
    assert code_version(packages=copy) != before


def test_an_unknown_module_is_refused():
    with pytest.raises(ValueError, match=r"got sllmr\.components\.none"):
        code_version("sllmr.components.none")

"""The wheel, installed in an empty environment away from the sources: its commands, and the golden run's results."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.golden.fields import Fields, differences
from tests.golden.run import GOLDEN, HERE, TOLERANCE, patterns
from tests.golden.run import run as golden_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
UV = ROOT / ".uv" / "bin" / "uv"
HOW = "If the change is meant, run `.venv/bin/python -m tests.golden.run` and read what `git diff` says."

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    """That of the tests without what would lead a command from the wheel to the sources."""
    # Where Python writes no bytecode, as in many images, each command would compile all of TensorFlow anew.
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def run(*command: object, cwd: pathlib.Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """A folder with what `make wheel` leaves: the wheel and the pinned requirements."""
    directory = tmp_path_factory.mktemp("dist")
    run("make", "wheel", f"DIST={directory}", cwd=ROOT)
    return directory


@pytest.fixture(scope="module")
def sllmr(built, tmp_path_factory) -> pathlib.Path:
    """The program of an environment that holds the wheel and its requirements, and no sources."""
    home = tmp_path_factory.mktemp("empty")
    python = home / "venv" / "bin" / "python"
    run(UV, "venv", "--quiet", home / "venv", cwd=home)
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", python, "-r", built / "requirements.txt", cwd=home)
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", python, *built.glob("*.whl"), cwd=home)
    link_bytecode(home / "venv")
    return home / "venv" / "bin" / "sllmr"


def link_bytecode(environment: pathlib.Path) -> None:
    """Takes the bytecode of the same files from the project's environment: to compile TensorFlow takes long.

    Python compiles what is not that of the same file, and a folder that is not in `environment` is left out.
    """
    source, target = (
        pathlib.Path(folder, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
        for folder in (sys.prefix, environment)
    )
    for cached in source.rglob("__pycache__"):
        beside = target / cached.parent.relative_to(source)
        if beside.is_dir() and not (beside / "__pycache__").exists():
            shutil.copytree(cached, beside / "__pycache__", copy_function=os.link)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    """Of the golden run."""
    return tmp_path_factory.mktemp("golden").resolve()


@pytest.fixture(scope="module")
def results(sllmr, directory) -> dict[str, Fields]:
    return golden_run(directory, sllmr=[str(sllmr)], environment=environment())


def test_the_wheel_holds_one_importable_package(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sllmr"}
    for needed in ("sllmr/models/py.typed", "sllmr/pipeline/templates/report.html.j2"):
        assert needed in names


def test_help_works_from_the_wheel(sllmr, tmp_path):
    assert "usage: sllmr" in run(sllmr, "--help", cwd=tmp_path).stdout


def test_plan_works_from_the_wheel(sllmr, tmp_path):
    """With the default LLM and item vectors, whose prompt and tokenizer are files of the wheel."""
    for table in ("interactions.csv", "items.csv"):
        shutil.copy(HERE / table, tmp_path)
    tables = "data: {interactions: interactions.csv, items: items.csv}\n"
    (tmp_path / "plan.yaml").write_text(f"{tables}cache_dir: cache\nllm: {{budget: {{pairs: 100}}}}\n")
    assert "No request was sent" in run(sllmr, "plan", "--config", "plan.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize("result", sorted(GOLDEN))
def test_a_run_from_the_wheel_on_fixed_tables_gives_the_committed_results(results, result):
    """So whatever changes them shows as a diff of these files."""
    expected = json.loads(GOLDEN[result].read_text(encoding="utf-8"))
    found = differences(expected, results[result], TOLERANCE, patterns(result))
    assert not found, "\n".join([f"{result} differs in {len(found)} fields:", *found, HOW])


def test_no_warning_of_the_run_comes_from_this_project(results, directory):
    """Python writes `file:line: Category: message` to the log; the categories that it hides by default as well."""
    log = "".join(file.read_text(encoding="utf-8") for file in (directory / "out" / "logs").iterdir())
    warned = re.findall(r"^.*\.py:\d+: \w*Warning: .*$", log, re.MULTILINE)
    assert warned  # the libraries' own: so the log would hold ours
    of_tfx = "label() is deprecated"  # protobuf names not who calls it, but whoever called TFX
    assert not [line for line in warned if "/site-packages/sllmr/" in line and of_tfx not in line]

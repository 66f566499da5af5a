"""The wheel, installed in an empty environment away from the sources."""

import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
UV = ROOT / ".uv" / "bin" / "uv"
START = datetime.date(2024, 1, 1)

pytestmark = pytest.mark.slow


def run(*command: object, cwd: pathlib.Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    # Where Python writes no bytecode, as in many images, each command would compile all of TensorFlow anew.
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
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
def shop(tmp_path_factory) -> pathlib.Path:
    """60 users with 8 purchases each of 40 items, and a configuration without an LLM."""
    directory = tmp_path_factory.mktemp("shop")
    rows = [
        f"u{user},i{(user * 7 + step * step) % 40},{START + datetime.timedelta(days=user % 9 + step)}"
        for user in range(60)
        for step in range(8)
    ]
    (directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    items = [f"i{item},Title {item},Category {item % 4}" for item in range(40)]
    (directory / "items.csv").write_text("\n".join(["item_id,title,categories", *items]) + "\n")
    base = "data: {interactions: interactions.csv, items: items.csv}\ncache_dir: cache\n"
    (directory / "plan.yaml").write_text(base + "llm: {budget: {pairs: 100}}\n")
    (directory / "shop.yaml").write_text(base + "loss: {llm_weight: 0}\ntrain: {epochs: 1}\n")
    return directory


def test_the_wheel_holds_one_importable_package(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sllmr"}
    for needed in ("sllmr/models/py.typed", "sllmr/pipeline/templates/report.html.j2"):
        assert needed in names


def test_help_works_from_the_wheel(sllmr, tmp_path):
    assert "usage: sllmr" in run(sllmr, "--help", cwd=tmp_path).stdout


def test_plan_works_from_the_wheel(sllmr, shop):
    assert "No request was sent" in run(sllmr, "plan", "--config", shop / "plan.yaml", cwd=shop).stdout


def test_a_run_works_from_the_wheel(sllmr, shop):
    run(sllmr, "run", "--config", shop / "shop.yaml", "--output", shop / "out", cwd=shop)
    summary = json.loads((shop / "out" / "summary.json").read_text())
    assert summary["metrics"]["overall"]["examples"] > 0

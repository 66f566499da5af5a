"""Every shell command of the docs runs here, or a comment above its block says why it does not."""

import contextlib
import gzip
import pathlib
import re
import sqlite3
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    p
    for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if "reference" not in p.parts
]
BLOCK = re.compile(
    r"(?:<!-- not run here: (?P<reason>[^>]*?) -->\n)?```(?:sh|bash|shell|console)\n(?P<body>.*?)```", re.DOTALL
)


def run_blocks() -> list[tuple[str, str]]:
    return [
        (page.relative_to(ROOT).as_posix(), block["body"])
        for page in PAGES
        for block in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if not block["reason"]
    ]


def test_the_hooks_are_the_lint_part_of_make_check():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    check = re.search(r"^check:(.*?)##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    assert check is not None
    assert "lint" in check[1].split()
    assert [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]] == ["make lint"]


def test_every_fence_names_its_language():
    """A block without a language would escape this test."""
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page
        assert not any(fences[1::2]), page


@pytest.mark.parametrize(("page", "body"), run_blocks())
def test_a_block_without_a_marker_runs(page, body):
    done = subprocess.run(["sh", "-euc", body], cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr


@pytest.fixture
def shop(tmp_path) -> pathlib.Path:
    """A folder with the two tables of docs/data.md, 20 users and 30 items, and its first configuration as shop.yaml."""
    users = [
        f"u{user},i{(user * 7 + step * step) % 30},2024-01-{user % 9 + step + 1:02d}"
        for user in range(20)
        for step in range(8)
    ]
    items = [f"i{item},Title {item},Category {item % 4}" for item in range(30)]
    for name, header, rows in (
        ("interactions.csv.gz", "user_id,item_id,timestamp", users),
        ("items.csv.gz", "item_id,title,categories", items),
    ):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as table:
            table.write("\n".join([header, *rows]) + "\n")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    data = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]
    llm = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "llm.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    (tmp_path / "shop.yaml").write_text(f"{data}{llm}cache_dir: cache\n", encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_documented_plan_of_the_documented_configuration_runs(shop):
    """20 users with 5 train positives each are 100 scoring contexts, with 10 candidates each."""
    page = (ROOT / "docs" / "llm.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\.venv/bin/(sllmr plan .*)$", page, re.MULTILINE)

    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "python", "-m", "sllmr.pipeline.cli", *command.split()[1:]],
        cwd=shop,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert "1,000 in 100 contexts" in done.stdout
    assert "gpt-4o-mini by listwise" in done.stdout
    with contextlib.closing(sqlite3.connect(shop / "cache" / "responses.sqlite")) as cache:
        assert cache.execute("SELECT count(*) FROM responses").fetchone() == (0,)


def test_commands_that_are_not_run_name_options_that_exist():
    from sllmr.pipeline.cli import _parser

    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            for line in re.findall(r"\.venv/bin/sllmr ([^#\n]*)", block["body"]):
                if "--help" not in line:
                    _parser().parse_args(line.split())

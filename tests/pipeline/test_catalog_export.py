"""`sllmr export` on a tiny pushed model with item vectors; ItemEmbedder's job is the real one."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from sllmr.components.item_embedder import transforms
from sllmr.models import signatures
from sllmr.pipeline.cli import main
from sllmr.pipeline.served_versions import model_card, newest_version, prune
from tests.components.item_embedder.test_job import LetterCounts
from tests.models import market
from tests.models.exporting import rank_request
from tests.models.vector_market import export, train

pytestmark = pytest.mark.slow

PARITIES = "aaei", "srtt"
"""Texts of an even and of an odd item."""


def title(number: int) -> str:
    return f"{PARITIES[number % 2]} {'aeiourst'[number % 8]}"


@pytest.fixture
def encoder(monkeypatch):
    """Stands for the bundled model, which takes seconds to load."""
    encoder = LetterCounts()
    monkeypatch.setattr(transforms, "_encoder", lambda cache_directory: encoder)
    return encoder


@pytest.fixture(scope="module")
def first_version(tmp_path_factory) -> pathlib.Path:
    """A model that was trained with the vectors of the market's titles."""
    directory = tmp_path_factory.mktemp("pushed")
    vectors = LetterCounts().encode([title(n) for n in range(len(market.ITEMS))])
    by_id = {item.encode(): vector for item, vector in zip(market.ITEMS, vectors, strict=True)}
    export(train(directory, by_id), directory / "1")
    return directory / "1"


@pytest.fixture
def shop(tmp_path, first_version) -> pathlib.Path:
    """A folder with a configuration, a pushed model, and a catalog with two new items and one without a text."""
    items = "".join(f"item{n},{title(n)}\n" for n in range(len(market.ITEMS)))
    (tmp_path / "june.csv").write_text(f"item_id,title\n{items}even,{title(0)}!\nodd,{title(1)}!\nno text,\n")
    (tmp_path / "shop.yaml").write_text("data: {interactions: i.csv, items: june.csv}\ncache_dir: cache\n")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "1").symlink_to(first_version)
    return tmp_path


def run_export(shop: pathlib.Path, config: str = "shop.yaml") -> int:
    return main(
        ["export", "--config", str(shop / config), "--catalog", str(shop / "june.csv"), "--model", str(shop / "shop")]
    )


def ranked(shop: pathlib.Path, candidates: list[str]) -> np.ndarray:
    """Scores of the newest version, of a user of even items and of one of odd items."""
    newest = newest_version(shop / "shop")
    rank = tf.saved_model.load(str(newest)).signatures[signatures.RANK]
    return rank(**rank_request([["item2", "item4"], ["item3", "item5"]], [candidates] * 2))[signatures.SCORES].numpy()


def test_new_items_get_vectors_from_the_cache_or_the_embedder_and_are_ranked_by_them(shop, encoder, capsys):
    assert run_export(shop) == 0

    of_even, of_odd = ranked(shop, ["even", "odd"])
    assert of_even[0] > of_even[1]
    assert of_odd[0] < of_odd[1]
    said = capsys.readouterr().out
    assert "15 items, 3 of them not in the training\n2 of these have vectors by all-MiniLM-L6-v2; " in said
    assert max(encoder.read.values()) == 1
    encoder.read.clear()
    assert run_export(shop) == 0
    assert not encoder.read
    assert "; 0 texts embedded, " in capsys.readouterr().out
    np.testing.assert_array_equal(ranked(shop, ["even", "odd"]), [of_even, of_odd])


@pytest.mark.parametrize(
    ("new", "section", "problem"),
    [
        (
            [],
            "{source: file, file: v.npz}",
            "at least 20% of the new items of --catalog must have a vector, got 0 of 3",
        ),
        (["even", "odd"], "{source: file, file: v.npz}", "must come from the model that made those of the training"),
        ([], "{source: none}", "item_vectors.source must be that of the training, as 2 items of --catalog are new"),
    ],
    ids=["missing", "other_model", "none"],
)
def test_new_items_without_vectors_like_the_trainings_are_refused(shop, capsys, new, section, problem):
    ids = [*market.ITEMS, *new]
    np.savez(shop / "v.npz", item_id=ids, vector=np.random.default_rng(1).normal(size=(len(ids), 8)))
    (shop / "other.yaml").write_text((shop / "shop.yaml").read_text() + f"item_vectors: {section}\n")

    assert run_export(shop, "other.yaml") == 1

    assert problem in capsys.readouterr().err
    assert [path.name for path in (shop / "shop").iterdir()] == ["1"]


def test_the_new_version_has_a_card_that_says_where_it_comes_from(shop, encoder):
    (shop / "shop" / "1.md").write_text("# shop, version 1\n\nAUC .7\n")

    assert run_export(shop) == 0

    version = newest_version(shop / "shop")
    card = model_card(version).read_text()
    assert f"# shop, version {version.name}\n" in card
    assert "The model of version 1 with another catalog, june.csv" in card
    assert "- Items: 15, 3 of them not in the training" in card
    assert "- Vectors: 2 of these have one, by all-MiniLM-L6-v2." in card
    assert card.rstrip().endswith("AUC .7")
    model_card(shop / "shop" / "1").unlink()
    assert run_export(shop) == 0
    assert f"## The card of version {version.name}" in model_card(newest_version(shop / "shop")).read_text()


KILLED = """
import os, signal, sys
from sllmr.pipeline import catalog_export
real = catalog_export.swap_catalog
def swap(source, target, *rest):
    real(source, target, *rest)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    signal.pause()
catalog_export.swap_catalog = swap
from sllmr.pipeline.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_killed_export_shows_no_version_and_leaves_no_hidden_folder_behind_the_next_command(shop, name):
    np.savez(shop / "v.npz", item_id=[*market.ITEMS], vector=LetterCounts().encode([title(n) for n in range(12)]))
    (shop / "june.csv").write_text("item_id,title\n" + "".join(f"item{n},{title(n)}\n" for n in range(12)))
    command = ["export", "--config", "shop.yaml", "--catalog", "june.csv", "--model", "shop"]

    ended = subprocess.run([sys.executable, "-c", KILLED, name, *command], cwd=shop, check=False, capture_output=True)

    left = sorted(path.name for path in (shop / "shop").iterdir() if path.suffix != ".md")
    if name == "SIGTERM":
        assert (ended.returncode, left) == (128 + signal.SIGTERM, ["1"])
        return
    assert ended.returncode == -signal.SIGKILL
    assert len(left) == 2
    assert left[0].startswith(".")
    assert prune(shop / "shop", keep=2) == []
    assert [path.name for path in (shop / "shop").iterdir() if path.suffix != ".md"] == ["1"]

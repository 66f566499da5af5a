"""The embedding job on a small catalog; the bundled model is the real one."""

import collections
import json
import sqlite3

import apache_beam as beam
import numpy as np
import pytest

from sllmr.components.catalog import Item, write_catalog
from sllmr.components.item_embedder import transforms
from sllmr.components.item_embedder.config import ItemVectorsConfig
from sllmr.components.item_embedder.item_text import item_text
from sllmr.components.item_embedder.job import REPORT_FILE, EmbeddingJob, EmbeddingReport
from sllmr.components.item_embedder.transforms import CACHE_DIRECTORY, Counts, EmbedTexts
from sllmr.components.llm_scorer.requests.cache import FILE_NAME
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import VECTORS_FILE, read_item_vectors
from tests.downloads import link_models

ITEMS = (
    Item(item_id="a", title="Red lipstick", categories=("Lipstick", "Makeup"), brand="Rouge", text="Matte."),
    Item(item_id="b", title="Red lipstick", categories=("Lipstick", "Makeup"), brand="Rouge", text="Matte."),
    Item(item_id="c", title="Wooden drum"),
    Item(item_id="nothing"),
)


def run(directory, items=ITEMS, **config) -> EmbeddingReport:
    write_catalog(str(directory / "catalog"), items)
    (directory / "work").mkdir(exist_ok=True)
    return EmbeddingJob(
        config=ItemVectorsConfig.model_validate(config),
        catalog_directory=str(directory / "catalog"),
        cache_directory=str(directory / "cache"),
        work_directory=str(directory / "work"),
        output_directory=str(directory / "out"),
        make_pipeline=beam.Pipeline,
    ).run()


def vector_of(directory, item_id: str) -> np.ndarray:
    vectors = read_item_vectors(str(directory / "out" / VECTORS_FILE))
    return vectors.vectors[vectors.row[item_id]]


class LetterCounts:
    """Stands for the model where its vectors do not matter, as it takes seconds to load; counts what it is given."""

    def __init__(self):
        self.read: collections.Counter[str] = collections.Counter()

    def encode(self, texts):
        self.read.update(texts)
        counts = np.array([[text.count(letter) for letter in "aeiourst"] for text in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def model(monkeypatch):
    model = LetterCounts()
    monkeypatch.setattr(transforms, "_encoder", lambda cache_directory: model)
    return model


def test_an_items_text_has_its_parts_in_the_documented_order():
    assert item_text(ITEMS[0]) == "Red lipstick. Lipstick, Makeup. Rouge. Matte."
    assert item_text(Item(item_id="x", title=" Two\n words ", brand="B")) == "Two words. B"
    assert item_text(ITEMS[3]) == ""


@pytest.mark.slow
def test_a_text_is_embedded_once_and_items_without_a_text_have_no_vector(tmp_path, model):
    report = run(tmp_path)

    assert model.read == {item_text(ITEMS[0]): 1, item_text(ITEMS[2]): 1}
    assert (report.items, report.items_with_vector, report.dimensions) == (4, 3, 8)
    assert (report.texts_embedded, report.texts_cached) == (2, 0)
    np.testing.assert_array_equal(vector_of(tmp_path, "a"), vector_of(tmp_path, "b"))
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text()) == report.model_dump()


@pytest.mark.slow
def test_of_a_catalog_that_has_grown_only_the_new_text_is_embedded(tmp_path, model):
    run(tmp_path)
    before = vector_of(tmp_path, "a")
    model.read.clear()

    report = run(tmp_path, (*ITEMS, Item(item_id="new", title="Tin whistle")))

    assert model.read == {"Tin whistle": 1}
    assert (report.texts_embedded, report.texts_cached, report.items_with_vector) == (1, 2, 4)
    np.testing.assert_array_equal(vector_of(tmp_path, "a"), before)


@pytest.mark.slow
def test_a_damaged_vector_in_the_cache_is_counted_and_made_again(tmp_path, model):
    run(tmp_path)
    before = {item: vector_of(tmp_path, item) for item in "ac"}
    with sqlite3.connect(tmp_path / "cache" / CACHE_DIRECTORY / FILE_NAME) as file:
        (key, value) = file.execute("SELECT key, value FROM responses LIMIT 1").fetchone()
        file.execute("UPDATE responses SET value = ? WHERE key = ?", (value.replace("A", "B", 1), key))

    report = run(tmp_path)

    assert (report.texts_embedded, report.texts_cached, report.corrupt_cache_entries) == (1, 1, 1)
    for item, vector in before.items():
        np.testing.assert_array_equal(vector_of(tmp_path, item), vector)
    assert run(tmp_path).corrupt_cache_entries == 0


def test_a_file_gives_the_vectors_of_the_catalogs_items_as_it_has_them(tmp_path):
    given = np.array([[3, 4], [0, 2], [1, 1]], np.float16)
    np.savez(tmp_path / "v.npz", item_id=["c", "gone", "a"], vector=given)

    report = run(tmp_path, source="file", file=str(tmp_path / "v.npz"))

    assert (report.source, report.model, report.items_with_vector) == ("file", "v.npz", 2)
    found = read_item_vectors(str(tmp_path / "out" / VECTORS_FILE))
    assert found.row == {"a": 0, "c": 1}
    np.testing.assert_array_equal(found.vectors, given[[2, 0]])
    assert found.vectors.dtype == np.float16


def test_vectors_that_match_few_items_are_refused(tmp_path, model):
    np.savez(tmp_path / "v.npz", item_id=["x"], vector=np.ones((1, 2)))
    with pytest.raises(UserError, match=r"at least 20% of the items must have a vector, got 0 of 4 from source file"):
        run(tmp_path, source="file", file=str(tmp_path / "v.npz"))
    with pytest.raises(UserError, match=r"got 0 of 2 from source bundled; write titles into data.items"):
        run(tmp_path, (Item(item_id="x"), Item(item_id="y")))


@pytest.mark.parametrize("values", [{"source": "file"}, {"file": "v.npz"}])
def test_a_file_goes_with_its_source(values):
    with pytest.raises(ValueError, match=r"item_vectors.file goes with item_vectors.source: file, got source"):
        ItemVectorsConfig.model_validate(values)


@pytest.mark.slow
def test_the_bundled_model_tells_drums_from_lipsticks(tmp_path):
    embed = EmbedTexts(str(tmp_path))
    link_models(tmp_path)
    embed.setup()
    *pairs, counts = embed.process([("a", "Red lipstick"), ("b", "Lip colour"), ("c", "Wooden drum")])

    a, b, c = (np.frombuffer(vector, "<f4") for _, vector in pairs)
    assert a @ b > a @ c + 0.3
    assert Counts(*counts.value) == Counts(embedded=3)

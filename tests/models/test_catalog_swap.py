"""Another catalog in a model with item vectors: new items are ranked by their texts, and nothing else changes."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import signatures
from sllmr.models.errors import UserError
from sllmr.models.serving.catalog_swap import Swapped, swap_catalog
from tests.models import market
from tests.models.exporting import rank_request, raw_request
from tests.models.vector_market import VECTORS, export, train, with_items

pytestmark = pytest.mark.slow

NEW = {b"even": VECTORS[b"item4"], b"odd": VECTORS[b"item5"]}
HISTORIES = [["item2", "item6"], ["item3", "item7"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train(tmp_path_factory.mktemp("vocabularies"))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> tuple[str, str]:
    """Of a model, and of the same with two new items and without the first."""
    directory = tmp_path_factory.mktemp("swap")
    before, after = export(model, directory / "before"), str(directory / "after")
    columns = with_items(["even", "odd", "without a vector"], dropped=1)
    assert swap_catalog(before, after, columns, VECTORS | NEW) == Swapped(unseen=3, with_vector=2)
    return before, after


@functools.cache
def loaded(directory: str) -> tf.Module:
    return tf.saved_model.load(directory)


def ranked(directory: str, histories: list[list[str]], candidates: list[str]) -> np.ndarray:
    """Scores [users, candidates]."""
    rank = loaded(directory).signatures[signatures.RANK]
    return rank(**rank_request(histories, [candidates] * len(histories)))[signatures.SCORES].numpy()


def test_a_new_item_near_the_history_outranks_one_far_from_it(folders):
    even, odd = ranked(folders[1], HISTORIES, ["even", "odd"])

    assert even[0] > even[1] + 0.2
    assert odd[1] > odd[0] + 0.2


def test_a_new_item_in_the_history_counts_in_the_text_match(folders):
    of_even, of_odd = ranked(folders[1], [["even"], ["odd"]], ["item8", "item9", "even", "odd"])

    assert of_even[0] > of_odd[0]
    assert of_even[1] < of_odd[1]
    assert of_even[2] - of_even[3] > of_odd[2] - of_odd[3]


def test_known_items_and_items_outside_the_catalog_score_as_before(folders):
    known = market.ITEMS[1:]
    before, after = (ranked(folder, HISTORIES, [*known, "nowhere"]) for folder in folders)

    np.testing.assert_allclose(after, before, atol=1e-6)
    without_vector = ranked(folders[1], HISTORIES, ["nowhere", "without a vector"])
    np.testing.assert_array_equal(without_vector[:, 0], without_vector[:, 1])


def test_rank_and_raw_agree_on_new_and_known_items(folders):
    histories = [["even", "item3"], ["nowhere", "odd", "item2"], []]
    candidates = [["item4", "odd", "nowhere"], ["even", "item5", "item1"], ["odd", "item6", "without a vector"]]
    served = loaded(folders[1]).signatures

    scores = served[signatures.RANK](**rank_request(histories, candidates))[signatures.SCORES].numpy()
    raw = served[signatures.RAW](**raw_request(histories, candidates))[signatures.SCORES].numpy()

    np.testing.assert_allclose(scores, raw.reshape(3, 3), atol=1e-6)


def test_an_item_that_left_the_catalog_keeps_its_vector_in_the_signatures_of_rows(folders):
    request = raw_request([["item0", "item2"]], [["item0", "item4"]])
    before, after = (loaded(folder).signatures[signatures.RAW](**request) for folder in folders)

    np.testing.assert_allclose(after[signatures.SCORES], before[signatures.SCORES], atol=1e-6)


def test_a_swap_is_what_an_export_with_that_catalog_would_be(model, folders, tmp_path):
    columns = with_items(["other", "odd", "even"], dropped=2)
    vectors = NEW | {b"other": VECTORS[b"item9"]}
    exported = export(model, tmp_path / "exported", columns, catalog_vectors=vectors)
    swap_catalog(folders[1], str(tmp_path / "swapped"), columns, vectors)
    histories, candidates = [["odd", "item5"], ["other"]], ["even", "item7", "other", "item1"]

    swapped = ranked(str(tmp_path / "swapped"), histories, candidates)

    np.testing.assert_allclose(swapped, ranked(exported, histories, candidates), atol=1e-6)
    assert np.ptp(swapped) > 0.1


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        ({b"even": np.ones(3, np.float32)}, r"vectors of \[3\] numbers where the model has 8"),
        ({i: np.roll(v, 4) for i, v in (VECTORS | NEW).items()}, r"have the median -?\d\.\d+ on 12 items"),
    ],
    ids=["width", "space"],
)
def test_vectors_of_another_model_are_refused(folders, tmp_path, vectors, problem):
    with pytest.raises(UserError, match=problem):
        swap_catalog(folders[0], str(tmp_path / "swapped"), with_items(["even", "odd"]), vectors)
    assert not (tmp_path / "swapped").exists()

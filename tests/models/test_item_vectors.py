import numpy as np
import pytest

from sllmr.models.errors import UserError
from sllmr.models.item_vectors import read_item_vectors


def write(path, item_ids, vectors) -> str:
    np.savez(path, item_id=np.array(item_ids), vector=np.array(vectors, np.float16))
    return str(path)


def test_vectors_stand_at_the_index_of_their_item_and_have_length_one(tmp_path):
    read = read_item_vectors(write(tmp_path / "v.npz", ["b", "a", "x"], [[3, 4], [0, 2], [1, 1]]))

    table = read.by_index(["a", "unseen", "b"])

    np.testing.assert_allclose(table, [[0, 0], [0, 1], [0, 0], [0.6, 0.8], [0, 0]], atol=1e-3)
    assert table.dtype == np.float32


def test_a_vector_without_direction_counts_as_none(tmp_path):
    read = read_item_vectors(write(tmp_path / "v.npz", ["a", "b", "c"], [[0, 0], [np.nan, 1], [1, 0]]))

    assert set(read.row) == {"c"}
    np.testing.assert_array_equal(read.by_index(["a", "b"]), np.zeros((4, 2)))


@pytest.mark.parametrize(
    ("item_ids", "vectors", "message"),
    [
        (["a", "a"], [[1, 0], [0, 1]], r"item_id must be unique, got 1 repeated"),
        (["a"], [[1, 0], [0, 1]], r"must hold item_id, strings \[items\]"),
        ([1, 2], [[1, 0], [0, 1]], r"must hold item_id, strings \[items\]"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, item_ids, vectors, message):
    with pytest.raises(UserError, match=message):
        read_item_vectors(write(tmp_path / "v.npz", item_ids, vectors))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"must be an .npz with `item_id` .* got /nowhere.npz"):
        read_item_vectors("/nowhere.npz")

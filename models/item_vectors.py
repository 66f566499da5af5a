"""Vectors of items from a file, as ItemEmbedder or a person writes them."""

import hashlib
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from sllmr.models import artifact_files
from sllmr.models.errors import UserError

VECTORS_FILE = "vectors.npz"
"""In the artifact of ItemEmbedder: see read_item_vectors."""


class ItemVectors(BaseModel):
    """What a file of vectors holds.

    Attributes:
        row: item id -> row of `vectors`; without the items whose vector is zero or not finite, which have no
            direction.
        vectors: floats [items, dimensions], as stored.
        digest: start of the file's SHA-256.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    row: dict[str, int]
    vectors: np.ndarray
    digest: str

    def by_index(self, vocabulary: Sequence[str]) -> np.ndarray:
        """Unit vectors in the order of the transform graph's indices, float32 [V + 2, dimensions].

        Padding, unknown items and items without a vector get zeros.

        Args:
            vocabulary: item ids; number n has the index n + 1.
        """
        table = np.zeros((len(vocabulary) + 2, self.vectors.shape[1]), np.float32)
        known = [(n + 1, self.row[item_id]) for n, item_id in enumerate(vocabulary) if item_id in self.row]
        if known:
            indices, rows = map(list, zip(*known, strict=True))
            table[indices] = unit(self.vectors[rows])
        return table

    def by_id(self, item_ids: Iterable[str]) -> dict[bytes, np.ndarray]:
        """Unit vectors, float32 [dimensions], by encoded id; items without a vector are left out."""
        return {i.encode(): unit(self.vectors[self.row[i]]) for i in item_ids if i in self.row}


def read_item_vectors(path: str) -> ItemVectors:
    """Reads a NumPy .npz with `item_id`, strings [items], and `vector`, floats [items, dimensions].

    Raises:
        UserError: the file is missing or not as described.
    """
    try:
        with artifact_files.open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        with artifact_files.open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            item_ids, vectors = archive["item_id"], archive["vector"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"a file of item vectors must be an .npz with `item_id` (strings) and `vector` (floats), got {path}, "
            f"which cannot be read so: {error}; write it with numpy.savez"
        ) from None
    if (
        item_ids.dtype.kind not in "US"
        or item_ids.ndim != 1
        or vectors.ndim != 2
        or vectors.dtype.kind != "f"
        or len(item_ids) != len(vectors)
    ):
        raise UserError(
            f"a file of item vectors must hold item_id, strings [items], and vector, floats [items, dimensions], got "
            f"{item_ids.dtype} {item_ids.shape} and {vectors.dtype} {vectors.shape} in {path}; write it anew"
        )
    names = np.char.decode(item_ids, "utf-8") if item_ids.dtype.kind == "S" else item_ids
    row = {str(name): n for n, name in enumerate(names)}
    if len(row) != len(names):
        raise UserError(f"item_id must be unique, got {len(names) - len(row)} repeated ones in {path}; remove them")
    for n in np.flatnonzero(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)):
        del row[str(names[n])]
    return ItemVectors(row=row, vectors=vectors, digest=digest)


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 of length 1 along the last axis."""
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

"""ItemEmbedder's Beam part: texts to vectors by the bundled model, each text once."""

import base64
import functools
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import numpy as np

from sllmr.components.item_embedder.weights import MODEL, SHA256, WEIGHTS, fetch_embedding_model
from sllmr.components.llm_scorer.requests.cache import ResponseCache

if TYPE_CHECKING:
    from sllmr.components.item_embedder.text_encoder import TextEncoder

COUNTS = "counts"
CACHE_DIRECTORY = "item_vectors"
"""In cache_dir: vectors by model and text, apart from the responses that were paid for."""

BATCH_SIZE = 2048
"""Texts that are embedded and then cached together: enough that many share a length, half a minute of work."""


class Counts(NamedTuple):
    """How many texts were embedded, and how many were in the cache.

    Attributes:
        embedded: texts that the model read in this run.
        cached: texts whose vector was in the cache.
        corrupt_cache_entries: vectors in the cache that were damaged; their texts were embedded again.
    """

    embedded: int = 0
    cached: int = 0
    corrupt_cache_entries: int = 0


class EmbedTexts(beam.DoFn):
    """A batch of (item id, text) -> (item id, bytes of its float32 vector) each, and one Counts tagged COUNTS.

    Args:
        cache_directory: cache_dir of the run. Vectors are kept by model and text, so only the new texts of a catalog
            that has grown are embedded. A damaged entry is counted, and its text is embedded again.
    """

    def __init__(self, cache_directory: str):
        self._cache_directory = cache_directory

    def setup(self) -> None:
        self._cache = ResponseCache(os.path.join(self._cache_directory, CACHE_DIRECTORY))

    def teardown(self) -> None:
        self._cache.close()

    def process(self, batch: list[tuple[str, str]]) -> Iterator[Any]:
        known = {text: self._known(text) for _, text in batch}
        missing = sorted(text for text, vector in known.items() if vector is None)
        if missing:
            known.update(zip(missing, self._embed(missing), strict=True))
        yield from ((item_id, known[text]) for item_id, text in batch)
        counts = Counts(
            embedded=len(missing),
            cached=len(known) - len(missing),
            corrupt_cache_entries=self._cache.take_corrupt(),
        )
        yield beam.pvalue.TaggedOutput(COUNTS, tuple(counts))

    def _known(self, text: str) -> bytes | None:
        entry = self._cache.get(_key(text))
        return None if entry is None else base64.b64decode(entry[0]["vector"])

    def _embed(self, texts: list[str]) -> list[bytes]:
        vectors = [vector.astype("<f4").tobytes() for vector in _encoder(self._cache_directory).encode(texts)]
        self._cache.put_all(
            (
                (_key(text), {"vector": base64.b64encode(vector).decode()})
                for text, vector in zip(texts, vectors, strict=True)
            ),
            answered_at=int(time.time()),
        )
        return vectors


def sum_counts(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The sums of Counts, by field."""
    return tuple(map(sum, zip(*counts, strict=True))) or Counts()


def to_vectors(pairs: list[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Item ids, strings [items], sorted, and their vectors, float32 [items, dimensions]."""
    pairs = sorted(pairs)
    vectors = np.frombuffer(b"".join(vector for _, vector in pairs), "<f4")
    rows = vectors.reshape(len(pairs), -1) if pairs else np.zeros((0, 1), np.float32)
    return np.array([item_id for item_id, _ in pairs], dtype=np.str_), rows


@functools.lru_cache(maxsize=1)
def _encoder(cache_directory: str) -> "TextEncoder":
    """Loads the encoder once per process, and only if needed: loading TensorFlow takes longer than a few texts."""
    from sllmr.components.item_embedder.text_encoder import TextEncoder

    return TextEncoder(fetch_embedding_model(os.path.join(cache_directory, "models")))


def _key(text: str) -> str:
    return hashlib.sha256(f"{MODEL}\n{SHA256[WEIGHTS]}\n{text}".encode()).hexdigest()

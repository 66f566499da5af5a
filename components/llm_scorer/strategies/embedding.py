"""The cheap teacher: how near a candidate's vector lies to the history's. Vectors from an endpoint or from a file."""

import base64
import binascii
import functools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from components.catalog import Item
from components.llm_scorer import exchange
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import Answer, CandidateResult, Context, LlmRequest
from components.llm_scorer.item_text import describe, told_history
from components.llm_scorer.prompt import load_prompt
from models.item_vectors import ItemVectors, read_item_vectors, unit

_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"item": ("item",)}


class EndpointEmbedding:
    """Cosine of candidate and history by vectors from /v1/embeddings.

    raw_score = max over the latest `history_items` items h of cos(candidate, h), in [-1, 1].
    llm_score = (1 + raw_score) / 2.

    One request for each item's text; contexts share them through the cache, so a catalogue is asked about once.

    The best cosine and not the mean one: the middle of a history of several tastes is like none of them.
    """

    def __init__(self, config: LlmConfig):
        self._config = config
        self._prompt = load_prompt("embedding.v1.txt", config.prompt_file, _PLACEHOLDERS)
        self.prompt_version = self._prompt.version

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        items = told_history(context, catalog, self._config) + [catalog[c.item_id] for c in context.candidates]
        return tuple(self._request(self._prompt.fill("item", item=describe(item))) for item in items)

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        count = len(context.candidates)
        history = []
        for answer in answers[:-count]:
            vector = _vector_or_answer(answer)
            if isinstance(vector, Answer):
                # A score by a part of the history would change once the rest is there.
                return [_failed(c.item_id, vector.reason, vector.detail) for c in context.candidates]
            history.append(vector)
        results = []
        for candidate, answer in zip(context.candidates, answers[-count:], strict=True):
            vector = _vector_or_answer(answer)
            if isinstance(vector, Answer):
                results.append(_failed(candidate.item_id, vector.reason, vector.detail))
            elif any(vector.shape != other.shape for other in history):
                results.append(_failed(candidate.item_id, exchange.INVALID_RESPONSE, "vectors differ in length"))
            else:
                best = float(np.max(np.stack(history) @ vector))
                results.append(_scored(candidate.item_id, best))
        return results

    def _request(self, text: str) -> LlmRequest:
        return LlmRequest(
            kind=exchange.EMBEDDING,
            model=self._config.model,
            prompt_version=self.prompt_version,
            body={"input": text},
            max_tokens=0,
            expected_tokens=0,
        )


class FileEmbedding:
    """The same score by vectors from a file; nothing is asked. Items without a vector are left out of a history.

    The file is a NumPy .npz with `item_id`, strings [items], and `vector`, floats [items, dimensions]; vectors need
    not have unit length.
    """

    def __init__(self, config: LlmConfig):
        """
        Raises:
            LlmError: the file is missing or not as described.
        """
        file = vectors_in_file(config)
        self._config = config
        self._row, self._vectors = file.row, file.vectors
        self._written_at = int(os.stat(str(config.embedding_file)).st_mtime)
        self.prompt_version = f"embedding_file-{file.digest}"

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        return ()

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        past = context.history_item_ids[self._config.history_lag :]
        history = [self._row[i] for i in past if i in self._row][: self._config.history_items]
        if not history:
            detail = "no item of the history has a vector in llm.embedding_file"
            return [_failed(c.item_id, exchange.NO_VECTOR, detail) for c in context.candidates]
        known = [c.item_id for c in context.candidates if c.item_id in self._row]
        cosines = unit(self._vectors[[self._row[i] for i in known]]) @ unit(self._vectors[history]).T
        best = dict(zip(known, np.max(cosines, axis=1).tolist(), strict=True))
        return [
            _scored(c.item_id, best[c.item_id], self._written_at)
            if c.item_id in best
            else _failed(c.item_id, exchange.NO_VECTOR, "the item has no vector in llm.embedding_file")
            for c in context.candidates
        ]


def create_embedding(config: LlmConfig) -> EndpointEmbedding | FileEmbedding:
    """By a file where the configuration names one, else by the endpoint."""
    return EndpointEmbedding(config) if config.embedding_file is None else FileEmbedding(config)


def vectors_in_file(config: LlmConfig) -> ItemVectors:
    """The vectors of llm.embedding_file.

    Raises:
        LlmError: the file is missing or not as described.
    """
    path = str(config.embedding_file)
    try:
        status = os.stat(path)
    except OSError:
        raise LlmError(f"llm.embedding_file must be a file, got {path}") from None
    return _read_vectors(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _read_vectors(path: str, modified_ns: int, size: int) -> ItemVectors:
    """Once in a process while the file is unchanged."""
    try:
        return read_item_vectors(path)
    except ValueError as error:
        raise LlmError(f"llm.embedding_file: {error}") from None


def _vector_or_answer(answer: Answer) -> np.ndarray | Answer:
    """float32 [dimensions] of unit length; or the failed answer."""
    if answer.response is None:
        return answer
    try:
        vector = np.frombuffer(base64.b64decode(answer.response["vector"], validate=True), "<f4")
    except (KeyError, TypeError, ValueError, binascii.Error):
        return Answer(reason=exchange.INVALID_RESPONSE, detail="the stored answer holds no vector")
    if not vector.size or not np.isfinite(vector).all() or not vector.any():
        return Answer(reason=exchange.NO_VECTOR, detail="the endpoint's vector is zero or not finite")
    return unit(vector)


def _scored(item_id: str, cosine: float, scored_at: int | None = None) -> CandidateResult:
    # Rounding can carry a cosine a little beyond 1.
    cosine = min(1.0, max(-1.0, cosine))
    return CandidateResult(item_id=item_id, llm_score=(1 + cosine) / 2, raw_score=cosine, scored_at=scored_at)


def _failed(item_id: str, reason: str, detail: str) -> CandidateResult:
    return CandidateResult(item_id=item_id, reason=reason, detail=detail)

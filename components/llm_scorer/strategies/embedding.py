"""The cheap LLM scorer: how near a candidate's vector lies to the history's. The vectors are ItemEmbedder's."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Answer, CandidateResult, Context, Failure, LlmRequest
from sllmr.models import artifact_files
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import ItemVectors, read_item_vectors, unit

WITHOUT_VECTORS = "item_vectors"
"""Version of the strategy before the vectors are there."""


class Embedding:
    """Cosine of candidate and history by item vectors; no request is sent.

    raw_score = max over the latest `history_items` items h of cos(candidate, h), in [-1, 1].
    llm_score = (1 + raw_score) / 2.

    The best cosine and not the mean one: the middle of a history of several tastes is like none of them. Items without
    a vector are left out of a history.
    """

    def __init__(self, config: LlmConfig):
        """
        Args:
            config: resolved, with its item vectors; without them the strategy has a version and no results.

        Raises:
            LlmError: the file is missing or not one of vectors.
        """
        self._config = config
        self.prompt_version = WITHOUT_VECTORS
        if config.item_vectors_file is not None:
            file = vectors_in_file(config.item_vectors_file)
            self._row, self._vectors = file.row, file.vectors
            self._written_at = int(artifact_files.state(config.item_vectors_file).modified)
            self.prompt_version = f"{WITHOUT_VECTORS}-{file.digest}"

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        return ()

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        return None

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        past = context.history_item_ids[self._config.history_lag :]
        history = [self._row[i] for i in past if i in self._row][: self._config.history_items]
        if not history:
            detail = "no item of the history has a vector"
            return [_failed(c.item_id, detail) for c in context.candidates]
        known = [c.item_id for c in context.candidates if c.item_id in self._row]
        cosines = unit(self._vectors[[self._row[i] for i in known]]) @ unit(self._vectors[history]).T
        best = dict(zip(known, np.max(cosines, axis=1).tolist(), strict=True))
        return [
            _scored(c.item_id, best[c.item_id], self._written_at)
            if c.item_id in best
            else _failed(c.item_id, "the item has no vector")
            for c in context.candidates
        ]


def vectors_in_file(path: str) -> ItemVectors:
    """The vectors of the file.

    Raises:
        LlmError: the file is missing or not one of vectors.
    """
    try:
        state = artifact_files.state(path)
    except OSError:
        raise LlmError(f"item_vectors: the vectors must be in {path}, which is no file; run again") from None
    return _read_vectors(path, state)


@functools.lru_cache(maxsize=1)
def _read_vectors(path: str, state: artifact_files.FileState) -> ItemVectors:
    """Once in a process while the file is unchanged."""
    try:
        return read_item_vectors(path)
    except UserError as error:
        raise LlmError(f"item_vectors: {error}") from None


def _scored(item_id: str, cosine: float, scored_at: int) -> CandidateResult:
    # Rounding can carry a cosine a little beyond 1.
    cosine = min(1.0, max(-1.0, cosine))
    return CandidateResult(item_id=item_id, llm_score=(1 + cosine) / 2, raw_score=cosine, scored_at=scored_at)


def _failed(item_id: str, detail: str) -> CandidateResult:
    return CandidateResult(item_id=item_id, reason=messages.NO_VECTOR, detail=detail)

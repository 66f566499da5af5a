"""How an LLM is queried about a context's candidates, and how its response is read. One module a strategy.

A strategy turns a context into requests and answers into one result for each candidate, in the context's
order. It sends nothing itself, so it can be planned, tested and replayed without an LLM; one that scores by a file has
no requests.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import (
    EMBEDDING,
    LISTWISE,
    REPLAY,
    TITLE_LIKELIHOOD,
    YES_NO,
    AuditConfig,
    LlmConfig,
)
from sllmr.components.llm_scorer.messages import Answer, CandidateResult, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.strategies.embedding import Embedding
from sllmr.components.llm_scorer.strategies.listwise import Listwise
from sllmr.components.llm_scorer.strategies.replay import Replay
from sllmr.components.llm_scorer.strategies.title_likelihood import TitleLikelihood
from sllmr.components.llm_scorer.strategies.yes_no import YesNo


class Strategy(Protocol):
    """What the scorer needs of a strategy."""

    prompt_version: str

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        """What to send for a context, in the order in which a server's prefix cache serves best."""

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        """One result for each candidate, in order, then one with messages.UNKNOWN_ITEM for each item in the answers
        that the prompt did not name; `answers` match `requests` one by one.
        """

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        """Why a response to one of `requests` gives no candidate a score; None if it gives one.

        Only a response with a score is a cache hit. Any other is kept as a receipt for the bill.
        """


STRATEGIES: dict[str, Callable[[LlmConfig], Strategy]] = {
    LISTWISE: Listwise,
    TITLE_LIKELIHOOD: TitleLikelihood,
    YES_NO: YesNo,
    EMBEDDING: Embedding,
    REPLAY: Replay,
}


class ContentDigest:
    """Hash of what is sent to score a context: equal if model, prompt, history and candidates are equal.

    Only the part of the history that a prompt names counts. Whether a context is audited makes no difference.
    """

    def __init__(self, config: LlmConfig):
        """
        Args:
            config: resolved.
        """
        self._config = config
        self._strategy = create_strategy(config.model_copy(update={"audit": AuditConfig()}))

    def of(self, context: Context, catalog: Mapping[str, Item], requests: Sequence[LlmRequest] | None = None) -> str:
        """24 hexadecimal digits.

        Args:
            context: whose candidates count.
            catalog: all items.
            requests: the requests about exactly these candidates, in one order; if None, they are made here.
        """
        if requests is None:
            requests = self._strategy.requests(context, catalog)
        identity = [
            self._config.model,
            self._strategy.prompt_version,
            # Scores from a file have no requests: the history and candidates stand for what they depend on.
            context.history_item_ids[self._config.history_lag :][: self._config.history_items],
            [candidate.item_id for candidate in context.candidates],
            [request.content_key for request in requests],
        ]
        return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:24]


def create_strategy(config: LlmConfig) -> Strategy:
    """The configured strategy.

    Args:
        config: resolved.

    Raises:
        ValueError: unknown strategy, or a prompt file that does not fit it.
        LlmError: a file of vectors or scores that cannot be used.
    """
    if config.strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {sorted(STRATEGIES)}, got {config.strategy!r}; set llm.strategy")
    return STRATEGIES[config.strategy](config)

"""How much likelier a candidate's text becomes once the model has read the history."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.tokens import count_tokens
from sllmr.components.llm_scorer.messages import Answer, CandidateResult, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.strategies.item_text import describe, told_history
from sllmr.components.llm_scorer.strategies.prompt import load_prompt

_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"with_history": ("history",), "without_history": ()}

_NOT_FINITE = "a token's log-probability is not finite"

SCALE_NATS = 5.0
"""Width of the map from nats to [0, 1]: about the spread of raw scores within a context."""


class TitleLikelihood:
    """Pointwise mutual information of candidate text and history.

    raw_score = log p(text | history) - log p(text | no history), in nats, summed over the text's tokens.
    llm_score = 1 / (1 + exp(-(raw_score - mean) / SCALE_NATS)), mean over the context's candidates. This keeps the
    order within a context, where pairs are made, and removes what a history adds to every text, mostly by its form.
    Scores of different contexts are not comparable.

    The second term of raw_score removes what makes a text likely without any history, such as a short or famous title.
    Each candidate takes two requests; those without a history recur between contexts and then come from the cache.
    The strategy needs a server that can force given tokens and return their log-probabilities, such as llama.cpp's.

    With the bundled model this is a weak content signal, nowhere near a large model's:
    benchmarks/results/local_server.jsonl records how often it prefers the item that a user interacted with next.
    """

    def __init__(self, config: LlmConfig):
        self._config = config
        self._prompt = load_prompt("title_likelihood.v1.txt", config.prompt_file, _PLACEHOLDERS)
        self.prompt_version = self._prompt.version

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        latest_last = reversed(told_history(context, catalog, self._config))
        after = self._prompt.fill("with_history", history=";".join(f" {describe(item)}" for item in latest_last))
        alone = self._prompt.fill("without_history")
        texts = [f" {describe(catalog[c.item_id])}" for c in context.candidates]
        # All requests of one prompt, then all of the other: each switch makes the server read a prompt anew.
        return tuple(self._request(prompt, text) for prompt in (after, alone) for text in texts)

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        count = len(context.candidates)
        gains = [_gain(answers[n], answers[count + n]) for n in range(count)]
        known = [gain for gain in gains if isinstance(gain, float)]
        mean = math.fsum(known) / max(len(known), 1)
        return [
            CandidateResult(item_id=candidate.item_id, llm_score=_squash(gain - mean), raw_score=gain)
            if isinstance(gain, float)
            else CandidateResult(item_id=candidate.item_id, reason=gain.reason, detail=gain.detail)
            for candidate, gain in zip(context.candidates, gains, strict=True)
        ]

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        if math.isfinite(_sum(response["token_logprobs"])):
            return None
        return Failure(reason=messages.NOT_A_NUMBER, detail=_NOT_FINITE)

    def _request(self, prompt: str, text: str) -> LlmRequest:
        return LlmRequest(
            kind=messages.FORCED,
            model=self._config.model,
            endpoint=self._config.endpoint_identity,
            prompt_version=self.prompt_version,
            body={"prompt": prompt, "text": text},
            # A token is at least one byte.
            max_tokens=len(text.encode()),
            expected_tokens=round(count_tokens(text, self._config.model)),
        )


def _gain(after: Answer, alone: Answer) -> float | Answer:
    """Nats that the history adds; or the answer that failed."""
    if after.response is None or alone.response is None:
        return after if after.response is None else alone
    nats = _sum(after.response["token_logprobs"]) - _sum(alone.response["token_logprobs"])
    if not math.isfinite(nats):
        return Answer(reason=messages.NOT_A_NUMBER, detail=_NOT_FINITE)
    return nats


def _sum(logprobs: Sequence[float]) -> float:
    """The sum; NaN where fsum raises, for infinities of both signs or a sum beyond a float's range."""
    try:
        return math.fsum(logprobs)
    except (ValueError, OverflowError):
        return math.nan


def _squash(nats: float) -> float:
    # 1 / (1 + exp(-x)) written so that it cannot overflow.
    return 0.5 * (1 + math.tanh(nats / SCALE_NATS / 2))

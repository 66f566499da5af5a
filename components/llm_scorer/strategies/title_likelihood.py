"""How much likelier a candidate's text becomes once the model has read the history."""

import math
from collections.abc import Mapping, Sequence

from components.catalog import Item
from components.llm_scorer import exchange
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Answer, CandidateResult, Context, LlmRequest
from components.llm_scorer.item_text import describe
from components.llm_scorer.prompt import load_prompt

_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"with_history": ("history",), "without_history": ()}
_EXPECTED_CHARACTERS_PER_TOKEN = 2.6

SCALE_NATS = 4.0
"""Width of the map from nats to [0, 1]."""


class TitleLikelihood:
    """Pointwise mutual information of candidate text and history.

    raw_score = log p(text | history) - log p(text | no history), in nats, summed over the text's tokens.
    llm_score = 1 / (1 + exp(-raw_score / SCALE_NATS)), which keeps the order and maps "the history tells
    nothing" to 0.5.

    The second term takes away what makes a text likely anyway: a short or famous title. Two requests a
    candidate; those without a history recur between contexts and then come from the cache. Needs a server
    that can force given tokens and tell their log-probabilities: llama.cpp's.
    """

    def __init__(self, config: LlmConfig):
        self._config = config
        self._prompt = load_prompt("title_likelihood.v1.txt", config.prompt_file, _PLACEHOLDERS)
        self.prompt_version = self._prompt.version

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        history = [catalog[i] for i in context.history_item_ids if i in catalog and catalog[i].title]
        latest_last = reversed(history[: self._config.history_items])
        after = self._prompt.fill(
            "with_history", history=";".join(f" {describe(item)}" for item in latest_last)
        )
        alone = self._prompt.fill("without_history")
        texts = [f" {describe(catalog[c.item_id])}" for c in context.candidates]
        # All of one prompt, then all of the other: each change costs the server a prompt.
        return tuple(self._request(prompt, text) for prompt in (after, alone) for text in texts)

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        count = len(context.candidates)
        return [
            _result(candidate.item_id, answers[n], answers[count + n])
            for n, candidate in enumerate(context.candidates)
        ]

    def _request(self, prompt: str, text: str) -> LlmRequest:
        return LlmRequest(
            kind=exchange.FORCED,
            model=self._config.model,
            prompt_version=self.prompt_version,
            body={"prompt": prompt, "text": text},
            # A token is at least one byte.
            max_tokens=len(text.encode()),
            expected_tokens=math.ceil(len(text) / _EXPECTED_CHARACTERS_PER_TOKEN),
        )


def _result(item_id: str, after: Answer, alone: Answer) -> CandidateResult:
    if after.response is None or alone.response is None:
        failed = after if after.response is None else alone
        return CandidateResult(item_id=item_id, reason=failed.reason, detail=failed.detail)
    nats = math.fsum(after.response["token_logprobs"]) - math.fsum(alone.response["token_logprobs"])
    if not math.isfinite(nats):
        return CandidateResult(
            item_id=item_id, reason=exchange.NOT_A_NUMBER, detail="a token has probability 0"
        )
    return CandidateResult(item_id=item_id, llm_score=_squash(nats), raw_score=nats)


def _squash(nats: float) -> float:
    # 1 / (1 + exp(-x)) written so that it cannot overflow.
    return 0.5 * (1 + math.tanh(nats / SCALE_NATS / 2))

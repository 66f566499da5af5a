"""One question a candidate, answered by one token: the probability of yes against no."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.messages import Answer, CandidateResult, Context, Failure, LlmRequest, failure_of
from sllmr.components.llm_scorer.strategies.item_text import describe, history_lines
from sllmr.components.llm_scorer.strategies.prompt import load_prompt
from sllmr.components.llm_scorer.strategies.response_json import refusal_detail

_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"system": (), "user": ("history", "candidate")}
_TOP_LOGPROBS = 20  # the most that OpenAI gives; vLLM's and llama.cpp's defaults give as many


class YesNo:
    """How much likelier the model says Yes than No.

    raw_score = log P(yes) - log P(no), in nats; P sums over the spellings among the likeliest tokens (` Yes`, `yes`).
    llm_score = P(yes) / (P(yes) + P(no)) = 1 / (1 + exp(-raw_score)).

    If only one of the two words is among the likeliest tokens, the other gets the probability of the least likely of
    them, which is an upper bound: a score is never surer than the response shows. If neither is, the candidate fails.

    Needs an endpoint that returns log-probabilities, and a model that can decide: the bundled one hardly can
    (benchmarks/results/local_server.jsonl).
    """

    def __init__(self, config: LlmConfig):
        self._config = config
        self._prompt = load_prompt("yes_no.v2.txt", config.prompt_file, _PLACEHOLDERS)
        self.prompt_version = self._prompt.version

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        history, names = history_lines(context, catalog, self._config), self._config.prompt_features.item
        texts = (describe(catalog[c.item_id], names, context.timestamp) for c in context.candidates)
        return tuple(self._request(history, text) for text in texts)

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        return [_result(c.item_id, answer) for c, answer in zip(context.candidates, answers, strict=True)]

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        return failure_of([_result("", Answer(response=response))])

    def _request(self, history: str, candidate: str) -> LlmRequest:
        body: dict[str, Any] = {
            "messages": [
                {"role": "system", "content": self._prompt.fill("system")},
                {"role": "user", "content": self._prompt.fill("user", history=history, candidate=candidate)},
            ],
            "logprobs": True,
            "top_logprobs": _TOP_LOGPROBS,
            "seed": self._config.seed,
        }
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        body.update(self._config.extra_body)
        return LlmRequest(
            kind=messages.CHAT,
            model=self._config.model,
            endpoint=self._config.endpoint_identity,
            prompt_version=self.prompt_version,
            body=body,
            max_tokens=self._config.max_output_tokens or 1,
            expected_tokens=1,
        )


def _result(item_id: str, answer: Answer) -> CandidateResult:
    def failed(reason: str, detail: str) -> CandidateResult:
        return CandidateResult(item_id=item_id, reason=reason, detail=detail)

    if answer.response is None:
        return failed(answer.reason, answer.detail)
    choice = answer.response["choices"][0]
    if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
        return failed(messages.REFUSED, refusal_detail(choice["message"]))
    if choice.get("finish_reason") == "error":
        return failed(messages.INVALID_RESPONSE, "the endpoint ended the answer with an error")
    try:
        shown = choice["logprobs"]["content"][0]["top_logprobs"]
        tokens = [(str(token["token"]), float(token["logprob"])) for token in shown]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return failed(
            messages.INVALID_RESPONSE, "the response holds no top_logprobs; use an endpoint that returns them"
        )
    if len(tokens) < 2:
        # The missing word would count as likely as the only one that is shown: a score of .5 that says nothing.
        return failed(
            messages.INVALID_RESPONSE,
            f"the response shows {len(tokens)} of the likeliest tokens, not the {_TOP_LOGPROBS} requested",
        )
    # Endpoints write tokens that were cut by their sampler as -inf or -9999: those say nothing.
    tokens = [(text.strip().lower(), logprob) for text, logprob in tokens if -1000 < logprob <= 1e-6]
    found = {word: [logprob for text, logprob in tokens if text == word] for word in ("yes", "no")}
    if not found["yes"] and not found["no"]:
        return failed(messages.NO_VERDICT, f"neither yes nor no is among the {_TOP_LOGPROBS} likeliest tokens")
    if len(tokens) < 2:
        return failed(messages.NO_VERDICT, "all but one of the likeliest tokens were cut by the endpoint's sampler")
    least = min(logprob for _, logprob in tokens)
    raw_score = _log_sum(found["yes"] or [least]) - _log_sum(found["no"] or [least])
    # The logistic function, written so that it cannot overflow.
    return CandidateResult(item_id=item_id, llm_score=0.5 * (1 + math.tanh(raw_score / 2)), raw_score=raw_score)


def _log_sum(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(logprob - highest) for logprob in logprobs))

"""The paper's prompt: one request describes the history and asks for a score in [0, 1] of each candidate."""

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.capabilities import REASONING_TOKENS
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.messages import (
    Answer,
    Candidate,
    CandidateResult,
    Context,
    Failure,
    LlmRequest,
    failure_of,
)
from sllmr.components.llm_scorer.quality.audit import is_audited
from sllmr.components.llm_scorer.quality.canary import PLANTED, counts_of, has_canary
from sllmr.components.llm_scorer.strategies.item_text import describe, history_lines
from sllmr.components.llm_scorer.strategies.prompt import load_prompt
from sllmr.components.llm_scorer.strategies.response_json import read_scores, refusal_detail

_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"system": (), "user": ("history", "count", "candidates")}
_TOKENS_PER_CANDIDATE = 24
_TOKENS_AROUND = 32
_EXPECTED_PER_CANDIDATE = 11
_EXPECTED_AROUND = 8

MAX_UNKNOWN_ITEMS = 100
"""Entries of one response that name no candidate and are reported; a response of 32 MB has room for a million."""

# The strictest common subset of what endpoints enforce: every field required, nothing further, no ranges or
# lengths.
_RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "candidate_scores",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "scores": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"item": {"type": "integer"}, "score": {"type": "number"}},
                        "required": ["item", "score"],
                        "additionalProperties": False,
                    },
                }
            },
            "required": ["scores"],
            "additionalProperties": False,
        },
    },
}


class Listwise:
    """Structured JSON over numbered candidates.

    Candidates carry short numbers instead of ids and stand in an order permuted by a hash of seed and
    context, so that neither the order of the sources nor the ids' looks can sway the model. raw_score =
    llm_score = the model's number. A response that is refused, truncated or without JSON (response_json.py) scores
    nothing, and neither does one with any score above 1: it is on another scale. Within a valid response, a candidate
    that is missing, repeated, not a number or below 0 fails alone, and an entry for none of the candidates is
    reported and scores nothing.

    A context that audit.py picks is queried a second time in the reverse order, so that every two candidates change
    sides. llm_score = raw_score = the mean of both numbers, in which a bias linear in the position cancels out.
    If any candidate lacks a score in one of the answers, there is no audit: the answer that scores more candidates
    counts alone, the first one if both score as many. A mean for one candidate and a single number for another would
    not be comparable.

    A context that canary.py picks gets one more request, with a planted item behind the candidates. Its response
    changes no score.

    Source: arXiv 2512.21526, the prompt of section 3 (history of ten, structured answer); wording and schema
    are ours.
    """

    def __init__(self, config: LlmConfig):
        self._config = config
        self._prompt = load_prompt("listwise.v2.txt", config.prompt_file, _PLACEHOLDERS)
        self.prompt_version = self._prompt.version

    def requests(self, context: Context, catalog: Mapping[str, Item]) -> tuple[LlmRequest, ...]:
        lines = history_lines(context, catalog, self._config)
        orders = [[catalog[candidate.item_id] for candidate in order] for order in self._orders(context)]
        if has_canary(context.context_id, self._config):
            orders.append([*orders[0], PLANTED])
        return tuple(self._request(lines, items, context.timestamp) for items in orders)

    def canary(self, context: Context, answers: Sequence[Answer]) -> Counter[str]:
        """What the planted item's response adds to the counters of canary.py; nothing without one."""
        if not has_canary(context.context_id, self._config):
            return Counter()
        candidates = self._orders(context)[0]
        planted = Candidate(item_id=PLANTED.item_id, role="")
        found = self._read([*candidates, planted], answers[-1])
        return counts_of(found[planted.item_id].llm_score, [found[c.item_id].llm_score for c in candidates])

    def results(self, context: Context, answers: Sequence[Answer]) -> list[CandidateResult]:
        orders = self._orders(context)
        answers = answers[: len(orders)]
        read = [self._read(order, answer) for order, answer in zip(orders, answers, strict=True)]
        unknown = [result for answer in answers for result in _unknown_items(len(orders[0]), answer)]
        return self._in_order_of(context, read) + unknown

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        numbered = [Candidate(item_id=str(n), role="") for n in range(1, request.candidates + 1)]
        return failure_of(self._read(numbered, Answer(response=response)).values())

    def _in_order_of(self, context: Context, read: Sequence[Mapping[str, CandidateResult]]) -> list[CandidateResult]:
        if len(read) == 1:
            return [read[0][c.item_id] for c in context.candidates]
        first, second = read
        answered = [(c.item_id, first[c.item_id].llm_score, second[c.item_id].llm_score) for c in context.candidates]
        means = [_mean(item_id, a, b) for item_id, a, b in answered if a is not None and b is not None]
        if len(means) == len(context.candidates):
            return means
        best = max(first, second, key=lambda results: sum(not r.reason for r in results.values()))
        return [best[c.item_id] for c in context.candidates]

    def _request(self, history: str, candidates: Sequence[Item], at: int) -> LlmRequest:
        names = self._config.prompt_features.item
        user = self._prompt.fill(
            "user",
            history=history,
            count=str(len(candidates)),
            candidates="\n".join(f"{n}. {describe(item, names, at)}" for n, item in enumerate(candidates, start=1)),
        )
        body: dict = {
            "messages": [
                {"role": "system", "content": self._prompt.fill("system")},
                {"role": "user", "content": user},
            ],
            "response_format": _RESPONSE_FORMAT,
            "seed": self._config.seed,
        }
        if self._config.temperature is not None:
            body["temperature"] = self._config.temperature
        body.update(self._config.extra_body)
        limit = self._config.max_output_tokens or _TOKENS_AROUND + _TOKENS_PER_CANDIDATE * len(candidates)
        if self._config.max_output_tokens is None and self._config.endpoint_capabilities.reasoning:
            limit += REASONING_TOKENS
        expected = min(limit, _EXPECTED_AROUND + _EXPECTED_PER_CANDIDATE * len(candidates))
        return LlmRequest(
            kind=messages.CHAT,
            model=self._config.model,
            endpoint=self._config.endpoint_identity,
            prompt_version=self.prompt_version,
            body=body,
            max_tokens=limit,
            # The bundled model goes on listing until it is cut.
            expected_tokens=limit if self._config.model == BUNDLED_MODEL else expected,
            candidates=len(candidates),
        )

    def _orders(self, context: Context) -> list[list[Candidate]]:
        """The one order, or in an audited context it and its reverse."""
        digest = hashlib.sha256(f"order\x1f{self._config.seed}\x1f{context.context_id}".encode()).digest()
        candidates = list(context.candidates)
        random.Random(int.from_bytes(digest)).shuffle(candidates)
        return [candidates, candidates[::-1]] if is_audited(context.context_id, self._config) else [candidates]

    def _read(self, candidates: Sequence[Candidate], answer: Answer) -> dict[str, CandidateResult]:
        def all_failed(reason: str, detail: str) -> dict[str, CandidateResult]:
            return {c.item_id: CandidateResult(item_id=c.item_id, reason=reason, detail=detail) for c in candidates}

        if answer.response is None:
            return all_failed(answer.reason, answer.detail)
        choice = answer.response["choices"][0]
        message = choice["message"]
        if message.get("refusal") or choice.get("finish_reason") == "content_filter":
            return all_failed(messages.REFUSED, refusal_detail(message))
        if choice.get("finish_reason") == "length":
            return all_failed(messages.TRUNCATED, "cut at the limit of tokens; raise llm.max_output_tokens")
        if choice.get("finish_reason") == "error":
            return all_failed(messages.INVALID_RESPONSE, "the endpoint ended the answer with an error")
        entries = _entries(answer)
        if entries is None:
            return all_failed(messages.INVALID_JSON, "the response is not the JSON that the prompt asks for")
        above = [score for score in map(_number_of_score, entries) if score is not None and score > 1]
        if above:
            # On a scale to 100 the scores 0 and 1 would look valid.
            return all_failed(
                messages.OUT_OF_RANGE,
                f"a score of the response is {above[0]!r:.20}, above 1; no score of it counts, as its scale is unknown",
            )
        found: dict[int, list] = {}
        for entry in entries:
            number = _number(entry)
            if number is not None:
                found.setdefault(number, []).append(entry.get("score"))
        return {c.item_id: _result(c.item_id, found.get(n, [])) for n, c in enumerate(candidates, start=1)}


def _entries(answer: Answer) -> list | None:
    """The entries that the answer lists, unchecked; None if it holds no such list."""
    if answer.response is None:
        return None
    scores = read_scores(answer.response["choices"][0]["message"])
    return None if scores is None else scores.entries


def _number_of_score(entry: object) -> float | None:
    score = entry.get("score") if isinstance(entry, dict) else None
    return score if type(score) in (int, float) else None


def _number(entry: object) -> int | None:
    number = entry.get("item") if isinstance(entry, dict) else None
    # Only an int counts, as the prompt asks: in Python, True is an int and 1.0 equals 1.
    return number if type(number) is int else None


def _unknown_items(count: int, answer: Answer) -> list[CandidateResult]:
    """One result for each entry that names none of the candidates 1 .. `count`, at most MAX_UNKNOWN_ITEMS."""
    found = (
        CandidateResult(item_id="", reason=messages.UNKNOWN_ITEM, detail=f"the answer lists {entry!r:.80}")
        for entry in _entries(answer) or ()
        if not 1 <= (_number(entry) or 0) <= count
    )
    return list(itertools.islice(found, MAX_UNKNOWN_ITEMS))


def _mean(item_id: str, first: float, second: float) -> CandidateResult:
    mean = (first + second) / 2
    return CandidateResult(item_id=item_id, llm_score=mean, raw_score=mean, order_llm_scores=(first, second))


def _result(item_id: str, scores: list) -> CandidateResult:
    def failed(reason: str, detail: str) -> CandidateResult:
        return CandidateResult(item_id=item_id, reason=reason, detail=detail)

    if not scores:
        return failed(messages.MISSING_ITEM, "the answer leaves the candidate out")
    if len(scores) > 1:
        return failed(messages.REPEATED_ITEM, f"the answer names the candidate {len(scores)} times")
    (score,) = scores
    if type(score) not in (int, float) or (type(score) is float and math.isnan(score)):
        return failed(messages.NOT_A_NUMBER, "the candidate's score is no number")
    if not 0 <= score <= 1:
        return failed(messages.OUT_OF_RANGE, f"the candidate's score is {score!r:.20}, not in [0, 1]")
    return CandidateResult(item_id=item_id, llm_score=float(score), raw_score=float(score))

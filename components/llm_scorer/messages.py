"""What travels between strategy, cache, client and parser: contexts, requests, answers."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any

CHAT = "chat"
FORCED = "forced_completion"
EMBEDDING = "embedding"
"""Kinds of request. CHAT: `body` goes to /chat/completions. FORCED: `body` is {prompt, text}; the answer
tells the log-probability of each token of `text` after `prompt` (llama.cpp servers). EMBEDDING: `body` is
{input}; the answer is the text's vector."""

TIMEOUT = "timeout"
CONNECTION = "connection"
RATE_LIMITED = "rate_limited"
SERVER_ERROR = "server_error"
BAD_REQUEST = "bad_request"
INVALID_RESPONSE = "invalid_response"
BUDGET_EXHAUSTED = "budget_exhausted"
REFUSED = "refused"
TRUNCATED = "truncated"
INVALID_JSON = "invalid_json"
MISSING_ITEM = "missing_item"
REPEATED_ITEM = "repeated_item"
NOT_A_NUMBER = "not_a_number"
OUT_OF_RANGE = "out_of_range"
NO_VERDICT = "no_verdict"
NO_VECTOR = "no_vector"
NOT_IN_TABLE = "not_in_table"
REASONS = (
    TIMEOUT,
    CONNECTION,
    RATE_LIMITED,
    SERVER_ERROR,
    BAD_REQUEST,
    INVALID_RESPONSE,
    BUDGET_EXHAUSTED,
    REFUSED,
    TRUNCATED,
    INVALID_JSON,
    MISSING_ITEM,
    REPEATED_ITEM,
    NOT_A_NUMBER,
    OUT_OF_RANGE,
    NO_VERDICT,
    NO_VECTOR,
    NOT_IN_TABLE,
)
"""Why a (context, item) got no score: the endpoint failed, the budget was used up, the response was not usable, or
a file of vectors or scores lacks the item."""

UNKNOWN_ITEM = "unknown_item"
"""An item in a response that the prompt did not name; it is listed with the failures but is not one of them."""


def user_key(user_id: str, seed: int) -> str:
    """Name that the contexts of one user share, and that does not tell the user id."""
    return hashlib.sha256(f"user\x1f{seed}\x1f{user_id}".encode()).hexdigest()[:24]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """An item to ask about, and why: a name of scores.ROLES."""

    item_id: str
    role: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """A user at a point in time in the train split, with the candidates to score.

    Attributes:
        context_id: hash of user, position and seed.
        history_item_ids: latest first, all strictly before that point.
        history_length: number of earlier positives, not cut.
        candidates: distinct items, none of them in the history.
        target_item_id: the item that the user interacted with then, in calibration contexts; else empty.
        user_id: empty unless llm.store_user_ids.
        user_key: hash of user and seed.
        user_positives: number of the user's positive train rows; for a replayed table, as of when it was planned.
        last_position: the position of the last of these rows; see scores.ScoreRecord.
        is_outdated: whether the scores are of an earlier table, and the user has had later positive train rows since.
        timestamp: of that point, Unix milliseconds; 0 without declared features.
        about_user: of the user at that point, `name: value` for each feature of llm.prompt_features.user that is known.
    """

    context_id: str
    history_item_ids: tuple[str, ...]
    history_length: int
    candidates: tuple[Candidate, ...]
    target_item_id: str = ""
    user_id: str = ""
    user_key: str = ""
    user_positives: int = 0
    last_position: int = 0
    is_outdated: bool = False
    timestamp: int = 0
    about_user: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Context":
        values = json.loads(text)
        if "chosen_item_id" in values:  # In a plan that an earlier version wrote: its batch may be paid for.
            values["target_item_id"] = values.pop("chosen_item_id")
        values.pop("scored_user_positives", None)
        values["history_item_ids"] = tuple(values["history_item_ids"])
        values["about_user"] = tuple(values.get("about_user", ()))
        values["candidates"] = tuple(Candidate(**c) for c in values["candidates"])
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlmRequest:
    """One call.

    Attributes:
        kind: CHAT, FORCED or EMBEDDING.
        body: of the request, JSON types only; with `model` and `prompt_version` it decides the response.
        max_tokens: upper bound of the answer's length.
        expected_tokens: the answer's likely length, for estimates.
        candidates: how many candidates one response scores.
        endpoint: LlmConfig.endpoint_identity: two servers may give the same name to different models.
    """

    kind: str
    model: str
    prompt_version: str
    body: dict[str, Any]
    max_tokens: int
    expected_tokens: int
    candidates: int = 1
    endpoint: str = ""

    @functools.cached_property
    def key(self) -> str:
        """Content address in the response cache: equal requests to the same endpoint have equal keys, whoever sends
        them, whenever.
        """
        return self._hash([self.endpoint]) if self.endpoint else self.content_key

    @functools.cached_property
    def content_key(self) -> str:
        """The key without the endpoint: that of an earlier version, and of endpoints without an identity."""
        return self._hash([])

    def _hash(self, endpoint: list[str]) -> str:
        identity = [self.model, self.kind, self.prompt_version, self.body, self.max_tokens, *endpoint]
        return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @property
    def prompt_bytes(self) -> int:
        """Size of everything that is sent, an upper bound of its tokens (a token is at least one byte)."""
        return len(json.dumps(self.body, ensure_ascii=False).encode())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one request: a response, or a reason from REASONS with a detail free of secrets.

    Attributes:
        response: CHAT: the endpoint's JSON. FORCED: {token_logprobs: [float], usage: {...}}.
            EMBEDDING: {vector: base64 of little-endian float32, usage: {...}}.
        answered_at: Unix seconds; for a cached answer the moment of the call.
    """

    response: dict[str, Any] | None = None
    reason: str = ""
    detail: str = ""
    cached: bool = False
    answered_at: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What a strategy read for one candidate: both scores, or neither and the reason.

    Attributes:
        llm_score: in [0, 1].
        raw_score: in the strategy's own unit.
        order_llm_scores: in an audited context, the score in each of the two orders; llm_score is their mean.
        scored_at: Unix seconds; set only if the score comes from a file and not from responses.
    """

    item_id: str
    llm_score: float | None = None
    raw_score: float | None = None
    order_llm_scores: tuple[float, float] | None = None
    reason: str = ""
    detail: str = ""
    scored_at: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one answer as the endpoint counts them; `cached_prompt` is part of `prompt`."""

    prompt: int = 0
    cached_prompt: int = 0
    completion: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt=self.prompt + other.prompt,
            cached_prompt=self.cached_prompt + other.cached_prompt,
            completion=self.completion + other.completion,
        )

    @classmethod
    def of(cls, response: dict[str, Any]) -> "Usage":
        """Reads an OpenAI `usage` object; what is missing or no number counts as 0."""
        usage = _mapping(response.get("usage"))
        prompt = _count(usage.get("prompt_tokens"))
        cached = _count(_mapping(usage.get("prompt_tokens_details")).get("cached_tokens"))
        completion = _count(usage.get("completion_tokens"))
        return cls(prompt=prompt, cached_prompt=min(cached, prompt), completion=completion)


_MOST_TOKENS = 10**9
"""No request takes more tokens. A larger count is not believed; sums of such counts would overflow SQLite's 64 bits."""

_BY_BATCH = "sllmr_by_batch"


def mark_as_by_batch(response: dict[str, Any]) -> dict[str, Any]:
    """The response with the mark that it came by the Batch API, at its price."""
    return {**response, _BY_BATCH: True}


def came_by_batch(response: dict[str, Any]) -> bool:
    """Whether a response came by the Batch API."""
    return _BY_BATCH in response


_OF_RUN = "sllmr_run"


def mark_as_failed(response: dict[str, Any], run_id: str) -> dict[str, Any]:
    """Marks a response without a score with the run that got it, so that this run does not send the request again."""
    return {**response, _OF_RUN: run_id}


def run_of_failure(response: dict[str, Any]) -> str:
    """The run that `mark_as_failed` noted; empty if it noted none."""
    return str(response.get(_OF_RUN, ""))


def failure_of(results: Iterable[CandidateResult]) -> "Failure | None":
    """None where any candidate has a score, else why the first has none."""
    first = None
    for result in results:
        if not result.reason:
            return None
        first = first or Failure(reason=result.reason, detail=result.detail)
    return first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a response gives no candidate a score: a reason of REASONS, and a detail."""

    reason: str
    detail: str


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if type(value) is int and 0 < value <= _MOST_TOKENS else 0

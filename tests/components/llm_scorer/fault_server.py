"""What an endpoint does wrong, mixed by a seed, with the truth about every answer it gave."""

import collections
import hashlib
import json
import math
import re
import threading
from typing import Any

from sllmr.components.llm_scorer import messages
from tests.components.llm_scorer.stub_server import (
    StubHandler,
    chat_response,
    cutting_body,
    cutting_header,
    dripping_body,
    echoing_key,
    failing,
)

Truth = dict[int, float | str]
"""What a listwise answer says of each numbered candidate: its score, or the reason why it has none."""

PASSING_ATTEMPTS = 3
"""So many first attempts at a request can meet a passing fault."""


def stalling(handler: StubHandler, body: dict[str, Any]) -> None:
    """Says nothing until the client hangs up."""
    handler.close_connection = True
    handler.connection.recv(1)


def garbage(handler: StubHandler, body: dict[str, Any]) -> None:
    """A proxy's page in place of an answer, with the request's own key in it."""
    handler.send_bytes(200, f"<html>busy, {handler.headers['Authorization']}</html>".encode())


PASSING = (
    ("429 with Retry-After", 4, failing(429, {"message": "slow down"}, {"Retry-After": "0.1"})),
    ("429 without", 2, failing(429, {"message": "slow down"})),
    ("503", 1, failing(503, {"message": "overloaded"}, {"retry-after-ms": "50"})),
    ("500", 8, failing(500, {"message": "oops"})),
    ("500 that tells the key", 3, echoing_key(500)),
    ("stall", 1, stalling),
    ("drip", 1, dripping_body),
    ("cut header", 5, cutting_header),
    ("cut body", 5, cutting_body),
    ("garbage", 5, garbage),
)
GOOD = "good"
FLAWED = (
    "extra",
    "missing",
    "repeated",
    "out of range",
    "not a number",
    "text",
    "other items",
    "refused",
    "truncated",
    "no JSON",
    "key in the answer",
)
HOPELESS = "hopeless"
_PASSING_SHARE = 0.4
_FLAWED_SHARE = 0.3
_HOPELESS_SHARE = 0.02


class Faults:
    """A StubServer's `always`: a request's content and how often it came decide what becomes of it.

    Attributes:
        hits: faults and answers by name.
        given: complete answers by content, as often as they were given.
        answers: complete answers so far; `changed` is notified of each.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._lock = threading.Lock()
        self._attempts: collections.Counter[str] = collections.Counter()
        self.hits: collections.Counter[str] = collections.Counter()
        self.given: collections.Counter[str] = collections.Counter()

    def __call__(self, handler: StubHandler, body: dict[str, Any]) -> None:
        content = content_of(body)
        with self._lock:
            self._attempts[content] += 1
            attempt = self._attempts[content]
        kind = self.kind(content)
        if kind == HOPELESS:
            self._count(HOPELESS)
            failing(500, {"message": "never"})(handler, body)
            return
        if attempt <= PASSING_ATTEMPTS and self._fraction(content, "passing?", attempt) < _PASSING_SHARE:
            drawn = self._fraction(content, "passing", attempt) * sum(weight for _, weight, _ in PASSING)
            for name, weight, reply in PASSING:
                drawn -= weight
                if drawn < 0:
                    self._count(name)
                    reply(handler, body)
                    return
        handler.send_json(200, self._answer(body, handler.headers["Authorization"]))
        with handler.server.changed:
            self._count(kind)
            self.given[content] += 1
            handler.server.changed.notify_all()

    def kind(self, content: str) -> str:
        """GOOD, HOPELESS or one of FLAWED: what every answer to this content is."""
        drawn = self._fraction(content, "kind", 0)
        if drawn < _HOPELESS_SHARE:
            return HOPELESS
        if drawn < _HOPELESS_SHARE + _FLAWED_SHARE:
            return FLAWED[int(self._fraction(content, "flaw", 0) * len(FLAWED))]
        return GOOD

    def truth(self, body: dict[str, Any]) -> Truth:
        """What must become of each candidate of the request."""
        content = content_of(body)
        numbers = numbers_of(body)
        truth: Truth = {n: self._score(content, n) for n in numbers}
        first = numbers[0]
        match self.kind(content):
            case "missing":
                truth[first] = messages.MISSING_ITEM
            case "repeated":
                truth[first] = messages.REPEATED_ITEM
            case "out of range":
                truth = dict.fromkeys(numbers, messages.OUT_OF_RANGE)
            case "not a number" | "text":
                truth[first] = messages.NOT_A_NUMBER
            case "other items":
                truth = dict.fromkeys(numbers, messages.MISSING_ITEM)
            case "refused":
                truth = dict.fromkeys(numbers, messages.REFUSED)
            case "truncated":
                truth = dict.fromkeys(numbers, messages.TRUNCATED)
            case "no JSON":
                truth = dict.fromkeys(numbers, messages.INVALID_JSON)
            case "hopeless":
                truth = dict.fromkeys(numbers, messages.SERVER_ERROR)
        return truth

    def unknown_items(self, body: dict[str, Any]) -> int:
        """Things in the request's answer that it did not ask about."""
        return {"extra": 2, "other items": len(numbers_of(body))}.get(self.kind(content_of(body)), 0)

    def _answer(self, body: dict[str, Any], authorization: str) -> dict[str, Any]:
        content = content_of(body)
        numbers = numbers_of(body)
        entries: list[Any] = [{"item": n, "score": self._score(content, n)} for n in numbers]
        match self.kind(content):
            case "extra":
                entries += [{"item": len(numbers) + 3, "score": 0.9}, {"item": "one", "score": 0.1}]
            case "missing":
                entries = entries[1:]
            case "repeated":
                entries.append(dict(entries[0]))
            case "out of range":
                entries[0]["score"] = 1.0 + entries[0]["score"]
            case "not a number":
                entries[0]["score"] = math.nan
            case "text":
                entries[0]["score"] = "0.5"
            case "other items":
                entries = [{"item": n + 100, "score": 0.5} for n in numbers]
            case "refused":
                return chat_response(entries, message={"content": None, "refusal": f"not for {authorization}"})
            case "truncated":
                return chat_response(entries, finish_reason="length")
            case "no JSON":
                return chat_response(entries, message={"content": "Sure! The first one.", "refusal": None})
            case "key in the answer":
                return {**chat_response(entries), "system_fingerprint": authorization}
        return chat_response(entries)

    def _score(self, content: str, number: int) -> float:
        return self._fraction(content, "score", number)

    def _fraction(self, content: str, purpose: str, number: int) -> float:
        digest = hashlib.sha256(f"{self._seed}|{content}|{purpose}|{number}".encode()).digest()
        return int.from_bytes(digest[:6]) / 2**48

    def _count(self, name: str) -> None:
        with self._lock:
            self.hits[name] += 1


def content_of(body: dict[str, Any]) -> str:
    """A request's content, whole."""
    return json.dumps(body["messages"], sort_keys=True)


def numbers_of(body: dict[str, Any]) -> list[int]:
    """The numbers of a listwise request's candidates."""
    return [int(n) for n in re.findall(r"^(\d+)\. ", body["messages"][-1]["content"], re.MULTILINE)]

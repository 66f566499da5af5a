"""Reads the scores in a chat response, also where the model wrapped the JSON that the prompt asked for.

Accepted: the JSON alone; one `<think>` block before it; a code fence or prose around exactly one JSON value; the
content as a list of text parts; the list of entries without the object around it. Everything else is refused: two
JSON values, a cut or damaged one, an object with a repeated key, another form.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

_LONGEST_WRAPPED = 1_000_000
"""Characters of a wrapped response; a longer one is refused."""

_THINKING = re.compile(r"\s*<(think|thinking|reasoning)>", re.IGNORECASE)
_END_OF_THINKING = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
_OPENING = re.compile(r"[\[{]")
_JSON_AHEAD = re.compile(r"\{\s*[\"}]|\[\s*[\[{\"]")
"""Brackets that begin JSON rather than a remark such as [1] or {sic}."""

_TEXT_PARTS = ("text", "output_text")
_SKIPPED_PARTS = ("thinking", "redacted_thinking", "reasoning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a response lists.

    Attributes:
        entries: one for each candidate that the model scored, unchecked.
        wrapped: whether anything but the JSON asked for was in the content.
    """

    entries: list[Any]
    wrapped: bool


def read_scores(message: Mapping[str, Any]) -> Scores | None:
    """The entries in a chat message; None where it holds no such JSON, or more than one."""
    content = message.get("content")
    text = _text(content)
    if text is None:
        return None
    try:
        value, wrapped = _loads(text), not isinstance(content, str)
    except (ValueError, RecursionError):
        value, wrapped = _only_value(text), True
    if isinstance(value, dict) and isinstance(value.get("scores"), list):
        return Scores(entries=value["scores"], wrapped=wrapped)
    if isinstance(value, list) and value and all(isinstance(e, dict) and {"item", "score"} <= set(e) for e in value):
        return Scores(entries=value, wrapped=True)
    return None


def is_wrapped(response: Mapping[str, Any] | None) -> bool:
    """Whether a chat response holds scores, but not as the expected JSON alone."""
    if response is None:
        return False
    scores = read_scores(response["choices"][0]["message"])
    return scores is not None and scores.wrapped


def refusal_detail(message: Mapping[str, Any]) -> str:
    """Why the model gave no scores, with its own words where it gave any."""
    words = message.get("refusal") or _text(message.get("content"))
    return f"the model refused to answer: {words:.200}" if isinstance(words, str) and words else "the model refused"


def _text(content: Any) -> str | None:
    """The text of a content, without the parts that hold reasoning; None where a part is no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind in _SKIPPED_PARTS:
            continue
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "".join(texts)


def _only_value(text: str) -> Any:
    """The one JSON object or list of objects within a text; None where there are none, several, or a damaged one."""
    text = _without_thinking(text)
    if len(text) > _LONGEST_WRAPPED:
        return None
    values = []
    position = 0
    while match := _OPENING.search(text, position):
        position = match.end()
        if _JSON_AHEAD.match(text, match.start()):
            try:
                value, position = _DECODER.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                return None
            values.append(value)
            if len(values) > 1:
                return None
    return values[0] if values else None


def _without_thinking(text: str) -> str:
    """The text behind the model's reasoning; empty where the reasoning never ends.

    The opening tag may be missing: some chat templates put it into the prompt.
    """
    *_, end = [0, *(match.end() for match in _END_OF_THINKING.finditer(text))]
    return "" if not end and _THINKING.match(text) else text[end:]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)

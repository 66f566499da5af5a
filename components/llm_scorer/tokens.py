"""How many tokens a request takes, told without a server and without a download.

Exact for the bundled model's tokenizer, whose merges lie in vocabulary/. Other models' are not at hand (OpenAI's would
have to be fetched): their counts are scaled from the bundled one's. That holds
least well for scripts that the tokenizers divide differently. What the first answers took corrects it: see estimate.py.
"""

import functools
import gzip
import importlib.resources
import json
import os.path
import re

from components.llm_scorer import exchange
from components.llm_scorer.config import BUNDLED_MODEL, OPENAI_BASE_URL, LlmConfig
from components.llm_scorer.exchange import LlmRequest, Usage

OTHER_VOCABULARIES = 0.925
"""Tokens by a vocabulary of 100,000 to 200,000 for one of SmolLM2's 49,152, in English."""

OTHER_VOCABULARIES_NON_ASCII = 0.4
"""The same for words in other alphabets or with accents, which SmolLM2 knows byte by byte."""

_FRAME_TOKENS = 64
"""Tokens that a chat template puts around the messages, at most."""

_PER_MESSAGE = 5
_TO_OPEN_THE_ANSWER = 4
"""What SmolLM2's chat template puts around a message and after the last one; OpenAI's takes one less each time."""

_MERGES = "smollm2_merges.txt.gz"
# GPT-2's pieces, with single digits as SmolLM2 takes them, or up to three as OpenAI's and Llama's tokenizers do.
_PIECES = r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+|%s| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"
_SINGLE_DIGITS = re.compile(_PIECES % r"\d")
_DIGITS_BY_THREE = re.compile(_PIECES % r"\d{1,3}")


def expected_usage(request: LlmRequest, config: LlmConfig) -> Usage:
    """Likely tokens of one call that finds nothing in the server's cache.

    Args:
        config: resolved.
    """
    if request.kind == exchange.CHAT:
        messages = request.body["messages"]
        prompt = sum(count_tokens(message["content"], request.model) + _PER_MESSAGE for message in messages)
        prompt += _TO_OPEN_THE_ANSWER
        if config.base_url == OPENAI_BASE_URL and "response_format" in request.body:
            # OpenAI shows the schema to the model; vLLM and llama.cpp compile it into a grammar.
            schema = request.body["response_format"]["json_schema"]
            prompt += count_tokens(json.dumps(schema, separators=(",", ":")), request.model)
    else:
        prompt = count_tokens(prompt_text(request), request.model)
    return Usage(prompt=round(prompt), completion=request.expected_tokens)


def dearest_usage(request: LlmRequest) -> Usage:
    """The most tokens that one call can take: a token is at least one byte."""
    return Usage(prompt=request.prompt_bytes + _FRAME_TOKENS, completion=request.max_tokens)


def expected_cached_prompt(request: LlmRequest, previous: LlmRequest, config: LlmConfig) -> int:
    """Tokens of a prompt that the server still has from the call before, of the same context.

    The bundled model's server keeps all that two prompts begin with; OpenAI's API keeps beginnings of 1,024 tokens or
    more, in steps of 128; of other endpoints nothing is known, so nothing is expected.

    Args:
        config: resolved.
    """
    if not (config.uses_local_server or config.base_url == OPENAI_BASE_URL):
        return 0
    shared = os.path.commonprefix([prompt_text(previous), prompt_text(request)])
    tokens = round(count_tokens(shared, request.model))
    if config.uses_local_server:
        return tokens
    return tokens // 128 * 128 if tokens >= 1024 else 0


def prompt_text(request: LlmRequest) -> str:
    """All that the model reads, without its chat template."""
    if request.kind == exchange.CHAT:
        return "\n".join(message["content"] for message in request.body["messages"])
    return request.body["prompt"] if request.kind == exchange.FORCED else request.body["input"]


def count_tokens(text: str, model: str) -> float:
    """Tokens of a text for a model: whole for BUNDLED_MODEL, an estimate for any other."""
    # By lines, which recur between prompts: an item's title stands in many of them.
    return sum(_line_tokens(line, model == BUNDLED_MODEL) for line in text.splitlines(keepends=True))


@functools.lru_cache(maxsize=1 << 16)
def _line_tokens(line: str, exact: bool) -> float:
    if exact:
        return sum(_piece_tokens(piece) for piece in _SINGLE_DIGITS.findall(line))
    return sum(_piece_elsewhere(piece) for piece in _DIGITS_BY_THREE.findall(line))


def _piece_elsewhere(piece: str) -> float:
    if piece.isdigit():
        return 1
    return _piece_tokens(piece) * (OTHER_VOCABULARIES if piece.isascii() else OTHER_VOCABULARIES_NON_ASCII)


@functools.lru_cache(maxsize=1 << 16)
def _piece_tokens(piece: str) -> int:
    """Byte-pair encoding: the pair of lowest rank is merged until none is left that has one."""
    ranks, byte_characters = _vocabulary()
    parts = [byte_characters[byte] for byte in piece.encode("utf-8", "replace")]
    while len(parts) > 1:
        rank, first = min((ranks.get((parts[n], parts[n + 1]), len(ranks)), n) for n in range(len(parts) - 1))
        if rank == len(ranks):
            break
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return len(parts)


@functools.cache
def _vocabulary() -> tuple[dict[tuple[str, str], int], list[str]]:
    """Rank of each merge, and the visible character that stands for each byte in them."""
    packed = (importlib.resources.files(__package__) / "vocabulary" / _MERGES).read_bytes()
    ranks: dict[tuple[str, str], int] = {}
    for line in gzip.decompress(packed).decode().split("\n")[:-1]:
        left, right = line.split(" ")
        ranks[left, right] = len(ranks)
    # GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return ranks, [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]

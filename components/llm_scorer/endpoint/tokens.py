"""Counts the tokens of a request, without a server and without a download.

The count is exact for the bundled model's tokenizer, whose merges are in vocabulary/. Other models' tokenizers are not
at hand (OpenAI's would have to be fetched), so their counts are scaled from the bundled one's. The scale is least
accurate for scripts that the tokenizers divide differently. The token counts of the first responses correct it: see
estimate.py.
"""

import functools
import gzip
import importlib.resources
import json
import os.path
import re
from typing import TYPE_CHECKING

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.capabilities import is_openai
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.messages import LlmRequest, Usage

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

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
_ABSENT = "\u0104\u0106\u0113\u0114\u0116\u011dÀÁñòõö÷øùúûüýþÿ"
"""Bytes, as the merges write them, that SmolLM2 drops: its vocabulary has no token for them."""

_SPECIAL_TOKENS = [
    "<|endoftext|>",
    *("<|im_start|>", "<|im_end|>"),
    *("<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>"),
    *("<issue_start>", "<issue_comment>", "<issue_closed>"),
    *("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<jupyter_script>"),
    "<empty_output>",
]
# A single line break between two other characters is a token by itself, so that a text may be counted by such lines.
_LINES = re.compile(r"(?<=\S\n)(?=\S)")


def expected_usage(request: LlmRequest, config: LlmConfig) -> Usage:
    """Likely tokens of one call that finds nothing in the server's cache.

    Args:
        config: resolved.
    """
    if request.kind == messages.CHAT:
        chat = request.body["messages"]
        prompt = sum(count_tokens(message["content"], request.model) + _PER_MESSAGE for message in chat)
        prompt += _TO_OPEN_THE_ANSWER
        if is_openai(config.base_url) and "response_format" in request.body:
            # OpenAI shows the schema to the model; vLLM and llama.cpp compile it into a grammar.
            schema = request.body["response_format"].get("json_schema")
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
    if not (config.uses_local_server or is_openai(config.base_url)):
        return 0
    shared = os.path.commonprefix([prompt_text(previous), prompt_text(request)])
    tokens = round(count_tokens(shared, request.model))
    if config.uses_local_server:
        return tokens
    return tokens // 128 * 128 if tokens >= 1024 else 0


def prompt_text(request: LlmRequest) -> str:
    """All that the model reads, without its chat template."""
    if request.kind == messages.CHAT:
        return "\n".join(message["content"] for message in request.body["messages"])
    return request.body["prompt"] if request.kind == messages.FORCED else request.body["input"]


def count_tokens(text: str, model: str) -> float:
    """Tokens of a text for a model: whole for BUNDLED_MODEL, an estimate for any other."""
    # By lines, which recur between prompts: an item's title stands in many of them.
    return sum(_line_tokens(line, model == BUNDLED_MODEL) for line in _LINES.split(text))


@functools.lru_cache(maxsize=1 << 16)
def _line_tokens(line: str, exact: bool) -> float:
    line = line.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8
    tokenizer, by_three_digits = _tokenizer()
    if exact:
        return len(tokenizer.encode(line))
    tokens = 0.0
    for piece, (start, end) in by_three_digits.pre_tokenize_str(line):
        words = line[start:end]
        if words.isdigit():
            tokens += 1
        else:
            factor = OTHER_VOCABULARIES if words.isascii() else OTHER_VOCABULARIES_NON_ASCII
            tokens += factor * len(tokenizer.model.tokenize(piece))
    return tokens


@functools.cache
def _tokenizer() -> "tuple[Tokenizer, PreTokenizer]":
    """SmolLM2's tokenizer, which takes digits one by one, and a pre-tokenizer that takes up to three digits together,
    as OpenAI's and Llama's do.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    packed = (importlib.resources.files(__package__) / "vocabulary" / _MERGES).read_bytes()
    lines = (line.partition(" ") for line in gzip.decompress(packed).decode().splitlines())
    merges = [(left, right) for left, _, right in lines]
    # The vocabulary follows from the merges, as nobody asks for SmolLM2's own ids.
    words = dict.fromkeys([*sorted(set(ByteLevel.alphabet()) - set(_ABSENT)), *(a + b for a, b in merges)])
    tokenizer = Tokenizer(BPE({word: n for n, word in enumerate(words)}, merges))
    tokenizer.add_special_tokens(_SPECIAL_TOKENS)
    pieces = ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), pieces])
    return tokenizer, Sequence([Split(Regex(r"\d{1,3}"), "isolated"), pieces])

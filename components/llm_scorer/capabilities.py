"""What endpoints and models take: the names of parameters and which of them can be sent, as one table.

`llm.capabilities` overrides single entries. An endpoint that still refuses a parameter by name gets its requests
without it for the rest of the run (client.py).
"""

import re
import threading
import urllib.parse
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

OPENAI_HOST = "api.openai.com"

REASONING_TOKENS = 4096
"""Room for reasoning in the output cap of a reasoning model, besides the tokens of the response itself."""


class Capabilities(BaseModel):
    """What a model at an endpoint takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output_cap: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="name of the parameter that cuts the output"
    )
    response_format: Literal["json_schema", "json_object", "none"] = Field(
        default="json_schema", description="how the form of the output can be enforced"
    )
    seed: bool = Field(default=True, description="whether the request may hold `seed`")
    temperature: bool = Field(default=True, description="whether the request may hold `temperature`")
    top_logprobs: bool = Field(default=True, description="whether the request may hold `logprobs` and `top_logprobs`")
    reasoning: bool = Field(default=False, description="whether the model reasons before it responds, at the same cap")
    reasoning_effort: str | None = Field(default=None, description="sent as `reasoning_effort`; empty: not sent")


_PROVIDERS: dict[str, dict[str, Any]] = {
    OPENAI_HOST: {"output_cap": "max_completion_tokens"},
    "openai.azure.com": {"output_cap": "max_completion_tokens"},
    "services.ai.azure.com": {"output_cap": "max_completion_tokens"},
    "cognitiveservices.azure.com": {"output_cap": "max_completion_tokens"},
    "api.anthropic.com": {"response_format": "none", "seed": False, "top_logprobs": False},
    "generativelanguage.googleapis.com": {"seed": False, "top_logprobs": False},
    "api.mistral.ai": {"seed": False, "top_logprobs": False},
    "api.deepseek.com": {"response_format": "json_object", "seed": False},
    "api.groq.com": {"output_cap": "max_completion_tokens", "response_format": "json_object", "top_logprobs": False},
    "api.together.xyz": {"top_logprobs": False},
    "api.together.ai": {"top_logprobs": False},
}
"""Differences from the defaults, by host or parent domain. Others (vLLM, llama.cpp, Ollama, LM Studio, OpenRouter) take
the defaults. Sources: docs/llm.md, "Endpoints differ".
"""

_OPENAI_REASONING = {
    "output_cap": "max_completion_tokens",
    "temperature": False,
    "top_logprobs": False,
    "reasoning": True,
    "reasoning_effort": "low",
}
_FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"gpt-5.*-chat", {}),
    (r"o[134](-|$)|gpt-5", _OPENAI_REASONING),
    (r"gpt-oss", {"reasoning": True, "reasoning_effort": "low"}),
    (r"deepseek-reasoner", {"reasoning": True, "top_logprobs": False}),
    (r"deepseek-r1|qwq|magistral|.*(-thinking|-reasoning)", {"reasoning": True}),
    (r"gemini-(2\.5|[3-9])", {"reasoning": True, "reasoning_effort": "low"}),
)
"""Differences by the start of the model's name behind the last slash; the first that fits counts."""


def is_openai(base_url: str | None) -> bool:
    """Whether an address is OpenAI's own API, by its host."""
    return base_url is not None and urllib.parse.urlsplit(base_url).hostname == OPENAI_HOST


def capabilities_of(base_url: str | None, model: str, overrides: dict[str, Any]) -> Capabilities:
    """What the model at the address takes: provider, then model family, then the user's overrides.

    Args:
        base_url: None for the server that the scorer starts.
        model: the name that the endpoint knows.
        overrides: fields of Capabilities.
    """
    host = (urllib.parse.urlsplit(base_url).hostname or "") if base_url else ""
    values: dict[str, Any] = {}
    for domain, differences in _PROVIDERS.items():
        if host == domain or host.endswith(f".{domain}"):
            values |= differences
    name = model.rpartition("/")[2].lower()
    values |= next((differences for pattern, differences in _FAMILIES if re.match(pattern, name)), {})
    return Capabilities.model_validate(values | overrides)


def fit(body: dict[str, Any], capabilities: Capabilities) -> dict[str, Any]:
    """A chat body with what the endpoint does not take left out, and with `reasoning_effort` where it is set."""
    fitted = dict(body)
    if not capabilities.seed:
        fitted.pop("seed", None)
    if not capabilities.temperature:
        fitted.pop("temperature", None)
    if not capabilities.top_logprobs:
        fitted.pop("logprobs", None)
        fitted.pop("top_logprobs", None)
    if "response_format" in fitted and capabilities.response_format != "json_schema":
        del fitted["response_format"]
        if capabilities.response_format == "json_object":
            fitted["response_format"] = {"type": "json_object"}
    if capabilities.reasoning_effort is not None:
        fitted.setdefault("reasoning_effort", capabilities.reasoning_effort)
    return fitted


_REFUSAL = re.compile(
    r"(?i)unsupported|not support|unrecognized|unknown|unexpected|extra (?:inputs|fields)|not permitted|not allowed|"
    r"does not accept|only the default|deprecated|use '?max_"
)
_REFUSAL_OF_FORMAT = re.compile(r"(?i)unavailable|not available|not implemented|invalid|must be|only")
"""Further words with which endpoints refuse a form of output; the scorer cannot mend it, so it counts as refused."""

SCHEMA = "json_schema"
"""Stands for the schema form of response_format among refused parameters; json_object is tried after it."""

_DROPPABLE = (
    ("max_completion_tokens", "max_tokens"),
    ("max_tokens", "max_completion_tokens"),
    ("response_format", ""),
    ("reasoning_effort", ""),
    ("temperature", ""),
    ("seed", ""),
)
_FORMAT_WORDS = re.compile(r"(?i)response_format|json_schema|json_object|structured output")


def refused_parameter(words: str, body: dict[str, Any]) -> str | None:
    """The parameter of `body` that an error of the endpoint refuses by name, and that a request can do without; SCHEMA
    for a response_format that can be tried as json_object.
    """
    refuses, refuses_format = _REFUSAL.search(words), _REFUSAL_OF_FORMAT.search(words)
    # "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'": the first name is the one that is refused.
    found = [
        (match.start(), name)
        for name, _ in _DROPPABLE
        if name in body
        and (refuses or (refuses_format and name == "response_format"))
        and (match := (_FORMAT_WORDS if name == "response_format" else re.compile(rf"\b{name}\b")).search(words))
    ]
    if not found:
        return None
    name = min(found)[1]
    return SCHEMA if name == "response_format" and holds(body, SCHEMA) else name


def holds(body: dict[str, Any], refused: str) -> bool:
    """Whether a body has what `refused_parameter` named."""
    if refused == SCHEMA:
        return body.get("response_format", {}).get("type") == SCHEMA
    return refused in body


def without(body: dict[str, Any], refused: str) -> dict[str, Any]:
    """A body without a refused parameter: the output cap goes by its other name, and json_object follows a schema."""
    fitted = dict(body)
    if refused == SCHEMA:
        if holds(body, SCHEMA):
            fitted["response_format"] = {"type": "json_object"}
        return fitted
    value = fitted.pop(refused, None)
    other = dict(_DROPPABLE)[refused]
    if value is not None and other:
        fitted[other] = value
    return fitted


class Refused(Protocol):
    """What an endpoint has refused by name, for all who send to it."""

    def names(self) -> tuple[str, ...]:
        """As `refused_parameter` named them."""
        ...

    def add(self, name: str) -> bool:
        """Keeps a name; returns whether it is new."""
        ...


class RefusedHere:
    """What was refused in this process; safe to share between threads."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._lock = threading.Lock()

    def names(self) -> tuple[str, ...]:
        """See Refused."""
        return self._names

    def add(self, name: str) -> bool:
        """See Refused."""
        with self._lock:
            is_new = name not in self._names
            if is_new:
                self._names = (*self._names, name)
            return is_new

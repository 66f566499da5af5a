"""One call to an OpenAI-compatible endpoint, and what can become of it.

Either an answer, or a reason from exchange.REASONS with a redacted detail, or the end of the job: a key that is
refused, or a quota that is used up, will not get better by asking again. `timeout_s` bounds the whole call. The
`openai` client's own repeats are off: repeats count against the limits, and all calls must heed what one of them is
told (see retry.py and congestion.py).
"""

import base64
import functools
import json
import logging
import os
import struct
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

from components.llm_scorer import exchange
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import LlmRequest
from components.llm_scorer.redaction import redact, redact_secret
from components.llm_scorer.retry import LONGEST_RETRY_AFTER_S, retry_after_s

_NO_KEY = "none"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DETAIL_CHARACTERS = 300
FILE_TIMEOUT_S = 3600.0
"""For a whole file to or from the Batch API, up to 200 MB of requests and a gigabyte of vectors."""

_OVERLOADED = (429, 503, 529)
"""Too many requests; unavailable; overloaded, as Anthropic's endpoint says it."""


class CallFailed(Exception):
    """A call that got no answer; never holds a secret.

    Attributes:
        reason: one of exchange.REASONS.
        passing: whether the same call may succeed later.
        may_be_billed: whether the endpoint may have done the work all the same.
        pushed_back: whether the server asked for fewer calls.
        retry_after_s: what the server asked to wait, if it did.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        passing: bool = False,
        may_be_billed: bool = False,
        pushed_back: bool = False,
        retry_after_s: float | None = None,
    ):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.passing = passing
        self.may_be_billed = may_be_billed
        self.pushed_back = pushed_back
        self.retry_after_s = retry_after_s


class UnknownToEndpoint(LlmError):
    """The endpoint has no such model or path."""


class LlmClient:
    """Sends requests; safe to share between threads."""

    def __init__(self, config: LlmConfig, base_url: str):
        """
        Args:
            config: resolved.
            base_url: where to send; for the bundled model the local server's.
        """
        import openai

        from components.llm_scorer.bounded_transport import BoundedTransport

        # A line for each request, from libraries below the client, would drown the job's own.
        for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._openai = openai
        self._config = config
        self._base_url = base_url
        host = urllib.parse.urlsplit(base_url).hostname
        # The key never goes to the server that this job started itself.
        self._secret = "" if config.uses_local_server else os.environ.get(config.api_key_env, "")
        self._client = openai.OpenAI(
            api_key=self._secret or _NO_KEY,
            base_url=base_url,
            timeout=config.timeout_s,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(
                # A proxy named in the environment cannot reach this machine's own server.
                transport=BoundedTransport(base_url, trust_env=host not in _LOOPBACK)
            ),
        )
        self._token_ids = functools.lru_cache(maxsize=100_000)(self._tokenize)

    def send(self, request: LlmRequest) -> dict[str, Any]:
        """Asks once.

        Returns:
            The response as exchange.Answer describes it for the request's kind.

        Raises:
            CallFailed: no answer to be had.
            LlmError: nothing more is to be had from this endpoint.
        """
        if request.kind == exchange.FORCED:
            return self._forced(request)
        path, body = self.wire(request)
        return read_response(request.kind, self.post(path, body))

    def close(self) -> None:
        self._client.close()

    def wire(self, request: LlmRequest) -> tuple[str, dict[str, Any]]:
        """Path below the base URL and body of a CHAT or EMBEDDING request, as they are sent."""
        if request.kind == exchange.EMBEDDING:
            return "/embeddings", {"model": request.model, "encoding_format": "float", **request.body}
        limit = "max_completion_tokens" if "api.openai.com" in self._base_url else "max_tokens"
        return "/chat/completions", {"model": request.model, limit: request.max_tokens, **request.body}

    def _forced(self, request: LlmRequest) -> dict[str, Any]:
        ids = self._token_ids(request.body["text"])
        if not ids:
            raise CallFailed(exchange.BAD_REQUEST, "the text to force has no tokens")
        body = {
            "model": request.model,
            "prompt": request.body["prompt"],
            "max_tokens": len(ids),
            "temperature": 0,
            "logprobs": 1,
            # Token ids and not a string: a string grammar lets the model pick another tokenisation of the
            # same text.
            "grammar": "root ::= " + " ".join(f"<[{i}]>" for i in ids),
        }
        response = self.post("/completions", body)
        try:
            tokens = response["choices"][0]["logprobs"]["content"]
            answered = tuple(token["id"] for token in tokens)
            logprobs = [float(token["logprob"]) for token in tokens]
        except (KeyError, IndexError, TypeError, ValueError):
            raise _invalid("the answer holds no token ids and log-probabilities; is this llama.cpp?") from None
        if answered != ids:
            raise _invalid(f"asked for {len(ids)} given tokens, got other ones")
        return {"token_logprobs": logprobs, "usage": response.get("usage")}

    def _tokenize(self, text: str) -> tuple[int, ...]:
        response = self.post(self._base_url.removesuffix("/v1") + "/tokenize", {"content": text, "add_special": False})
        ids = response.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise _invalid("/tokenize returned no list of token ids; is this llama.cpp?")
        return tuple(ids)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends JSON and returns the JSON object of the answer; raises as `send`."""
        return self._object(self._checked(lambda: self._client.post(path, body=body, cast_to=str)))

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Asks for a JSON object; raises as `send`."""
        return self._object(self._checked(lambda: self._client.get(path, options={"params": query}, cast_to=str)))

    def upload(self, path: str) -> dict[str, Any]:
        """Sends a file for the Batch API; returns its description; raises as `send`."""

        def send() -> str:
            with open(path, "rb") as file:
                files = self._client.files.with_raw_response
                return files.create(file=file, purpose="batch", timeout=FILE_TIMEOUT_S).text

        return self._object(self._checked(send))

    def download(self, file_id: str, take_line: Callable[[dict[str, Any] | None], None]) -> None:
        """Reads a file of JSON lines from the endpoint; a line that is no JSON object is None. Raises as `send`, also
        when some lines were taken.
        """

        def read() -> str:
            files = self._client.files.with_streaming_response
            with files.content(file_id, timeout=FILE_TIMEOUT_S) as response:
                rest = b""
                for chunk in response.iter_bytes():
                    # By \n alone: other line separators may stand within an answer's text.
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        take_line(self._parsed(line))
                if rest.strip():
                    take_line(self._parsed(rest))
            return ""

        self._checked(read)

    def _checked(self, call: Callable[[], str]) -> str:
        import httpx2

        # Errors are raised outside the except blocks: an exception's __context__ would carry the original
        # with headers.
        failure: CallFailed | LlmError | None = None
        text = ""
        try:
            text = call()
        except self._openai.APITimeoutError as error:
            detail = f"no answer within {self._config.timeout_s:g} s"
            failure = CallFailed(exchange.TIMEOUT, detail, passing=True, may_be_billed=_was_connected(error))
        except self._openai.APIConnectionError as error:
            detail = type(error.__cause__).__name__
            failure = CallFailed(exchange.CONNECTION, detail, passing=True, may_be_billed=_was_connected(error))
        except self._openai.APIStatusError as error:
            failure = self._of_status(error)
        except self._openai.OpenAIError as error:
            failure = _invalid(type(error).__name__)
        except httpx2.HTTPError as error:
            # Only where a body is read piece by piece.
            failure = CallFailed(exchange.CONNECTION, type(error).__name__, passing=True)
        if failure is not None:
            raise failure
        return text

    def _object(self, text: str) -> dict[str, Any]:
        response = self._parsed(text)
        if response is None:
            # A proxy's page, or a body that was cut.
            raise _invalid("the answer is no JSON object", passing=True)
        return response

    def _parsed(self, text: str | bytes) -> dict[str, Any] | None:
        try:
            # Written out anew before redaction, so that escapes cannot hide the key.
            response = json.loads(redact_secret(json.dumps(json.loads(text), ensure_ascii=False), self._secret))
        except (ValueError, RecursionError):
            return None
        return response if isinstance(response, dict) else None

    def _of_status(self, error) -> CallFailed | LlmError:
        status, code = error.status_code, error.code
        detail = self.redacted(f"HTTP {status}: {error.message}")
        if status in (401, 403):
            return LlmError(
                f"the endpoint {self._base_url} refuses the key in the environment variable "
                f"{self._config.api_key_env} (HTTP {status}); set a valid one and run again, answers so far "
                "are cached"
            )
        if code == "insufficient_quota":
            return LlmError(
                f"the account behind {self._config.api_key_env} has no quota left at {self._base_url}; "
                "top it up and run again, answers so far are cached"
            )
        if status == 404:
            return UnknownToEndpoint(
                f"the endpoint {self._base_url} does not know what was asked for, model "
                f"{self._config.model!r} ({detail}); set llm.model or llm.base_url"
            )
        headers = error.response.headers
        wait_s = retry_after_s(headers, time.time())
        # Request time-out and conflict are passing too. OpenAI says it in a header where it knows better.
        passing = (status in (408, 409, 429) or status >= 500) and headers.get("x-should-retry") != "false"
        if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S:
            detail = f"the endpoint asks to wait {wait_s:.0f} s; run again then ({detail})"
            passing, wait_s = False, None
        reason = exchange.SERVER_ERROR if status >= 500 else exchange.BAD_REQUEST
        return CallFailed(
            exchange.RATE_LIMITED if status == 429 else reason,
            detail,
            passing=passing,
            pushed_back=status in _OVERLOADED,
            retry_after_s=wait_s,
        )

    def redacted(self, text: str) -> str:
        """The start of a text that an endpoint wrote, without the key."""
        return redact(text, self._secret)[:_DETAIL_CHARACTERS]


def _was_connected(error: Exception) -> bool:
    return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")


def read_response(kind: str, response: dict[str, Any]) -> dict[str, Any]:
    """What exchange.Answer keeps of the endpoint's answer to a CHAT or EMBEDDING request.

    Raises:
        CallFailed: it is none.
    """
    if kind == exchange.CHAT:
        try:
            valid = isinstance(response["choices"][0]["message"], dict)
        except (KeyError, IndexError, TypeError):
            valid = False
        if not valid:
            raise _invalid("the answer holds no choices[0].message")
        return response
    try:
        values = [float(value) for value in response["data"][0]["embedding"]]
        # A tenth of the size of JSON's numbers, in the cache and between the steps.
        vector = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, struct.error):
        raise _invalid("the answer holds no data[0].embedding of floats") from None
    return {"vector": vector, "usage": response.get("usage")}


def _invalid(detail: str, *, passing: bool = False) -> CallFailed:
    return CallFailed(exchange.INVALID_RESPONSE, detail, passing=passing, may_be_billed=True)

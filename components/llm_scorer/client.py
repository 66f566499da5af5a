"""One call to an OpenAI-compatible endpoint, and what can become of it.

The `openai` client repeats what failed in passing (connection, time-out, 408, 409, 429, 5xx), waits as
Retry-After says (up to two minutes) or else 0.5 s doubled up to 8 s with a quarter of jitter, and gives up
after `max_retries`. What is left is either an answer, a reason from exchange.REASONS with a redacted detail,
or the end of the job: a key that is refused, or a quota that is used up, will not get better by asking again.
"""

import base64
import functools
import json
import logging
import os
import struct
import threading
import urllib.parse
from typing import Any

from components.llm_scorer import exchange
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import LlmRequest
from components.llm_scorer.redaction import redact, redact_secret

_NO_KEY = "none"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DETAIL_CHARACTERS = 300


class CallFailed(Exception):
    """A call that got no answer; never holds a secret.

    Attributes:
        reason: one of exchange.REASONS.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class LlmClient:
    """Sends requests; safe to share between threads."""

    def __init__(self, config: LlmConfig, base_url: str):
        """
        Args:
            config: resolved.
            base_url: where to send; for the bundled model the local server's.
        """
        import openai

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
            max_retries=config.max_retries,
            # A proxy named in the environment cannot reach this machine's own server.
            http_client=openai.DefaultHttpxClient(trust_env=False) if host in _LOOPBACK else None,
        )
        self._tokenize_lock = threading.Lock()
        self._token_ids = functools.lru_cache(maxsize=100_000)(self._tokenize)

    def send(self, request: LlmRequest) -> dict[str, Any]:
        """Asks once, with repeats.

        Returns:
            The response as exchange.Answer describes it for the request's kind.

        Raises:
            CallFailed: no answer to be had.
            LlmError: nothing more is to be had from this endpoint.
        """
        if request.kind == exchange.CHAT:
            return self._chat(request)
        if request.kind == exchange.FORCED:
            return self._forced(request)
        if request.kind == exchange.EMBEDDING:
            return self._embedding(request)
        raise ValueError(
            f"kind must be {exchange.CHAT}, {exchange.FORCED} or {exchange.EMBEDDING}, got {request.kind!r}"
        )

    def close(self) -> None:
        self._client.close()

    def _chat(self, request: LlmRequest) -> dict[str, Any]:
        limit = "max_completion_tokens" if "api.openai.com" in self._base_url else "max_tokens"
        response = self._post("/chat/completions", {"model": request.model, limit: request.max_tokens, **request.body})
        try:
            message = response["choices"][0]["message"]
            valid = isinstance(message, dict)
        except (KeyError, IndexError, TypeError):
            valid = False
        if not valid:
            raise CallFailed(exchange.INVALID_RESPONSE, "the answer holds no choices[0].message")
        return response

    def _embedding(self, request: LlmRequest) -> dict[str, Any]:
        body = {"model": request.model, "encoding_format": "float", **request.body}
        response = self._post("/embeddings", body)
        try:
            values = [float(value) for value in response["data"][0]["embedding"]]
            # A tenth of the size of JSON's numbers, in the cache and between the steps.
            vector = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, struct.error):
            raise CallFailed(exchange.INVALID_RESPONSE, "the answer holds no data[0].embedding of floats") from None
        return {"vector": vector, "usage": response.get("usage")}

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
        response = self._post("/completions", body)
        try:
            tokens = response["choices"][0]["logprobs"]["content"]
            answered = tuple(token["id"] for token in tokens)
            logprobs = [float(token["logprob"]) for token in tokens]
        except (KeyError, IndexError, TypeError, ValueError):
            raise CallFailed(
                exchange.INVALID_RESPONSE,
                "the answer holds no token ids and log-probabilities; is this llama.cpp?",
            ) from None
        if answered != ids:
            raise CallFailed(exchange.INVALID_RESPONSE, f"asked for {len(ids)} given tokens, got other ones")
        return {"token_logprobs": logprobs, "usage": response.get("usage")}

    def _tokenize(self, text: str) -> tuple[int, ...]:
        response = self._post(self._base_url.removesuffix("/v1") + "/tokenize", {"content": text, "add_special": False})
        ids = response.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
            raise CallFailed(exchange.INVALID_RESPONSE, "/tokenize returned no list of token ids; is this llama.cpp?")
        return tuple(ids)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        # Errors are raised outside the except blocks: an exception's __context__ would carry the original
        # with headers.
        failure: CallFailed | LlmError | None = None
        text = ""
        try:
            text = self._client.post(path, body=body, cast_to=str)
        except self._openai.APITimeoutError:
            failure = CallFailed(exchange.TIMEOUT, f"no answer within {self._config.timeout_s:g} s")
        except self._openai.APIConnectionError as error:
            failure = CallFailed(exchange.CONNECTION, self._redacted(f"{type(error.__cause__).__name__}"))
        except self._openai.APIStatusError as error:
            failure = self._of_status(error)
        except self._openai.OpenAIError as error:
            failure = CallFailed(exchange.INVALID_RESPONSE, type(error).__name__)
        if failure is not None:
            raise failure
        try:
            # Written out anew before redaction, so that escapes cannot hide the key.
            response = json.loads(redact_secret(json.dumps(json.loads(text), ensure_ascii=False), self._secret))
        except (ValueError, RecursionError):
            response = None
        if not isinstance(response, dict):
            raise CallFailed(exchange.INVALID_RESPONSE, "the answer is no JSON object")
        return response

    def _of_status(self, error) -> CallFailed | LlmError:
        status, code = error.status_code, error.code
        detail = self._redacted(f"HTTP {status}: {error.message}")
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
            return LlmError(
                f"the endpoint {self._base_url} does not know what was asked for, model "
                f"{self._config.model!r} ({detail}); set llm.model or llm.base_url"
            )
        if status == 429:
            return CallFailed(exchange.RATE_LIMITED, detail)
        if status >= 500:
            return CallFailed(exchange.SERVER_ERROR, detail)
        return CallFailed(exchange.BAD_REQUEST, detail)

    def _redacted(self, text: str) -> str:
        return redact(text, self._secret)[:_DETAIL_CHARACTERS]

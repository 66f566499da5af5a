"""One call to an OpenAI-compatible endpoint, and its possible outcomes.

A call ends with a response, with a reason from messages.REASONS and a redacted detail, or with the end of the job: if
the key is refused or the quota is used up, a retry does not help. `timeout_s` bounds the whole call. The `openai`
client's own retries are off: retries count against the limits, and all calls must heed what the endpoint answers to one
of them (see retry.py and congestion.py).
"""

import base64
import functools
import json
import logging
import os
import re
import ssl
import struct
import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.capabilities import (
    SCHEMA,
    Refused,
    RefusedHere,
    fit,
    holds,
    refused_parameter,
    without,
)
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.redaction import redact, redact_secret
from sllmr.components.llm_scorer.endpoint.retry import LONGEST_RETRY_AFTER_S, retry_after_s
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import LlmRequest
from sllmr.models.errors import file_error

_LOGGER = logging.getLogger(__name__)
_NO_KEY = "none"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DETAIL_CHARACTERS = 300
FILE_TIMEOUT_S = 3600.0
"""For a whole file to or from the Batch API, up to 200 MB of requests and a gigabyte of vectors."""

_HOURS_S = 3600.0
"""The job ends if a server asks to wait this long: all calls would get the same response."""

_BILLING = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "exceeded_current_quota_error",
    "insufficient_balance",
    "insufficient_credits",
    "arrearage",
}
_BILLING_WORDS = re.compile(
    r"(?i)credit balance|insufficient (?:account )?(?:balance|credit|fund)|billing (?:hard )?limit|"
    r"billing is not active|payment required|out of credits"
)
"""How endpoints say, as code, type or message, that the account cannot pay."""

_MODERATION = re.compile(
    r"(?i)content[_ ]?(?:filter|policy|management)|moderat|flagged|safety system|responsible\s?ai|"
    r"usage polic|policy[_ ]violation"
)
"""How endpoints say that they refuse this prompt, and not the key."""

_KEY_WORDS = re.compile(r"(?i)\bkey|api[-_ ]?key|credential|authenti|unauthori[sz]ed|bearer|access token")
"""How endpoints say that they refuse the key."""

_STATUS_NAMES = {
    401: {"invalid_api_key", "authentication_error", "unauthenticated", "unauthorized"},
    402: {"payment_required", "billing_error"},
    403: {"permission_error", "permission_denied", "forbidden"},
    404: {"not_found", "not_found_error", "model_not_found", "notfounderror"},
    429: {
        "rate_limit_error",
        "rate_limit_exceeded",
        "rate_limited",
        "too_many_requests",
        "resource_exhausted",
        "insufficient_quota",
        "tokens",
        "requests",
    },
    400: {
        "invalid_request_error",
        "bad_request",
        "badrequesterror",
        "invalid_argument",
        "content_filter",
        "context_length_exceeded",
    },
    503: {"overloaded_error", "unavailable", "service_unavailable", "server_overloaded"},
    504: {"deadline_exceeded", "timeout"},
}
"""The HTTP status that a code, type or status of an error object means."""

_OVERLOADED = (429, 503, 529)
"""Too many requests; unavailable; overloaded, as Anthropic's endpoint says it."""


class CallFailed(Exception):
    """A call that got no answer; never holds a secret.

    Attributes:
        reason: one of messages.REASONS.
        passing: whether the same call may succeed later.
        may_be_billed: whether the endpoint may have done the work all the same.
        pushed_back: whether the server asked for fewer calls.
        retry_after_s: seconds that the server asked to wait; None if it named none.
        response: the unusable response, if one came; its `usage` is billed.
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
        response: dict[str, Any] | None = None,
    ):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.passing = passing
        self.may_be_billed = may_be_billed
        self.pushed_back = pushed_back
        self.retry_after_s = retry_after_s
        self.response = response


class UnknownToEndpoint(LlmError):
    """The endpoint has no such model or path."""


class LlmClient:
    """Sends requests; safe to share between threads."""

    def __init__(self, config: LlmConfig, base_url: str, refused: Refused | None = None):
        """
        Args:
            config: resolved.
            base_url: where to send; for the bundled model the local server's.
            refused: keeps the parameters that the endpoint refused; if None, this client keeps them for itself.
        """
        import openai

        from sllmr.components.llm_scorer.endpoint.transport import BoundedTransport

        # A line for each request, from libraries below the client, would drown the job's own.
        for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._openai = openai
        self._config = config
        self._base_url = base_url
        host = urllib.parse.urlsplit(base_url).hostname
        # The key never goes to the server that this job started itself.
        self._secret = "" if config.uses_local_server else os.environ.get(config.api_key_env, "")
        # A proxy named in the environment cannot reach this machine's own server.
        self._transport = BoundedTransport(base_url, trust_env=host not in _LOOPBACK)
        self._client = openai.OpenAI(
            api_key=self._secret or _NO_KEY,
            base_url=base_url,
            timeout=config.timeout_s,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(transport=self._transport),
        )
        self._has_succeeded = False
        self._capabilities = config.endpoint_capabilities
        self._refused = RefusedHere() if refused is None else refused
        self._token_ids = functools.lru_cache(maxsize=100_000)(self._tokenize)

    def send(self, request: LlmRequest) -> dict[str, Any]:
        """Sends a request once, without retries.

        Returns:
            The response as messages.Answer describes it for the request's kind.

        Raises:
            CallFailed: this call got no usable response.
            LlmError: further calls to this endpoint would fail as well.
        """
        if request.kind == messages.FORCED:
            response = self._forced(request)
        else:
            response = read_response(request.kind, self._post_fitted(request))
        self._has_succeeded = True
        return response

    def _post_fitted(self, request: LlmRequest) -> dict[str, Any]:
        """Sends a request; if the endpoint refuses a parameter by name, sends it again without that parameter, which
        all later requests of the run leave out, too. The request keeps its key: what it asks for is the same.
        """
        while True:
            path, body = self.wire(request)
            try:
                return self.post(path, body)
            except CallFailed as failure:
                refused = None
                if failure.reason == messages.BAD_REQUEST and request.kind == messages.CHAT:
                    refused = refused_parameter(failure.detail, body)
                own = {"response_format" if refused == SCHEMA else refused} & self._config.extra_body.keys()
                if refused is None or own:
                    raise
                if self._refused.add(refused):
                    _LOGGER.warning(
                        "%s refuses the parameter %s (%s); %s from now on: set llm.capabilities",
                        self._base_url,
                        refused,
                        failure.detail,
                        "json_object is sent" if refused == SCHEMA else "it is left out",
                    )
                elif holds(self.wire(request)[1], refused):
                    raise

    def close(self) -> None:
        self._client.close()

    def wire(self, request: LlmRequest) -> tuple[str, dict[str, Any]]:
        """Path below the base URL and body of a CHAT or EMBEDDING request, as they are sent."""
        if request.kind == messages.EMBEDDING:
            return "/embeddings", {"model": request.model, "encoding_format": "float", **request.body}
        body = {
            self._capabilities.output_cap: request.max_tokens,
            **fit(request.body, self._capabilities),
            **self._config.extra_body,
        }
        for refused in self._refused.names():
            body = without(body, refused)
        return "/chat/completions", {"model": request.model, **body}

    def _forced(self, request: LlmRequest) -> dict[str, Any]:
        ids = self._token_ids(request.body["text"])
        if not ids:
            raise CallFailed(messages.BAD_REQUEST, "the text to force has no tokens")
        body = {
            "model": request.model,
            "prompt": request.body["prompt"],
            "max_tokens": len(ids),
            "temperature": 0,
            "logprobs": 1,
            # Token ids and not a string: a string grammar lets the model pick another tokenization of the
            # same text.
            "grammar": "root ::= " + " ".join(f"<[{i}]>" for i in ids),
        }
        response = self.post("/completions", body)
        try:
            tokens = response["choices"][0]["logprobs"]["content"]
            answered = tuple(token["id"] for token in tokens)
            logprobs = [float(token["logprob"]) for token in tokens]
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise _invalid(
                "the answer holds no token ids and log-probabilities; is this llama.cpp?", response=response
            ) from None
        if answered != ids:
            raise _invalid(f"asked for {len(ids)} given tokens, got other ones", response=response)
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
            try:
                content = open(path, "rb")  # noqa: SIM115  its own errors alone
            except OSError as error:
                raise file_error(error) or error from None
            with content as file:
                files = self._client.files.with_raw_response
                return files.create(file=file, purpose="batch", timeout=FILE_TIMEOUT_S).text

        return self._object(self._checked(send))

    def download(self, file_id: str, take_line: Callable[[dict[str, Any] | None], None]) -> None:
        """Reads a file of JSON lines from the endpoint; a line that is no JSON object is None. Raises as `send`, also
        when some lines were taken.
        """

        from sllmr.components.llm_scorer.endpoint.transport import MAX_RESPONSE_BYTES, ResponseTooLarge

        def read() -> str:
            files = self._client.files.with_streaming_response
            with (
                self._transport.unbounded_responses(),
                files.content(file_id, timeout=FILE_TIMEOUT_S) as response,
            ):
                rest = b""
                for chunk in response.iter_bytes():
                    # By \n alone: other line separators may stand within an answer's text.
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        take_line(self._parsed(line))
                    if len(rest) > MAX_RESPONSE_BYTES:
                        raise ResponseTooLarge("a line of the file is longer than a response can be")
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
            detail = f"no response within {self._config.timeout_s:g} s"
            failure = CallFailed(messages.TIMEOUT, detail, passing=True, may_be_billed=_was_connected(error))
        except self._openai.APIConnectionError as error:
            failure = self._of_connection(error)
        except self._openai.APIStatusError as error:
            failure = self._of_status(error)
        except self._openai.OpenAIError as error:
            failure = _invalid(type(error).__name__)
        except httpx2.DecodingError as error:
            failure = _undecodable(error)
        except httpx2.HTTPError as error:
            # Only where a body is read piece by piece.
            failure = CallFailed(messages.CONNECTION, type(error).__name__, passing=True)
        if failure is not None:
            raise failure
        return text

    def _object(self, text: str) -> dict[str, Any]:
        response = self._json(text)
        told = _error_of_success(response)
        if told:
            found = response if isinstance(response, dict) else None
            raise self._of_error(_status_of(told), told, {}, response=found, by_status=False)
        if not isinstance(response, dict):
            # A proxy's page, or a body that was cut.
            raise _invalid("the answer is no JSON object", passing=True)
        return response

    def _parsed(self, text: str | bytes) -> dict[str, Any] | None:
        response = self._json(text)
        return response if isinstance(response, dict) else None

    def _json(self, text: str | bytes) -> Any:
        """The JSON value without the key and without lone surrogates, which cannot be stored; None where there is
        none.
        """
        try:
            # Written out anew before redaction, so that escapes cannot hide the key.
            text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
            written = json.dumps(json.loads(text), ensure_ascii=False)
            written = written.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return json.loads(redact_secret(written, self._secret))
        except (ValueError, RecursionError):
            return None

    def _of_connection(self, error: Exception) -> CallFailed | LlmError:
        import httpx2

        from sllmr.components.llm_scorer.endpoint.transport import RedirectRefused

        causes = _causes(error)
        for cause in causes:
            if isinstance(cause, RedirectRefused):
                detail = f"the endpoint {self._base_url} redirects to {cause.target}, another host"
                if self._has_succeeded:
                    return CallFailed(messages.CONNECTION, self.redacted(detail), passing=True)
                return LlmError(
                    f"{self.redacted(detail)}; prompts with histories are not sent there: set llm.base_url to that "
                    "host if you trust it"
                )
            if isinstance(cause, ssl.SSLCertVerificationError):
                return CallFailed(
                    messages.CONNECTION,
                    self.redacted(
                        f"TLS: the certificate of {self._base_url} is not trusted ({cause.verify_message}); "
                        "set SSL_CERT_FILE to the authority's certificate, or correct llm.base_url"
                    ),
                )
            if isinstance(cause, ssl.SSLError):
                detail = f"TLS: {cause.reason or cause}; check that llm.base_url should begin with https"
                return CallFailed(messages.CONNECTION, self.redacted(detail), passing=True)
            if isinstance(cause, httpx2.DecodingError):
                return _undecodable(cause)
        detail = type(error.__cause__).__name__
        return CallFailed(messages.CONNECTION, detail, passing=True, may_be_billed=_was_connected(error))

    def _of_status(self, error) -> CallFailed | LlmError:
        told = _error_in(self._json(json.dumps(error.body)) if error.body is not None else None)
        words = error.message if isinstance(error.body, dict) else _words_of(error.response.text) or error.message
        told = {"message": words, **told}
        return self._of_error(error.status_code, told, error.response.headers)

    def _of_error(
        self,
        status: int,
        told: dict[str, Any],
        headers: Mapping[str, str],
        *,
        response: dict[str, Any] | None = None,
        by_status: bool = True,
    ) -> CallFailed | LlmError:
        """What an error of the endpoint means for the request and for the job.

        Args:
            status: the HTTP status, or the one that the error of a successful response means.
            told: the error object of the body.
            headers: by names in lower case.
            response: a successful response that holds the error; its `usage` is billed.
            by_status: whether `status` is the HTTP status.
        """
        words = f"{told.get('code')} {told.get('type')} {told.get('message')} {told.get('metadata', '')}"
        detail = self.redacted(f"HTTP {status}: {told.get('message')}" if by_status else f"HTTP 200 with {words}")
        if status in (400, 403, 422, 451) and _MODERATION.search(words):
            return CallFailed(messages.REFUSED, detail, may_be_billed=response is not None, response=response)
        names = {str(told.get(name)).lower() for name in ("code", "type")}
        says_billing = status in (400, 403, 429) and (
            names & _BILLING or _BILLING_WORDS.search(str(told.get("message"))) or _is_daily_quota(told)
        )
        if status == 402 or says_billing:
            return LlmError(
                f"the account behind {self._config.api_key_env} has no quota left or cannot pay at {self._base_url} "
                f"({detail}); top it up or raise its limit and run again, responses so far are cached"
            )
        if status == 401 or (status == 403 and not self._has_succeeded and _KEY_WORDS.search(words)):
            return LlmError(
                f"the endpoint {self._base_url} refuses the key in the environment variable "
                f"{self._config.api_key_env} (HTTP {status}); set a valid one and run again, responses so far "
                f"are cached (the endpoint says: {detail})"
            )
        if status == 404:
            return UnknownToEndpoint(
                f"the endpoint {self._base_url} does not know what was asked for, model "
                f"{self._config.model!r} ({detail}); set llm.model or llm.base_url"
            )
        wait_s = retry_after_s(headers, time.time())
        if wait_s is None:
            wait_s = _retry_delay_s(told)
        if wait_s is not None and wait_s >= _HOURS_S:
            return LlmError(
                f"the endpoint {self._base_url} asks to wait {wait_s / 3600:.1f} hours ({detail}); run again then, "
                "responses so far are cached"
            )
        # Request time-out and conflict are retryable, too. OpenAI's header x-should-retry: false overrides the status.
        passing = (status in (408, 409, 429) or status >= 500) and headers.get("x-should-retry") != "false"
        if wait_s is not None and wait_s > LONGEST_RETRY_AFTER_S:
            detail = f"the endpoint asks to wait {wait_s:.0f} s; run again then ({detail})"
            passing, wait_s = False, None
        reason = messages.SERVER_ERROR if status >= 500 else messages.BAD_REQUEST
        return CallFailed(
            messages.RATE_LIMITED if status == 429 else reason,
            detail,
            passing=passing,
            may_be_billed=response is not None,
            pushed_back=status in _OVERLOADED,
            retry_after_s=wait_s,
            response=response,
        )

    def redacted(self, text: str) -> str:
        """The start of a text that an endpoint wrote, without the key."""
        return redact(text, self._secret)[:_DETAIL_CHARACTERS]


_TAGS = re.compile(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>")


def _words_of(text: str) -> str:
    """What a page that is no JSON says, such as a proxy's."""
    return " ".join(_TAGS.sub(" ", text[: 20 * _DETAIL_CHARACTERS]).split())


def _error_in(body: Any) -> dict[str, Any]:
    """The error that a body tells: OpenAI's object, or Google's list of one."""
    if isinstance(body, list):
        body = next((entry for entry in body if isinstance(entry, dict)), {})
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return body if isinstance(body, dict) else {}


def _error_of_success(response: Any) -> dict[str, Any]:
    """The error that a body with status 200 tells in place of a result, or beside a choice that it cut off; empty where
    there is none.
    """
    if isinstance(response, list):
        response = next((entry for entry in response if isinstance(entry, dict)), None)
    if not isinstance(response, dict):
        return {}
    choices = response.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    told = first.get("error") or (response.get("error") if not (choices or response.get("data")) else None)
    if told is None and response.get("object") == "error":
        # vLLM's form.
        told = response
    if isinstance(told, str):
        told = {"message": told}
    return told if isinstance(told, dict) else {}


def _status_of(error: dict[str, Any]) -> int:
    """The HTTP status that an error object means; 500 where it tells none."""
    for name in ("code", "status", "http_status", "status_code"):
        value = str(error.get(name))
        if re.fullmatch(r"[45]\d\d", value):
            return int(value)
    names = {str(error.get(name)).lower() for name in ("code", "status", "type")}
    return next((status for status, known in _STATUS_NAMES.items() if names & known), 500)


def _causes(error: BaseException) -> list[BaseException]:
    """The errors that led to this one, the last first."""
    causes: list[BaseException] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


def _undecodable(error: Exception) -> CallFailed:
    from sllmr.components.llm_scorer.endpoint.transport import ResponseTooLarge

    return _invalid(str(error), passing=not isinstance(error, ResponseTooLarge))


def _details(error: dict[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    return [entry for entry in details if isinstance(entry, dict)] if isinstance(details, list) else []


def _retry_delay_s(error: dict[str, Any]) -> float | None:
    """Google's RetryInfo: `retryDelay` like 34.5s."""
    for detail in _details(error):
        match = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)s", str(detail.get("retryDelay")))
        if match:
            return float(match[1])
    return None


def _is_daily_quota(error: dict[str, Any]) -> bool:
    """Google's QuotaFailure that names a quota of a day."""
    return any("perday" in json.dumps(detail.get("violations", "")).lower() for detail in _details(error))


def _was_connected(error: Exception) -> bool:
    return type(error.__cause__).__name__ not in ("ConnectError", "ConnectTimeout")


def read_response(kind: str, response: dict[str, Any]) -> dict[str, Any]:
    """What messages.Answer keeps of the endpoint's answer to a CHAT or EMBEDDING request.

    Raises:
        CallFailed: the response does not have the form of its kind.
    """
    if kind == messages.CHAT:
        try:
            valid = isinstance(response["choices"][0]["message"], dict)
        except (KeyError, IndexError, TypeError):
            valid = False
        if not valid:
            words = json.dumps(response, ensure_ascii=False)[:_DETAIL_CHARACTERS]
            raise _invalid(f"the response holds no choices[0].message: {words}", response=response)
        return response
    try:
        values = [float(value) for value in response["data"][0]["embedding"]]
        # A tenth of the size of JSON's numbers, in the cache and between the steps.
        vector = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, struct.error):
        raise _invalid("the answer holds no data[0].embedding of floats", response=response) from None
    return {"vector": vector, "usage": response.get("usage")}


def _invalid(detail: str, *, passing: bool = False, response: dict[str, Any] | None = None) -> CallFailed:
    return CallFailed(messages.INVALID_RESPONSE, detail, passing=passing, may_be_billed=True, response=response)

import collections
import concurrent.futures
import gzip
import json
import logging
import resource
import ssl
import subprocess
import threading
import time
import zlib

import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.client import CallFailed, LlmClient
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import CHAT, FORCED, LlmRequest
from tests.components.llm_scorer.stub_server import (
    StubServer,
    chat_response,
    cutting_body,
    cutting_header,
    dripping_body,
    dripping_header,
    echoing_key,
    failing,
    running_stub,
    scores_of,
)

KEY = "test-key-Zq81Wm42Lp97Xt65"
REQUEST = LlmRequest(
    kind=CHAT,
    model="m",
    prompt_version="p",
    body={"messages": [{"role": "user", "content": "1. Heat"}]},
    max_tokens=50,
    expected_tokens=20,
)


@pytest.fixture
def client(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> LlmClient:
    return make_client(stub, monkeypatch)


def make_client(stub: StubServer, monkeypatch: pytest.MonkeyPatch, **values) -> LlmClient:
    monkeypatch.setenv("STUB_KEY", KEY)
    settings = {"timeout_s": 20.0, **values}
    config = LlmConfig(model="m", base_url=stub.base_url, strategy="listwise", api_key_env="STUB_KEY", **settings)
    return LlmClient(config.resolve(), stub.base_url)


@pytest.mark.parametrize(
    ("status", "reason", "throttled"),
    [
        (408, messages.BAD_REQUEST, False),
        (409, messages.BAD_REQUEST, False),
        (429, messages.RATE_LIMITED, True),
        (500, messages.SERVER_ERROR, False),
        (503, messages.SERVER_ERROR, True),
        (529, messages.SERVER_ERROR, True),
    ],
)
def test_what_may_pass_is_told_apart_and_left_to_the_caller(client, stub, status, reason, throttled):
    stub.always = failing(status, {"message": "again"}, {"Retry-After": "7"})
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    failure = caught.value
    assert (failure.reason, failure.passing, failure.pushed_back) == (reason, True, throttled)
    assert (failure.retry_after_s, failure.may_be_billed) == (7, False)
    assert len(stub.received) == 1


@pytest.mark.parametrize("headers", [{"Retry-After": "121"}, {"x-should-retry": "false"}])
def test_a_wait_beyond_the_bound_and_a_servers_no_are_not_passing(client, stub, headers):
    stub.always = failing(429, {"message": "come back tomorrow"}, headers)
    with pytest.raises(CallFailed, match="come back tomorrow") as caught:
        client.send(REQUEST)
    assert (caught.value.passing, caught.value.retry_after_s) == (False, None)


def test_a_bad_request_is_not_passing(client, stub):
    stub.always = failing(400, {"message": "the schema is wrong"})
    with pytest.raises(CallFailed, match="the schema is wrong") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing) == (messages.BAD_REQUEST, False)


def test_a_silent_server_is_a_timeout(stub, monkeypatch):
    client = make_client(stub, monkeypatch, timeout_s=0.2)
    stub.gate.clear()
    with pytest.raises(CallFailed, match=r"no response within 0\.2 s") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (messages.TIMEOUT, True, True)


def test_each_thread_keeps_a_connection_of_its_own(client, stub):
    both = threading.Barrier(2, timeout=10)
    ports = []

    def note_port(handler, body) -> None:
        ports.append(handler.client_address[1])
        handler.send_json(200, chat_response(scores_of(body)))

    def send_three(_: int) -> None:
        both.wait()
        for _ in range(3):
            client.send(REQUEST)

    stub.always = note_port
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(send_three, range(2)))
    assert sorted(collections.Counter(ports).values()) == [3, 3]
    client.close()


@pytest.mark.parametrize("dripping", [dripping_header, dripping_body])
def test_the_time_out_bounds_the_whole_call_also_where_every_read_is_fast(stub, monkeypatch, dripping):
    client = make_client(stub, monkeypatch, timeout_s=0.4)
    stub.always = dripping
    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"no response within 0\.4 s"):
        client.send(REQUEST)
    # The server drips for a minute, a byte in a twentieth of a second.
    assert time.monotonic() - started < 10
    stub.always = None
    assert client.send(REQUEST)["choices"]


@pytest.mark.parametrize("cutting", [cutting_header, cutting_body])
def test_a_cut_connection_is_a_reason_of_its_own(client, stub, cutting):
    stub.always = cutting
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (messages.CONNECTION, True, True)


def test_a_server_that_is_not_there_bills_nothing(monkeypatch):
    with running_stub() as gone:
        client = make_client(gone, monkeypatch)
    with pytest.raises(CallFailed, match="ConnectError") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (messages.CONNECTION, True, False)


def test_a_proxy_that_the_environment_names_is_used_unless_it_is_told_not_to(stub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", stub.base_url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", stub.base_url.removesuffix("/v1"))
    config = LlmConfig(model="m", base_url="http://llm.example/v1", strategy="listwise", api_key_env="NO_SUCH_KEY")
    assert LlmClient(config.resolve(), "http://llm.example/v1").send(REQUEST)["choices"]
    assert len(stub.received) == 1
    monkeypatch.setenv("no_proxy", "example")
    bypassing = LlmClient(config.resolve(), "http://llm.example/v1")
    with pytest.raises(CallFailed):
        bypassing.send(REQUEST)
    assert len(stub.received) == 1


@pytest.mark.parametrize("content", [b"<html>busy</html>", b"\xff\xfe", b"[1, 2]", b'{"choices": []}', b""])
def test_garbage_with_status_200_is_no_answer(client, stub, content):
    stub.always = lambda handler, body: handler.send_bytes(200, content)
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    assert caught.value.reason == messages.INVALID_RESPONSE


@pytest.mark.parametrize(
    ("error", "reason", "passing"),
    [
        ({"code": 429, "message": "slow down"}, messages.RATE_LIMITED, True),
        ({"code": "429", "message": "slow down"}, messages.RATE_LIMITED, True),
        ({"status": "RESOURCE_EXHAUSTED", "message": "slow down"}, messages.RATE_LIMITED, True),
        ({"type": "overloaded_error", "message": "busy"}, messages.SERVER_ERROR, True),
        ({"code": 502, "message": "upstream"}, messages.SERVER_ERROR, True),
        ({"message": "something broke"}, messages.SERVER_ERROR, True),
        ("something broke", messages.SERVER_ERROR, True),
        ({"type": "invalid_request_error", "message": "no such field"}, messages.BAD_REQUEST, False),
        ({"code": 400, "message": "flagged by moderation"}, messages.REFUSED, False),
    ],
)
@pytest.mark.parametrize("form", ["object", "list", "choice"])
def test_an_error_with_status_200_is_that_error(client, stub, error, reason, passing, form):
    body = {"error": error, "usage": {"prompt_tokens": 9}}
    if form == "list":
        body = [body]
    if form == "choice":
        body = {"choices": [{"error": error, "finish_reason": "error", "message": {"content": ""}}]}
    stub.always = lambda handler, _: handler.send_json(200, body)
    with pytest.raises(CallFailed, match=error if isinstance(error, str) else error["message"]) as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (reason, passing, form != "list")


@pytest.mark.parametrize(
    "error",
    [{"code": 401, "message": "no"}, {"code": 402, "message": "pay"}, {"code": "insufficient_quota", "message": "x"}],
)
def test_an_error_with_status_200_that_will_not_pass_ends_the_job(client, stub, error):
    stub.always = lambda handler, _: handler.send_json(200, {"error": error})
    with pytest.raises(LlmError):
        client.send(REQUEST)


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (403, "Your chosen model requires moderation and your input was flagged for violence", messages.REFUSED),
        (400, "The response was filtered due to the prompt triggering content management policy", messages.REFUSED),
        (403, "Country, region, or territory not supported", messages.BAD_REQUEST),
    ],
)
def test_a_403_that_does_not_speak_of_the_key_fails_one_request_with_the_endpoints_words(
    client, stub, status, message, reason
):
    stub.always = failing(status, {"message": message})
    with pytest.raises(CallFailed, match=message[:40]) as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing) == (reason, False)


def test_a_403_after_a_success_fails_one_request(client, stub):
    client.send(REQUEST)
    stub.always = failing(403, {"message": "invalid api key"})
    with pytest.raises(CallFailed, match="invalid api key"):
        client.send(REQUEST)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_is_refused_before_anything_is_sent_there(stub, client, status):
    with running_stub() as other:
        target = other.base_url.replace("127.0.0.1", "localhost")
        stub.always = lambda handler, _: handler.send_json(status, {}, {"Location": f"{target}/chat/completions"})
        with pytest.raises(LlmError, match="redirects to http://localhost, another host"):
            client.send(REQUEST)
        assert not other.received


def test_a_redirect_within_the_host_is_followed(stub, client):
    stub.replies = [
        lambda handler, _: handler.send_json(307, {}, {"Location": f"{stub.base_url}/v2/chat/completions"}),
    ]
    assert client.send(REQUEST)["choices"]


def test_a_tls_failure_says_tls(stub, monkeypatch):
    url = stub.base_url.replace("http://", "https://")
    config = LlmConfig(model="m", base_url=url, strategy="listwise", api_key_env="NO_SUCH_KEY")
    with pytest.raises(CallFailed, match=r"TLS: .*https") as caught:
        LlmClient(config.resolve(), url).send(REQUEST)
    assert caught.value.reason == messages.CONNECTION


def test_a_certificate_that_is_not_trusted_says_tls_and_is_not_retried(stub, monkeypatch, tmp_path):
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-out",
    ]
    subprocess.run([*command, certificate, "-keyout", key], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    stub.socket = context.wrap_socket(stub.socket, server_side=True)
    url = stub.base_url.replace("http://", "https://")
    config = LlmConfig(model="m", base_url=url, strategy="listwise", api_key_env="NO_SUCH_KEY")
    with pytest.raises(CallFailed, match=r"TLS: the certificate of .* is not trusted .*self-signed") as caught:
        LlmClient(config.resolve(), url).send(REQUEST)
    assert not caught.value.passing
    assert not stub.received


def test_a_gzip_bomb_is_one_failed_request_that_takes_no_memory(client, stub):
    bomb = 10 * gzip.compress(bytes(40_000_000), mtime=0)
    stub.always = lambda handler, _: handler.send_bytes(200, bomb, {"Content-Encoding": "gzip"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CallFailed, match="longer than 32 MB") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing) == (messages.INVALID_RESPONSE, False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


@pytest.mark.parametrize(
    "encode",
    [gzip.compress, zlib.compress, lambda b: gzip.compress(b[:9], mtime=0) + gzip.compress(b[9:])],
)
def test_a_compressed_response_is_read(client, stub, encode):
    body = encode(json.dumps(chat_response([{"item": 1, "score": 0.5}])).encode())
    stub.always = lambda handler, _: handler.send_bytes(200, body, {"Content-Encoding": "gzip"})
    assert client.send(REQUEST)["usage"]["prompt_tokens"] == 1000


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(b'{"choices": []}', mtime=0)[:-9], {"Content-Encoding": "gzip"}),
        (b"no gzip", {"Content-Encoding": "gzip"}),
        (b"{}", {"Content-Encoding": "br"}),
        (b'{"choices": "\xff\xfe"}', {}),
        (b"[" * 200_000, {}),
        (b'{"usage": ' + b"9" * 10_000 + b"}", {}),
        (b" " * 33_000_000, {}),
    ],
    ids=lambda value: repr(value)[:30],
)
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_damaged_or_huge_body_fails_one_request(client, stub, body, headers, status):
    stub.always = lambda handler, _: handler.send_bytes(status, body, headers)
    with pytest.raises(CallFailed):
        client.send(REQUEST)


def test_lone_surrogates_and_huge_counters_can_be_stored(client, stub):
    content = b'{"choices": [{"message": {"content": "\\ud800 \\ud83d\\ude00"}}], "usage": {"prompt_tokens": 1%s}}'
    stub.always = lambda handler, _: handler.send_bytes(200, content % (b"0" * 30))
    response = client.send(REQUEST)
    assert response["choices"][0]["message"]["content"] == "\ufffd \U0001f600"
    assert messages.Usage.of(response) == messages.Usage()


@pytest.mark.parametrize("charset", ["zlib", "utf-7", "no-such", "idna"])
def test_a_character_set_that_json_has_not_is_ignored(client, stub, charset):
    def reply(handler, body):
        content = json.dumps(chat_response([])).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", f"application/json; charset={charset}")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    stub.always = reply
    assert client.send(REQUEST)["choices"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_job_with_a_sentence_that_names_the_variable(client, stub, status):
    stub.always = echoing_key(status)
    with pytest.raises(LlmError, match=r"refuses the key in the environment variable STUB_KEY \(HTTP 40"):
        client.send(REQUEST)
    assert len(stub.received) == 1


def test_a_used_up_quota_ends_the_job(stub, monkeypatch):
    client = make_client(stub, monkeypatch)
    stub.always = failing(429, {"message": "quota", "code": "insufficient_quota"})
    with pytest.raises(LlmError, match="no quota left"):
        client.send(REQUEST)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_server_that_echoes_the_key_gets_it_into_no_error_and_no_log(stub, monkeypatch, caplog, status):
    caplog.set_level(logging.DEBUG)
    client = make_client(stub, monkeypatch)
    stub.always = echoing_key(status)
    with pytest.raises((CallFailed, LlmError)) as caught:
        client.send(REQUEST)
    seen = caplog.text
    error: BaseException | None = caught.value
    while error is not None:
        seen += repr(error) + str(error)
        error = error.__cause__ or error.__context__
    assert "Wm42" not in seen


def test_an_answer_that_holds_the_key_is_redacted_before_anyone_sees_it(client, stub):
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY).encode()
    body = b'{"choices": [{"message": {"content": "%s"}}]}' % escaped
    stub.always = lambda handler, _: handler.send_bytes(200, body)
    assert client.send(REQUEST)["choices"][0]["message"]["content"] == "[redacted]"


def test_the_key_is_never_sent_to_the_server_that_the_job_started(stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sent = []

    def remember(handler, body):
        sent.append(handler.headers["Authorization"])
        handler.send_json(200, chat_response([]))

    stub.always = remember
    LlmClient(LlmConfig().resolve(), stub.base_url).send(REQUEST)
    assert sent == ["Bearer none"]


def test_an_endpoint_that_cannot_force_tokens_says_so(client, stub):
    stub.always = lambda handler, body: handler.send_json(200, {"object": "list"})
    request = LlmRequest(
        kind=FORCED,
        model="m",
        prompt_version="p",
        body={"prompt": "a", "text": " b"},
        max_tokens=2,
        expected_tokens=1,
    )
    with pytest.raises(CallFailed, match=r"is this llama\.cpp\?"):
        client.send(request)


@pytest.mark.parametrize(
    ("status", "body", "headers", "words"),
    [
        (402, {"error": {"message": "please pay"}}, {}, "cannot pay .*please pay"),
        (429, {"error": {"message": "used up", "type": "insufficient_quota", "code": None}}, {}, "no quota.*used up"),
        (400, {"error": {"message": "stop", "code": "billing_hard_limit_reached"}}, {}, "cannot pay .*stop"),
        (429, {"error": {"message": "later"}}, {"Retry-After": "7200"}, r"wait 2\.0 hours .*later"),
        (
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "spent",
                        "status": "RESOURCE_EXHAUSTED",
                        "details": [{"retryDelay": "36000s"}],
                    }
                }
            ],
            {},
            r"wait 10\.0 hours .*spent",
        ),
    ],
)
def test_what_no_retry_can_mend_ends_the_job_in_the_endpoints_own_words(client, stub, status, body, headers, words):
    stub.always = lambda handler, _: handler.send_json(status, body, headers)
    with pytest.raises(LlmError, match=words):
        client.send(REQUEST)


def test_googles_short_retry_delay_is_waited_for(client, stub):
    error = {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "34s"}]}
    stub.always = lambda handler, _: handler.send_json(429, [{"error": error}])
    with pytest.raises(CallFailed, match="slow") as caught:
        client.send(REQUEST)
    assert (caught.value.passing, caught.value.pushed_back, caught.value.retry_after_s) == (True, True, 34)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "Not authenticated"}, "Not authenticated"),
        ({"message": "Limit Exceeded"}, "Limit Exceeded"),
        ({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]}, "Authentication error"),
        ({"status": "error", "code": 429, "message": "slow down"}, "slow down"),
        ({"choices": {"0": 1}}, '"0": 1'),
    ],
)
def test_a_success_without_a_choice_is_told_in_the_endpoints_words_and_without_the_key(client, stub, body, words):
    stub.always = lambda handler, _: handler.send_json(200, {**body, "key": KEY})
    with pytest.raises(CallFailed, match=r"holds no choices\[0\]\.message") as caught:
        client.send(REQUEST)
    assert words in caught.value.detail
    assert KEY not in caught.value.detail


def test_a_page_of_a_proxy_is_told_in_its_words(client, stub):
    page = "<html><head><title>x</title></head><p>Access denied,<br>ask your administrator</html>"
    stub.always = lambda handler, _: handler.send_bytes(403, page.encode())
    with pytest.raises(CallFailed, match=r"HTTP 403: Access denied, ask your administrator"):
        client.send(REQUEST)


def test_a_byte_order_mark_before_the_response_is_read(client, stub):
    content = json.dumps(chat_response([{"item": 1, "score": 0.5}])).encode()
    stub.always = lambda handler, _: handler.send_bytes(200, b"\xef\xbb\xbf" + content)
    assert client.send(REQUEST)["choices"]

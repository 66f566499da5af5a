import collections
import concurrent.futures
import logging
import threading
import time

import pytest

from components.llm_scorer import exchange
from components.llm_scorer.client import CallFailed, LlmClient
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import CHAT, FORCED, LlmRequest
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
    ("status", "reason", "pushed_back"),
    [
        (408, exchange.BAD_REQUEST, False),
        (409, exchange.BAD_REQUEST, False),
        (429, exchange.RATE_LIMITED, True),
        (500, exchange.SERVER_ERROR, False),
        (503, exchange.SERVER_ERROR, True),
        (529, exchange.SERVER_ERROR, True),
    ],
)
def test_what_may_pass_is_told_apart_and_left_to_the_caller(client, stub, status, reason, pushed_back):
    stub.always = failing(status, {"message": "again"}, {"Retry-After": "7"})
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    failure = caught.value
    assert (failure.reason, failure.passing, failure.pushed_back) == (reason, True, pushed_back)
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
    assert (caught.value.reason, caught.value.passing) == (exchange.BAD_REQUEST, False)


def test_a_silent_server_is_a_timeout(stub, monkeypatch):
    client = make_client(stub, monkeypatch, timeout_s=0.2)
    stub.gate.clear()
    with pytest.raises(CallFailed, match=r"no answer within 0\.2 s") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (exchange.TIMEOUT, True, True)


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
    with pytest.raises(CallFailed, match=r"no answer within 0\.4 s"):
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
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (exchange.CONNECTION, True, True)


def test_a_server_that_is_not_there_bills_nothing(monkeypatch):
    with running_stub() as gone:
        client = make_client(gone, monkeypatch)
    with pytest.raises(CallFailed, match="ConnectError") as caught:
        client.send(REQUEST)
    assert (caught.value.reason, caught.value.passing, caught.value.may_be_billed) == (exchange.CONNECTION, True, False)


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
    assert caught.value.reason == exchange.INVALID_RESPONSE


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

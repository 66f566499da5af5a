import logging

import pytest

from components.llm_scorer import exchange
from components.llm_scorer.client import CallFailed, LlmClient
from components.llm_scorer.config import LlmConfig, LlmError
from components.llm_scorer.exchange import CHAT, FORCED, LlmRequest
from tests.components.llm_scorer.stub_server import (
    StubServer,
    chat_response,
    cutting,
    echoing_key,
    failing,
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
# Retries at once: the header is honoured, so the tests need not wait for the client's own back-off.
AT_ONCE = {"retry-after-ms": "1"}


@pytest.fixture
def client(stub: StubServer, monkeypatch: pytest.MonkeyPatch) -> LlmClient:
    return make_client(stub, monkeypatch)


def make_client(stub: StubServer, monkeypatch: pytest.MonkeyPatch, **values) -> LlmClient:
    monkeypatch.setenv("STUB_KEY", KEY)
    settings = {"max_retries": 2, "timeout_s": 20.0, **values}
    config = LlmConfig(model="m", base_url=stub.base_url, strategy="listwise", api_key_env="STUB_KEY", **settings)
    return LlmClient(config.resolve(), stub.base_url)


def test_what_fails_in_passing_is_asked_again(client, stub):
    stub.replies = [
        failing(429, {"message": "slow down"}, AT_ONCE),
        failing(500, {"message": "oops"}, AT_ONCE),
    ]
    assert client.send(REQUEST) == chat_response([{"item": 1, "score": 0.5}])
    assert len(stub.received) == 3


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, exchange.RATE_LIMITED), (500, exchange.SERVER_ERROR), (503, exchange.SERVER_ERROR)],
)
def test_repeats_are_bounded_and_end_in_a_reason(client, stub, status, reason):
    stub.always = failing(status, {"message": "again"}, AT_ONCE)
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    assert caught.value.reason == reason
    assert len(stub.received) == 3


def test_a_bad_request_is_not_repeated(client, stub):
    stub.always = failing(400, {"message": "the schema is wrong"})
    with pytest.raises(CallFailed, match="the schema is wrong") as caught:
        client.send(REQUEST)
    assert caught.value.reason == exchange.BAD_REQUEST
    assert len(stub.received) == 1


def test_a_silent_server_is_a_timeout(stub, monkeypatch):
    client = make_client(stub, monkeypatch, timeout_s=0.2, max_retries=0)
    stub.gate.clear()
    with pytest.raises(CallFailed, match=r"no answer within 0\.2 s") as caught:
        client.send(REQUEST)
    assert caught.value.reason == exchange.TIMEOUT


def test_a_cut_connection_is_a_reason_of_its_own(stub, monkeypatch):
    client = make_client(stub, monkeypatch, max_retries=0)
    stub.always = cutting
    with pytest.raises(CallFailed) as caught:
        client.send(REQUEST)
    assert caught.value.reason == exchange.CONNECTION


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
    client = make_client(stub, monkeypatch, max_retries=0)
    stub.always = failing(429, {"message": "quota", "code": "insufficient_quota"})
    with pytest.raises(LlmError, match="no quota left"):
        client.send(REQUEST)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_server_that_echoes_the_key_gets_it_into_no_error_and_no_log(stub, monkeypatch, caplog, status):
    caplog.set_level(logging.DEBUG)
    client = make_client(stub, monkeypatch, max_retries=0)
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

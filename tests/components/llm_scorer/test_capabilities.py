import logging

import pytest

from sllmr.components.llm_scorer.capabilities import REASONING_TOKENS, capabilities_of, is_openai
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.client import CallFailed, LlmClient
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.requests.refused import RefusedInRun
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items
from tests.components.llm_scorer.stub_server import chat_response, failing, scores_of


def config(base_url="http://127.0.0.1:9/v1", **values) -> LlmConfig:
    settings = {"model": "m", "strategy": "listwise", "api_key_env": "NO_SUCH_KEY", **values}
    return LlmConfig(base_url=base_url, **settings).resolve()


def request_of(chosen: LlmConfig):
    (request,) = create_strategy(chosen).requests(context(), market_items())
    return request


def sent_by(chosen: LlmConfig) -> dict:
    return LlmClient(chosen, str(chosen.base_url)).wire(request_of(chosen))[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.openai.com/v1", True),
        ("https://api.openai.com:443/v1/", True),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://proxy.example/api.openai.com/v1", False),
        (None, False),
    ],
)
def test_openai_is_told_by_its_host(url, expected):
    assert is_openai(url) is expected


def test_an_unlisted_endpoint_gets_the_common_parameters():
    body = sent_by(config())
    assert {"max_tokens", "seed", "temperature", "response_format"} <= set(body)
    assert "reasoning_effort" not in body


def test_a_reasoning_model_gets_room_and_an_effort_and_no_temperature():
    plain, reasoning = config(), config(base_url=None, model="gpt-5-mini")
    body = sent_by(reasoning)
    assert body["max_completion_tokens"] == sent_by(plain)["max_tokens"] + REASONING_TOKENS
    assert body["reasoning_effort"] == "low"
    assert not {"temperature", "max_tokens"} & set(body)


def test_the_user_overrides_the_table():
    overrides = {"seed": False, "temperature": False, "response_format": "json_object", "output_cap": "max_tokens"}
    body = sent_by(config(base_url=None, model="gpt-4o", capabilities=overrides))
    assert body["response_format"] == {"type": "json_object"}
    assert not {"seed", "temperature", "max_completion_tokens"} & set(body)
    assert "response_format" not in sent_by(config(capabilities={"response_format": "none"}))
    with pytest.raises(ValueError, match="tempratur"):
        config(capabilities={"tempratur": False})


def test_the_extra_body_is_sent_and_is_part_of_the_cache_identity():
    extra = {"provider": {"only": ["x"]}}
    assert sent_by(config(extra_body=extra))["provider"] == {"only": ["x"]}
    assert request_of(config(extra_body=extra)).key != request_of(config()).key
    for taken in ("model", "messages", "max_tokens"):
        with pytest.raises(ValueError, match=taken):
            config(extra_body={taken: 1})


def test_a_strategy_that_needs_log_probabilities_is_refused_where_there_are_none():
    with pytest.raises(ValueError, match="needs top_logprobs"):
        config(base_url=None, model="o3", strategy="yes_no")


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        ("temperature", "Unsupported value: 'temperature' does not support 0. Only the default (1) is supported."),
        ("seed", '[{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]'),
    ],
)
@pytest.mark.slow
def test_a_parameter_that_is_refused_by_name_is_dropped_once_for_the_run(stub, caplog, status, name, message):
    def picky(handler, body):
        if name in body:
            failing(status, {"message": message})(handler, body)
        else:
            handler.send_json(200, chat_response(scores_of(body)))

    stub.always = picky
    chosen = config(base_url=stub.base_url)
    client = LlmClient(chosen, stub.base_url)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert client.send(request_of(chosen))["choices"]
    assert [name in body for body in stub.received] == [True, False, False, False]
    assert caplog.text.count(f"refuses the parameter {name}") == 1
    if name == "max_tokens":
        assert stub.received[-1]["max_completion_tokens"] == stub.received[0]["max_tokens"]


@pytest.mark.parametrize(
    "message",
    [
        "This model does not support json_schema output",
        "This response_format type is unavailable now",
        "Invalid schema for response_format 'candidate_scores'",
        "response_format.type must be json_object or text",
    ],
)
@pytest.mark.parametrize("takes", ["json_object", None])
@pytest.mark.slow
def test_a_refused_schema_is_tried_as_json_object_before_the_form_is_left_out(stub, caplog, message, takes):
    def picky(handler, body):
        if body.get("response_format", {"type": takes})["type"] != takes:
            failing(400, {"message": message})(handler, body)
        else:
            handler.send_json(200, chat_response(scores_of(body)))

    stub.always = picky
    chosen = config(base_url=stub.base_url)
    client = LlmClient(chosen, stub.base_url)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert client.send(request_of(chosen))["choices"]
    forms = [body.get("response_format", {}).get("type") for body in stub.received]
    assert forms == (
        ["json_schema", "json_object", "json_object"] if takes else ["json_schema", "json_object", None, None]
    )
    assert caplog.text.count("json_schema (") == 1


def test_what_one_worker_learns_of_an_endpoint_holds_for_the_run(stub, tmp_path, caplog):
    def picky(handler, body):
        if "seed" in body:
            failing(400, {"message": "Unsupported parameter: seed"})(handler, body)
        else:
            handler.send_json(200, chat_response(scores_of(body)))

    stub.always = picky
    chosen = config(base_url=stub.base_url)
    workers = [LlmClient(chosen, stub.base_url, RefusedInRun(RunLedger(str(tmp_path), run))) for run in ("a", "a", "b")]
    with caplog.at_level(logging.WARNING):
        for worker in workers:
            worker.send(request_of(chosen))
    # Another run finds out for itself: the endpoint may take it by then.
    assert ["seed" in body for body in stub.received] == [True, False, False, True, False]
    assert caplog.text.count("refuses the parameter seed") == 2


@pytest.mark.parametrize(
    ("url", "model", "expected"),
    [
        ("https://api.anthropic.com/v1", "claude-sonnet-5", {"response_format": "none", "seed": False}),
        ("https://api.groq.com/openai/v1", "llama-4", {"top_logprobs": False, "response_format": "json_object"}),
        ("https://api.deepseek.com", "deepseek-chat", {"response_format": "json_object", "top_logprobs": True}),
        ("https://api.deepseek.com", "deepseek-reasoner", {"top_logprobs": False, "reasoning": True}),
        ("https://shop.openai.azure.com/openai/v1", "gpt-4o", {"output_cap": "max_completion_tokens"}),
        ("https://shop.services.ai.azure.com/openai/v1", "gpt-4o", {"output_cap": "max_completion_tokens"}),
        ("https://api.together.xyz/v1", "meta-llama/Llama-4", {"top_logprobs": False, "seed": True}),
        ("https://openrouter.ai/api/v1", "openai/gpt-5-mini", {"temperature": False, "reasoning": True}),
        ("http://localhost:11434/v1", "qwen3", {"output_cap": "max_tokens", "response_format": "json_schema"}),
    ],
)
def test_what_providers_document_is_in_the_table(url, model, expected):
    found = capabilities_of(url, model, {}).model_dump()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("message", ["temperature must be a number", "the prompt is too long", "unsupported model"])
def test_any_other_refusal_is_a_failure_and_drops_nothing(stub, message):
    stub.always = failing(400, {"message": message})
    chosen = config(base_url=stub.base_url)
    with pytest.raises(CallFailed, match=message):
        LlmClient(chosen, stub.base_url).send(request_of(chosen))
    assert len(stub.received) == 1


def test_an_endpoint_that_refuses_both_names_of_the_output_cap_fails_the_request(stub):
    def never(handler, body):
        name = next(n for n in ("max_tokens", "max_completion_tokens") if n in body)
        failing(400, {"message": f"Unsupported parameter: {name}"})(handler, body)

    stub.always = never
    chosen = config(base_url=stub.base_url)
    with pytest.raises(CallFailed, match="Unsupported parameter"):
        LlmClient(chosen, stub.base_url).send(request_of(chosen))
    assert len(stub.received) == 3

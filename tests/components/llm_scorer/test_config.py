import pydantic
import pytest

from sllmr.components.llm_scorer.config import OPENAI_BASE_URL, Budget, LlmConfig, Price
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.needs import check_needs


def test_without_any_setting_the_bundled_model_is_asked_by_title_likelihood():
    config = LlmConfig().resolve()
    assert (config.model, config.strategy, config.base_url) == (BUNDLED_MODEL, "title_likelihood", None)
    assert config.concurrency == config.slots
    assert config.uses_local_server


def test_naming_gpt_4o_mini_and_setting_the_key_is_all_that_openai_needs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-some-key-for-this-test")
    config = LlmConfig(model="gpt-4o-mini")
    check_needs(config)
    resolved = config.resolve()
    assert (resolved.strategy, resolved.base_url) == ("listwise", OPENAI_BASE_URL)
    assert resolved.price == Price(prompt=0.15, cached_prompt=0.075, completion=0.6)


def test_a_missing_key_is_one_sentence_before_anything_is_spent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(LlmError, match=r"environment variable MY_KEY is not set; set it"):
        check_needs(LlmConfig(model="gpt-4o-mini", api_key_env="MY_KEY"))


def test_a_configuration_survives_its_journey_as_json():
    config = LlmConfig(model="gpt-4o-mini", budget=Budget(pairs=7, max_cost_usd=0.5)).resolve()
    assert LlmConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "magic"}, "strategy must be one of listwise, .*, replay, got 'magic'"),
        ({"strategy": "replay"}, r"strategy replay needs a table, got none; set llm\.replay_table"),
        ({"embedding_file": "v.npz"}, r"llm.embedding_file has moved; write item_vectors: {source: file, file: ...}"),
        ({"strategy": "listwise", "replay_table": "t.csv"}, "replay_table needs strategy replay, got listwise"),
        ({"model": "gpt-4o", "strategy": "title_likelihood"}, "needs a llama.cpp server"),
        (
            {"model": "new-model", "budget": {"max_cost_usd": 1}},
            "max_cost_usd needs the price of 'new-model'",
        ),
        ({"candidates": {"per_context": 4}}, r"at most per_context, got 6 > 4"),
        ({"candidates": {"short_history_fraction": 0.9, "tail_target_fraction": 0.2}}, r"at most 1, got 1\.1"),
        (
            {"model": "gemma-3-270m-q4_k_m"},
            r"under the terms of https://ai\.google\.dev/gemma/terms, .* set llm\.accept_license: true",
        ),
        ({"base_url": "localhost:80"}, "must be like https://host/v1"),
        ({"batch": {"requests_per_file": 60_000}}, "less than or equal to 50000"),
        ({"modle": "gpt-4o"}, "Extra inputs are not permitted"),
        ({"candidates": {"moments": "latest"}}, "llm.candidates.moments was renamed; write llm.candidates.contexts"),
        (
            {"candidates": {"cold_fraction": 0.1}},
            "cold_fraction was renamed; write llm.candidates.short_history_fraction",
        ),
        ({"audit": {"share": 0.1}}, r"llm\.audit\.share was renamed; write llm\.audit\.fraction"),
    ],
)
def test_what_cannot_work_is_refused_when_the_configuration_is_built(values, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        LlmConfig.model_validate(values)


def test_scores_by_item_vectors_need_neither_key_nor_price(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = LlmConfig.model_validate({"strategy": "embedding", "budget": {"max_cost_usd": 1}})
    check_needs(config)
    resolved = config.with_item_vectors("/v.npz").resolve()
    assert (resolved.model, resolved.base_url, resolved.uses_local_server) == ("item_vectors", None, False)
    assert resolved.item_vectors_file == resolved.resolve().item_vectors_file == "/v.npz"
    assert "/v.npz" not in resolved.model_dump_json()


def test_scores_from_a_table_need_neither_key_nor_price_but_the_file(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = tmp_path / "file.npz"
    config = LlmConfig.model_validate({"strategy": "replay", "replay_table": str(file), "budget": {"max_cost_usd": 1}})
    with pytest.raises(LlmError, match=r"llm\.replay_table must be a .*, got .*file\.npz"):
        check_needs(config)
    file.touch()
    check_needs(config)
    resolved = config.resolve()
    assert (resolved.model, resolved.base_url, resolved.uses_local_server) == ("file.npz", None, False)
    assert resolved.resolve() == resolved


@pytest.mark.parametrize(
    ("model", "strategy", "slots"),
    [
        ("smollm2-135m-instruct-q4_1", "title_likelihood", 16),
        ("qwen2.5-coder-1.5b-instruct-q4", "yes_no", 2),
        ("gemma-3-270m-q4_k_m", "title_likelihood", 16),
    ],
)
def test_a_model_of_this_machine_is_named_and_costs_nothing(model, strategy, slots):
    config = LlmConfig(model=model, accept_license=True)
    resolved = config.resolve()
    assert resolved.uses_local_server
    assert (resolved.base_url, resolved.strategy, resolved.concurrency) == (None, strategy, slots)
    assert resolved.price == Price(prompt=0, cached_prompt=0, completion=0)
    elsewhere = LlmConfig(model=model, strategy="listwise", base_url="http://host/v1").resolve()
    assert not elsewhere.uses_local_server  # and the terms are those of whoever serves it


def test_a_password_in_the_url_is_refused_without_repeating_it():
    with pytest.raises(pydantic.ValidationError, match="must carry no user, password or query") as caught:
        LlmConfig(base_url="https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)

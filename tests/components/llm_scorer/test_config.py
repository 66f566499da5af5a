import pydantic
import pytest

from components.llm_scorer.config import BUNDLED_MODEL, OPENAI_BASE_URL, Budget, LlmConfig, LlmError, Price


def test_without_any_setting_the_bundled_model_is_asked_by_title_likelihood():
    config = LlmConfig().resolve()
    assert (config.model, config.strategy, config.base_url) == (BUNDLED_MODEL, "title_likelihood", None)
    assert config.concurrency == config.local_server.slots
    assert config.uses_local_server


def test_naming_gpt_4o_mini_and_setting_the_key_is_all_that_openai_needs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-some-key-for-this-test")
    config = LlmConfig(model="gpt-4o-mini")
    config.check_needs()
    resolved = config.resolve()
    assert (resolved.strategy, resolved.base_url) == ("listwise", OPENAI_BASE_URL)
    assert resolved.price == Price(prompt=0.15, cached_prompt=0.075, completion=0.6)


def test_a_missing_key_is_one_sentence_before_anything_is_spent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(LlmError, match=r"environment variable MY_KEY is not set; set it"):
        LlmConfig(model="gpt-4o-mini", api_key_env="MY_KEY").check_needs()


def test_a_configuration_survives_its_journey_as_json():
    config = LlmConfig(model="gpt-4o-mini", budget=Budget(pairs=7, max_cost_usd=0.5)).resolve()
    assert LlmConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategy": "magic"}, "strategy must be one of listwise, .*, replay, got 'magic'"),
        ({"strategy": "replay"}, r"strategy replay needs a table, got none; set llm\.replay_table"),
        ({"embedding_file": "v.npz"}, "embedding_file needs strategy embedding, got none"),
        ({"strategy": "listwise", "replay_table": "t.csv"}, "replay_table needs strategy replay, got listwise"),
        ({"model": "gpt-4o", "strategy": "title_likelihood"}, "needs a llama.cpp server"),
        (
            {"model": "new-model", "budget": {"max_cost_usd": 1}},
            "max_cost_usd needs the price of 'new-model'",
        ),
        ({"candidates": {"per_context": 4}}, r"at most per_context, got 6 > 4"),
        ({"candidates": {"cold_fraction": 0.9, "tail_chosen_fraction": 0.2}}, r"at most 1, got 1\.1"),
        ({"base_url": "localhost:80"}, "must be like https://host/v1"),
        ({"batch": {"requests_per_file": 60_000}}, "less than or equal to 50000"),
        ({"modle": "gpt-4o"}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_work_is_refused_when_the_configuration_is_built(values, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        LlmConfig.model_validate(values)


@pytest.mark.parametrize(("strategy", "key"), [("embedding", "embedding_file"), ("replay", "replay_table")])
def test_scores_from_a_file_need_neither_key_nor_price_but_the_file(monkeypatch, tmp_path, strategy, key):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    file = tmp_path / "file.npz"
    config = LlmConfig.model_validate({"strategy": strategy, key: str(file), "budget": {"max_cost_usd": 1}})
    with pytest.raises(LlmError, match=rf"llm\.{key} must be a .*, got .*file\.npz"):
        config.check_needs()
    file.touch()
    config.check_needs()
    resolved = config.resolve()
    assert (resolved.model, resolved.base_url, resolved.uses_local_server) == ("file.npz", None, False)
    assert resolved.resolve() == resolved


def test_a_password_in_the_url_is_refused_without_repeating_it():
    with pytest.raises(pydantic.ValidationError, match="must carry no user, password or query") as caught:
        LlmConfig(base_url="https://me:hunter2@host/v1")
    assert "hunter2" not in str(caught.value)

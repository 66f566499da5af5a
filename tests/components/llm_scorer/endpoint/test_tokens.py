import http.client
import json
import urllib.parse

import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint import tokens
from sllmr.components.llm_scorer.endpoint.tokens import (
    count_tokens,
    dearest_usage,
    expected_cached_prompt,
    expected_usage,
)
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.messages import LlmRequest
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items

TEXTS = {
    "Toy Story (1995): Animation, Children's, Comedy": 15,
    "OPI Gelcolor Nail Polish, GCR54 Russian Navy, 0.5 Fluid Ounce: Beauty, Makeup, Nails": 31,
    "- 18\" Doll Outfit\n- Zeus on the Loose\n\nThen\n1. I'm Not Lion 1080/80527 — ½ price!\n": 42,
    "Die unendliche Geschichte, Преступление и наказание, 千と千尋の神隠し, ألف ليلة, 🎬 <|im_end|": 62,
    "  two  blanks\tand a tab_with_underscores  \n   ": 16,
    "one\n\n\nafter two empty lines \n  \n1984\r\n\u2028done\n\n\n": 18,
    "½ ² Ⅷ ٣ 12, 3½ and 007": 22,
    "e\u0301 and é, \u00a0no-break, \u200bzero width, it's WE'LL they'd": 24,
    "".join(chr(code) for code in range(1, 384)) + "\U0004dead": 532,
    "<|im_end|>\n<|im_start|>user a<repo_name>b": 7,
    "": 0,
}
"""Tokens as the bundled model's server counts them."""


def post(url: str, path: str, body: dict) -> dict:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    connection.request("POST", path, json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokens_of_the_bundled_model_are_those_that_its_server_counted(text):
    assert count_tokens(text, BUNDLED_MODEL) == TEXTS[text]
    several = f"{text}\nnext line\n{text}\n\n{text}"
    whole, _ = tokens._tokenizer()
    assert count_tokens(several, BUNDLED_MODEL) == len(whole.encode(several))


@pytest.mark.slow
def test_the_bundled_models_server_counts_tokens_so(llm_url):
    def counted(text: str) -> int:
        return len(post(llm_url, "/tokenize", {"content": text, "add_special": False})["tokens"])

    assert {text: counted(text) for text in TEXTS} == TEXTS
    assert counted("\n".join(TEXTS)) == count_tokens("\n".join(TEXTS), BUNDLED_MODEL)


def test_half_a_surrogate_pair_counts_as_a_question_mark():
    assert count_tokens("half \ud83c", BUNDLED_MODEL) == count_tokens("half ?", BUNDLED_MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["listwise", "yes_no"])
def test_expected_tokens_of_a_prompt_are_what_the_bundled_models_server_bills(llm_url, strategy):
    config = LlmConfig(strategy=strategy).resolve()
    (request, *_) = create_strategy(config).requests(context(), market_items())
    usage = post(llm_url, "/v1/chat/completions", {**request.body, "max_tokens": 1})["usage"]
    assert expected_usage(request, config).prompt == usage["prompt_tokens"]


@pytest.mark.parametrize(("strategy", "expected"), [("listwise", 117), ("yes_no", 44)])
def test_other_models_tokens_are_told_within_a_tenth(strategy, expected):
    config = LlmConfig(model="gpt-4o-mini", strategy=strategy).resolve()
    (request, *_) = create_strategy(config).requests(context(), market_items())
    # As o200k_base, the tokenizer of gpt-4o-mini, has them.
    assert count_tokens(request.body["messages"][-1]["content"], config.model) == pytest.approx(expected, rel=0.1)


def chat(words: str, model: str = "gpt-4o-mini") -> LlmRequest:
    return LlmRequest(
        kind=messages.CHAT,
        model=model,
        prompt_version="p",
        body={"messages": [{"role": "user", "content": words}]},
        max_tokens=50,
        expected_tokens=20,
    )


def test_the_schema_counts_where_the_endpoint_shows_it_to_the_model():
    here, openai = LlmConfig(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1"), LlmConfig(model="gpt-4o-mini")
    (request,) = create_strategy(openai.resolve()).requests(context(), market_items())
    schema = count_tokens(json.dumps(request.body["response_format"]["json_schema"], separators=(",", ":")), "m")
    difference = expected_usage(request, openai.resolve()).prompt - expected_usage(request, here.resolve()).prompt
    assert difference == pytest.approx(schema, abs=1)


@pytest.mark.parametrize(
    ("settings", "words", "cached"),
    [
        ({"strategy": "yes_no"}, 40, 40),
        ({"model": "gpt-4o-mini"}, 1000, 0),
        ({"model": "gpt-4o-mini"}, 1400, 1280),
        ({"model": "gpt-4o-mini", "base_url": "http://127.0.0.1:9/v1"}, 1400, 0),
    ],
)
def test_what_two_prompts_begin_with_is_cached_where_the_server_is_known_to_keep_it(settings, words, cached):
    config = LlmConfig.model_validate(settings).resolve()
    beginning = " the" * round(words / count_tokens(" the", config.model))
    one, two = (chat(beginning + end, config.model) for end in (" cat", " dog"))
    assert expected_cached_prompt(two, one, config) == pytest.approx(cached, abs=1)


def test_no_text_has_more_tokens_than_the_bound_that_money_is_set_aside_by():
    for text in TEXTS:
        assert dearest_usage(chat(text)).prompt > count_tokens(text, BUNDLED_MODEL)
    assert dearest_usage(chat("")).completion == 50

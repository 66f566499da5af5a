import math

import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.client import LlmClient
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL
from sllmr.components.llm_scorer.messages import Answer
from sllmr.components.llm_scorer.strategies import create_strategy
from tests.components.llm_scorer.market import context, market_items

CATALOG = market_items()
CONFIG = LlmConfig(model="m", base_url="http://127.0.0.1:9/v1", strategy="yes_no").resolve()


def answer(top: list[tuple[str, float]], **choice) -> Answer:
    shown = [{"token": token, "logprob": math.log(p)} for token, p in top]
    logprobs = {"content": [{"token": top[0][0], "logprob": 0.0, "top_logprobs": shown}]} if top else None
    message = {"role": "assistant", "content": "", "refusal": None}
    choice = {"message": message, "finish_reason": "length", "logprobs": logprobs, **choice}
    return Answer(response={"choices": [choice]}, answered_at=7)


def result(given: Answer):
    (only,) = create_strategy(CONFIG).results(context(items=("i20",)), [given])
    return only


def test_the_score_is_the_probability_of_yes_against_no_over_all_their_spellings():
    found = result(answer([("Yes", 0.3), ("No", 0.2), (" yes", 0.1), ("Maybe", 0.05), ("NO", 0.02)]))
    assert found.llm_score == pytest.approx(0.4 / (0.4 + 0.22))
    assert found.raw_score == pytest.approx(math.log(0.4 / 0.22))


def test_a_word_that_is_not_shown_counts_as_likely_as_the_least_likely_that_is():
    assert result(answer([("Yes", 0.9), ("Well", 0.01)])).llm_score == pytest.approx(0.9 / 0.91)
    assert result(answer([("No", 0.9), ("Well", 0.01)])).llm_score == pytest.approx(0.01 / 0.91)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer([("I", 0.5), ("The", 0.2)]), messages.NO_VERDICT),
        (answer([]), messages.INVALID_RESPONSE),
        (answer([("Yes", 0.5)], finish_reason="content_filter"), messages.REFUSED),
        (answer([("Yes", 0.5)], message={"refusal": "I cannot"}), messages.REFUSED),
        (
            answer([("Yes", 0.5)], logprobs={"content": [{"top_logprobs": [{"token": "Yes"}]}]}),
            messages.INVALID_RESPONSE,
        ),
        (Answer(reason=messages.TIMEOUT, detail="late"), messages.TIMEOUT),
    ],
)
def test_what_holds_no_verdict_is_no_score(given, reason):
    found = result(given)
    assert (found.llm_score, found.raw_score, found.reason) == (None, None, reason)


def test_requests_of_a_context_differ_only_at_their_end():
    first, second = create_strategy(CONFIG).requests(context(items=("i20", "i21")), CATALOG)
    one, other = first.body["messages"][1]["content"], second.body["messages"][1]["content"]
    same = len(one.split(CATALOG["i20"].title)[0])
    assert one[:same] == other[:same]
    assert CATALOG["i1"].title in one[:same]
    assert first.max_tokens == 1
    assert first.key != second.key


@pytest.mark.slow
def test_the_real_local_llm_gives_a_verdict_on_every_candidate(llm_url):
    config = LlmConfig(model=BUNDLED_MODEL, base_url=llm_url, strategy="yes_no").resolve()
    client = LlmClient(config, llm_url)
    strategy = create_strategy(config)
    asked = context(items=("i20", "i21"))
    answers = [Answer(response=client.send(r), answered_at=1) for r in strategy.requests(asked, CATALOG)]
    client.close()
    scores = [found.llm_score for found in strategy.results(asked, answers)]
    assert all(score is not None and 0 < score < 1 for score in scores)
    # One token was paid for, each.
    assert [a.response["usage"]["completion_tokens"] for a in answers] == [1, 1]

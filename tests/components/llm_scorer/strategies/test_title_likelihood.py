import math

import openai
import pytest

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.client import LlmClient
from sllmr.components.llm_scorer.messages import FORCED, Answer, LlmRequest
from sllmr.components.llm_scorer.strategies.title_likelihood import SCALE_NATS, TitleLikelihood
from tests.components.llm_scorer.market import context, market_items

CATALOG = market_items()
CONTEXT = context(items=("i20", "i21"), history=("i40", "i41"))


def strategy() -> TitleLikelihood:
    return TitleLikelihood(LlmConfig().resolve())


def forced_answer(*logprobs: float) -> Answer:
    return Answer(response={"token_logprobs": list(logprobs)}, answered_at=1)


def test_each_candidate_is_asked_once_after_the_history_and_once_without():
    requests = strategy().requests(CONTEXT, CATALOG)
    prompts = [r.body["prompt"] for r in requests]
    texts = [f" {CATALOG[i].title}: {CATALOG[i].categories[0]}" for i in ("i20", "i21")]
    assert [r.body["text"] for r in requests] == texts * 2
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    # The latest item stands last, next to the candidate.
    assert prompts[0].index(CATALOG["i41"].title) < prompts[0].index(CATALOG["i40"].title)
    assert CATALOG["i40"].title not in prompts[2]


def test_the_score_is_the_gain_in_log_probability_and_its_logistic_around_the_contexts_mean():
    answers = [forced_answer(-1.0, -2.0), forced_answer(-9.0), forced_answer(-2.5, -3.0), forced_answer(-4.0)]
    first, second = strategy().results(CONTEXT, answers)
    assert first.raw_score == pytest.approx((-1.0 - 2.0) - (-2.5 - 3.0))
    assert second.raw_score == pytest.approx(-9.0 + 4.0)
    mean = (2.5 - 5.0) / 2
    assert first.llm_score == pytest.approx(1 / (1 + math.exp(-(2.5 - mean) / SCALE_NATS)))
    assert second.llm_score == pytest.approx(1 / (1 + math.exp(-(-5.0 - mean) / SCALE_NATS)))


def test_what_a_history_adds_to_every_candidate_does_not_change_the_scores():
    answers = [forced_answer(-1.0), forced_answer(-9.0), forced_answer(-2.5), forced_answer(-4.0)]
    shifted = [forced_answer(20.0, -1.0), forced_answer(20.0, -9.0), *answers[2:]]
    scores = [r.llm_score for r in strategy().results(CONTEXT, answers)]
    assert [r.llm_score for r in strategy().results(CONTEXT, shifted)] == pytest.approx(scores)


def test_an_extreme_gain_stays_in_range():
    answers = [forced_answer(-1e5), forced_answer(0.0), forced_answer(0.0), forced_answer(-1e5)]
    assert [r.llm_score for r in strategy().results(CONTEXT, answers)] == [0.0, 1.0]


def test_a_log_probability_that_is_no_number_is_no_score():
    answers = [forced_answer(float("-inf")), forced_answer(-1.0), forced_answer(-1.0), forced_answer(-1.0)]
    first, second = strategy().results(CONTEXT, answers)
    assert (first.reason, first.llm_score) == (messages.NOT_A_NUMBER, None)
    assert second.llm_score == pytest.approx(0.5)


@pytest.mark.parametrize("failed", [0, 2])
def test_a_candidate_needs_both_of_its_answers(failed):
    answers = [forced_answer(-1.0)] * 4
    answers[failed] = Answer(reason=messages.SERVER_ERROR, detail="HTTP 500")
    first, second = strategy().results(CONTEXT, answers)
    assert (first.reason, first.llm_score) == (messages.SERVER_ERROR, None)
    assert second.llm_score == pytest.approx(0.5)


@pytest.mark.slow
def test_forced_tokens_have_the_probabilities_that_the_model_gave_them_when_it_chose_them_itself(llm_url):
    prompt = "Movies I liked: Toy Story (1995), GoldenEye (1995). I also liked"
    free = (
        openai.OpenAI(base_url=llm_url, api_key="none")
        .completions.create(model="m", prompt=prompt, max_tokens=8, temperature=0, logprobs=1)
        .model_dump()["choices"][0]
    )
    tokens = free["logprobs"]["content"]
    text = b"".join(bytes(t["bytes"]) for t in tokens).decode()
    client = LlmClient(LlmConfig().resolve(), llm_url)
    request = LlmRequest(
        kind=FORCED,
        model="m",
        prompt_version="p",
        body={"prompt": prompt, "text": text},
        max_tokens=8,
        expected_tokens=8,
    )
    forced = client.send(request)["token_logprobs"]
    assert forced == pytest.approx([t["logprob"] for t in tokens], abs=2e-3)


@pytest.mark.slow
def test_a_history_of_westerns_makes_a_western_likelier_than_it_makes_a_cartoon(llm_url):
    items = {
        name: Item(item_id=name, title=title, categories=(genre,))
        for name, title, genre in [
            ("a", "Unforgiven", "Western"),
            ("b", "Tombstone", "Western"),
            ("c", "Dances with Wolves", "Western"),
            ("x", "Wyatt Earp", "Western"),
            ("y", "Pinocchio", "Animation"),
        ]
    }
    asked = context(items=("x", "y"), history=("a", "b", "c"))
    client = LlmClient(LlmConfig().resolve(), llm_url)
    answers = [Answer(response=client.send(r), answered_at=1) for r in strategy().requests(asked, items)]
    western, cartoon = strategy().results(asked, answers)
    assert western.raw_score is not None
    assert cartoon.raw_score is not None
    assert western.raw_score > cartoon.raw_score + 1

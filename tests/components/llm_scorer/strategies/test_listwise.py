import json
import re

import pytest

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.messages import Answer
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.llm_scorer.strategies.listwise import MAX_UNKNOWN_ITEMS, Listwise
from tests.components.llm_scorer.market import context, market_items
from tests.components.llm_scorer.stub_server import chat_response

CATALOG = market_items()
CONTEXT = context(items=("i20", "i21", "i22"), history=("i40", "i41"))


def strategy(**values) -> Listwise:
    return Listwise(LlmConfig(model="m", base_url="http://host/v1", strategy="listwise", **values).resolve())


def numbered_ids(listwise: Listwise) -> dict[int, str]:
    """Which number the prompt gave to which item, read off the prompt itself."""
    (request,) = listwise.requests(CONTEXT, CATALOG)
    titles = {item.title: item_id for item_id, item in CATALOG.items()}
    lines = re.findall(r"^(\d+)\. (.*):", request.body["messages"][-1]["content"], re.MULTILINE)
    return {int(number): titles[title] for number, title in lines}


def results_of(scores, **choice) -> dict[str, messages.CandidateResult]:
    answer = Answer(response=chat_response(scores, **choice), answered_at=1)
    return {r.item_id: r for r in strategy().results(CONTEXT, [answer])}


def test_the_prompt_tells_the_history_and_numbers_the_candidates_without_ids():
    (request,) = strategy().requests(CONTEXT, CATALOG)
    text = request.body["messages"][-1]["content"]
    assert "- Jaws 40" not in text
    assert f"- {CATALOG['i40'].title}: {CATALOG['i40'].categories[0]}" in text
    assert set(numbered_ids(strategy()).values()) == {"i20", "i21", "i22"}
    assert "i20" not in text


def test_the_history_is_cut_at_the_configured_number_of_latest_items():
    (request,) = strategy(history_items=1).requests(CONTEXT, CATALOG)
    text = request.body["messages"][-1]["content"]
    assert CATALOG["i40"].title in text
    assert CATALOG["i41"].title not in text


@pytest.mark.parametrize("name", ["listwise", "yes_no", "title_likelihood"])
def test_the_newest_items_behind_which_scores_lag_are_not_told_by_any_strategy(name):
    config = LlmConfig(model="m", base_url="http://host/v1", strategy=name, history_lag=1, history_items=1).resolve()
    asked = context(items=("i20", "i21"), history=("i40", "i41", "i42"))
    told = json.dumps([request.body for request in create_strategy(config).requests(asked, CATALOG)])

    assert CATALOG["i41"].title in told
    assert CATALOG["i40"].title not in told
    assert CATALOG["i42"].title not in told


def test_the_order_of_candidates_depends_on_seed_and_context_alone():
    many = context(items=[f"i{n}" for n in range(20, 40)])

    def order(seed: int) -> str:
        (request,) = strategy(seed=seed).requests(many, CATALOG)
        return request.body["messages"][-1]["content"]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_neither_role_nor_id_tells_where_a_candidate_stands():
    """Each of six candidates, the first of them the user's choice, comes first in about a sixth of 600 contexts."""
    items = [f"i{n}" for n in range(20, 26)]
    places = {item: [0] * 6 for item in items}
    for n in range(600):
        (request,) = strategy().requests(context(name=f"context-{n}", items=items), CATALOG)
        told = re.findall(r"^\d+\. (.*):", request.body["messages"][-1]["content"], re.MULTILINE)
        for item in items:
            places[item][told.index(CATALOG[item].title)] += 1
    # The standard deviation of a count is 9.1.
    assert all(60 < count < 140 for counts in places.values() for count in counts)


def test_a_valid_answer_scores_every_candidate_with_its_own_number():
    ids = numbered_ids(strategy())
    results = results_of([{"item": n, "score": n / 10} for n in (3, 1, 2)])
    assert {i: r.llm_score for i, r in results.items()} == {ids[n]: n / 10 for n in (1, 2, 3)}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], messages.MISSING_ITEM),
        ([{"item": 1, "score": 0.2}, {"item": 1, "score": 0.2}], messages.REPEATED_ITEM),
        ([{"item": 1, "score": "0.5"}], messages.NOT_A_NUMBER),
        ([{"item": 1, "score": True}], messages.NOT_A_NUMBER),
        ([{"item": 1, "score": None}], messages.NOT_A_NUMBER),
        ([{"item": 1, "score": float("nan")}], messages.NOT_A_NUMBER),
        ([{"item": 1, "score": -0.01}], messages.OUT_OF_RANGE),
        ([{"item": "1", "score": 0.5}], messages.MISSING_ITEM),
        ([{"item": 9, "score": 0.5}], messages.MISSING_ITEM),
        (["1: 0.5"], messages.MISSING_ITEM),
    ],
)
def test_a_candidate_that_the_answer_handles_wrongly_fails_alone(entries, reason):
    ids = numbered_ids(strategy())
    results = results_of([*entries, {"item": 2, "score": 0.4}, {"item": 3, "score": 0.6}])
    assert (results[ids[1]].reason, results[ids[1]].llm_score) == (reason, None)
    assert (results[ids[2]].llm_score, results[ids[3]].llm_score) == (0.4, 0.6)


@pytest.mark.parametrize("score", [1.01, 85, 10**400, float("inf")])
@pytest.mark.parametrize("item", [1, 9])
def test_a_score_above_1_fails_the_whole_response_as_its_scale_is_unknown(score, item):
    entries = [{"item": item, "score": score}, {"item": 2, "score": 0}, {"item": 3, "score": 1}]
    results = [r for i, r in results_of(entries).items() if i]
    assert [(r.llm_score, r.reason) for r in results] == [(None, messages.OUT_OF_RANGE)] * 3


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"finish_reason": "length"}, messages.TRUNCATED),
        ({"finish_reason": "content_filter"}, messages.REFUSED),
        ({"message": {"content": None, "refusal": "I cannot help with that"}}, messages.REFUSED),
        ({"message": {"content": '{"scores": [{"item": 1,'}}, messages.INVALID_JSON),
        ({"message": {"content": None}}, messages.INVALID_JSON),
        ({"message": {"content": json.dumps({"scores": {"1": 0.5}})}}, messages.INVALID_JSON),
        ({"message": {"content": "[0.1, 0.2]"}}, messages.INVALID_JSON),
    ],
)
def test_an_answer_that_is_no_answer_scores_nothing(choice, reason):
    results = results_of([{"item": n, "score": 0.5} for n in (1, 2, 3)], **choice)
    assert [(r.reason, r.llm_score) for r in results.values()] == [(reason, None)] * 3


def test_what_was_not_asked_about_is_reported_and_scores_nothing():
    entries = [{"item": n, "score": 0.5} for n in (1, 2, 3)]
    unknown = [{"item": 4, "score": 0.9}, {"item": 0, "score": 0.9}, {"item": "1", "score": 0.9}, "five"]
    answer = Answer(response=chat_response(entries + unknown), answered_at=1)
    results = strategy().results(CONTEXT, [answer])
    assert [(r.item_id, r.llm_score) for r in results[:3]] == [("i20", 0.5), ("i21", 0.5), ("i22", 0.5)]
    assert [(r.item_id, r.llm_score, r.reason) for r in results[3:]] == [("", None, messages.UNKNOWN_ITEM)] * 4
    assert results[3].detail == "the answer lists {'item': 4, 'score': 0.9}"


def test_a_failed_call_fails_all_of_its_candidates_with_its_reason():
    results = strategy().results(CONTEXT, [Answer(reason=messages.TIMEOUT, detail="no answer within 1 s")])
    assert [(r.reason, r.detail) for r in results] == [(messages.TIMEOUT, "no answer within 1 s")] * 3


def test_a_response_that_lists_too_much_is_reported_up_to_a_bound():
    answer = Answer(response=chat_response([{"item": n, "score": 0.5} for n in range(1, 5000)]), answered_at=1)
    results = strategy().results(CONTEXT, [answer])
    assert [r.reason for r in results] == [""] * 3 + [messages.UNKNOWN_ITEM] * MAX_UNKNOWN_ITEMS

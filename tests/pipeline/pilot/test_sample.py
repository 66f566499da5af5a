"""Which contexts of a plan a pilot scores."""

import functools
from collections import Counter

import pytest

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimator
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Candidate, Context
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.scores import NEGATIVE, TARGET
from sllmr.pipeline.pilot.sample import in_proportion, within

CATALOG = {
    name: Item(item_id=name, title=f"Film {name}", categories=(), brand="", train_count=3, is_tail=name == "rare")
    for name in ("seen", "often", "rare", "other")
}


def context(number: int, *, user: int, target: str = "often", history_length: int = 5) -> Context:
    return Context(
        context_id=f"c{number}",
        history_item_ids=("seen",),
        history_length=history_length,
        candidates=(Candidate(item_id=target or "often", role=TARGET), Candidate(item_id="other", role=NEGATIVE)),
        target_item_id=target,
        user_key=f"u{user}",
    )


def estimator(tmp_path, **settings):
    config = LlmConfig(**{"model": "gpt-4o-mini", **settings}).resolve()
    cache = ResponseCache(str(tmp_path))
    return functools.partial(Estimator, CATALOG, create_strategy(config), config, cache)


def test_every_beginning_holds_the_strata_in_proportion():
    plan = [context(n, user=n, target="rare" if n % 4 == 0 else "often") for n in range(80)]
    plan += [context(n, user=n, history_length=1) for n in range(80, 120)]
    ordered = in_proportion(plan, CATALOG, short_history_max=1)
    assert sorted(c.context_id for c in ordered) == sorted(c.context_id for c in plan)
    for end in (12, 30, 60):
        counts = Counter((c.history_length, c.target_item_id) for c in ordered[:end])
        assert counts == pytest.approx({(5, "rare"): end / 6, (5, "often"): end / 2, (1, "often"): end / 3}, abs=1.01)


def test_contexts_without_a_target_are_left_out_and_second_contexts_of_a_user_come_last():
    plan = [context(n, user=n % 10) for n in range(20)] + [context(20, user=20, target="")]
    ordered = in_proportion(plan, CATALOG, short_history_max=1)
    assert len({c.user_key for c in ordered[:10]}) == 10
    assert len(ordered) == 20


def test_a_price_bounds_the_sample(tmp_path):
    ordered = [context(n, user=n, history_length=n) for n in range(100)]
    # Each request needs its own prompt, or one would answer all of them.
    config = {"price_per_million_tokens": {"prompt": 1.0, "cached_prompt": 1.0, "completion": 1.0}}
    one = estimator(tmp_path, **config)()
    one.add(ordered[0])
    price = one.total().cost_nano_usd / 1e9
    distinct = [_with_history(c, n) for n, c in enumerate(ordered)]
    taken = within(distinct, users=200, usd=40 * price, contexts=10, estimator=estimator(tmp_path, **config))
    assert 30 <= len(taken) <= 45
    assert taken == distinct[: len(taken)]


def _with_history(one: Context, n: int) -> Context:
    names = ("seen", "often", "rare", "other")
    history = tuple(names[(n // 4**digit) % 4] for digit in range(4))
    return Context(**{**vars(one), "history_item_ids": history})


@pytest.mark.parametrize(
    "settings",
    [{"model": "nobody-knows-its-price"}, {"model": "smollm2-135m-instruct-q4_1"}],
    ids=["unknown price", "free"],
)
def test_without_a_price_the_number_of_contexts_bounds_the_sample(tmp_path, settings):
    ordered = [context(n, user=n) for n in range(100)]
    taken = within(ordered, users=200, usd=0.01, contexts=35, estimator=estimator(tmp_path, **settings))
    assert taken == ordered[:35]


def test_half_of_the_users_stay_for_the_base_model(tmp_path):
    ordered = [context(n, user=n % 70) for n in range(140)]
    taken = within(ordered, users=80, usd=1.0, contexts=140, estimator=estimator(tmp_path, model="unknown"))
    assert {c.user_key for c in taken} == {f"u{n}" for n in range(40)}
    assert len(taken) == 80


def test_too_few_users_are_an_error_that_names_the_keys(tmp_path):
    ordered = [context(n, user=n) for n in range(29)]
    with pytest.raises(LlmError, match=r"at least 30 users, got 29.*raise llm\.budget\.pairs"):
        within(ordered, users=200, usd=1.0, contexts=100, estimator=estimator(tmp_path, model="unknown"))

import collections
import random
from collections.abc import Callable

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as BeamPipeline
from apache_beam.testing.util import assert_that, equal_to

from sllmr.components import scores
from sllmr.components.catalog import write_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts.transforms import TO_CHOOSE, TO_DRAW, ContextsToAsk
from sllmr.components.llm_scorer.messages import Context
from tests.components.llm_scorer.market import market_items, market_rows, row, write_earlier_positives

CANDIDATES = {"per_context": 8, "negatives_per_target": 2, "popularity_pool": 20}


@pytest.fixture
def catalog_directory(tmp_path):
    write_catalog(str(tmp_path), market_items().values())
    return str(tmp_path)


def config(pairs: int, **values) -> LlmConfig:
    return LlmConfig.model_validate({"budget": {"pairs": pairs}, "candidates": CANDIDATES, **values}).resolve()


def contexts_to_ask(rows: beam.PCollection, directory: str, settings: LlmConfig) -> beam.PCollection:
    return {TO_CHOOSE: rows, TO_DRAW: rows} | ContextsToAsk(directory, settings)


def plan(rows: list[bytes], directory: str, settings: LlmConfig, check: Callable[[list[Context]], None]) -> None:
    with BeamPipeline() as pipeline:
        contexts = contexts_to_ask(pipeline | beam.Create(rows), directory, settings)
        assert_that(contexts, check)


def test_the_plan_is_within_the_budget_and_asks_every_user_before_any_twice(catalog_directory):
    def check(contexts: list[Context]) -> None:
        assert sum(len(c.candidates) for c in contexts) <= 100
        assert len(contexts) == 12
        assert len({c.user_id for c in contexts}) == 12

    rows = market_rows(users=12, length=12)
    plan(rows, catalog_directory, config(100, store_user_ids=True), check)


@pytest.mark.slow
def test_the_plan_does_not_depend_on_the_order_of_the_rows(catalog_directory):
    rows = market_rows()
    shuffled = random.Random(5).sample(rows, len(rows))
    settings = config(80)
    with BeamPipeline() as pipeline:
        plans = [
            pipeline
            | f"Create{n}" >> beam.Create(order)
            | f"Ask{n}" >> beam.ptransform_fn(contexts_to_ask)(catalog_directory, settings)
            | f"Encode{n}" >> beam.Map(Context.to_json)
            for n, order in enumerate([rows, shuffled])
        ]
        times_planned = plans | beam.Flatten() | beam.combiners.Count.PerElement() | beam.Values()
        # Ten contexts, each of them in both plans.
        assert_that(times_planned, equal_to([2] * 10))


@pytest.mark.slow
def test_only_positive_rows_become_contexts_and_their_item_is_the_target_item(catalog_directory):
    rows = [row("u", 3, ["i10", "i11"], "i40"), row("u", 3, ["i10", "i11"], "i41", label=0)]

    def check(contexts: list[Context]) -> None:
        (context,) = contexts
        assert context.target_item_id == "i40"
        assert context.history_item_ids == ("i11", "i10")
        assert (context.candidates[0].item_id, context.candidates[0].role) == ("i40", scores.TARGET)

    plan(rows, catalog_directory, config(8, candidates={**CANDIDATES, "calibration_fraction": 1}), check)


def test_no_user_id_is_in_the_plan_unless_it_is_wanted(catalog_directory):
    def check(contexts: list[Context]) -> None:
        assert contexts
        assert not any("user-" in c.to_json() for c in contexts)

    plan(market_rows(), catalog_directory, config(50), check)


def test_items_that_a_user_chooses_later_in_the_train_split_are_no_negatives(catalog_directory):
    # One user chooses nearly everything; what is left are i50 to i59.
    chosen = [f"i{n}" for n in range(50)]
    rows = [row("u", n + 1, chosen[:n], chosen[n]) for n in range(1, 50)]

    def check(contexts: list[Context]) -> None:
        others = {c.item_id for x in contexts for c in x.candidates if c.role != scores.TARGET}
        assert others
        assert others <= {f"i{n}" for n in range(50, 60)}

    plan(rows, catalog_directory, config(40), check)


def test_items_that_a_user_chose_before_every_history_are_no_candidates_of_this_user(catalog_directory):
    write_earlier_positives(catalog_directory, "u", [f"i{n}" for n in range(45)])
    rows = [row(user, 50 + n, ["i45", "i46"], f"i{47 + n}") for user in ("u", "v") for n in range(3)]
    every = {**CANDIDATES, "calibration_fraction": 1.0, "calibration_negatives": "uniform"}

    def check(contexts: list[Context]) -> None:
        others = {user: set() for user in ("u", "v")}
        for context in contexts:
            others[context.user_id] |= {c.item_id for c in context.candidates if c.role != scores.TARGET}
        assert scores.NEGATIVE in {c.role for x in contexts if x.user_id == "u" for c in x.candidates}
        assert others["u"] <= {f"i{n}" for n in range(50, 60)}
        assert others["v"] & {f"i{n}" for n in range(45)}

    plan(rows, catalog_directory, config(6 * 8, store_user_ids=True, candidates=every), check)


def test_rows_whose_history_has_no_title_are_left_out(catalog_directory):
    rows = [row("u", 2, ["unknown"], "i40"), row("v", 2, ["i1"], "i41")]

    def check(contexts: list[Context]) -> None:
        assert [c.history_item_ids for c in contexts] == [("i1",)]

    plan(rows, catalog_directory, config(40), check)


def test_with_latest_the_last_moments_of_the_train_split_are_asked_about_first(catalog_directory):
    rows = market_rows(users=4, length=9)
    latest = {**CANDIDATES, "contexts": "latest", "short_history_fraction": 0.0, "tail_target_fraction": 0.0}

    def check(contexts: list[Context]) -> None:
        assert len(contexts) == 8  # two of each user
        assert collections.Counter((c.user_id, c.history_length) for c in contexts) == {
            (f"user-{u}", length): 1 for u in range(4) for length in (7, 8)
        }

    plan(rows, catalog_directory, config(8 * 8, store_user_ids=True, candidates=latest), check)


@pytest.mark.slow
def test_with_any_the_moments_are_spread_over_the_users_time(catalog_directory):
    rows = market_rows(users=12, length=9)

    def check(contexts: list[Context]) -> None:
        assert len({c.history_length for c in contexts}) > 3

    plan(rows, catalog_directory, config(12 * 8, candidates=CANDIDATES), check)

import collections
import dataclasses
import json

import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from sllmr.components import scores
from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import CandidateConfig
from sllmr.components.llm_scorer.contexts.candidates import (
    NEIGHBOURS,
    OTHER,
    SHORT_HISTORY,
    TAIL,
    CandidatePools,
    PositiveRow,
    RowKey,
    can_be_scored,
    can_calibrate,
    choose_calibration,
    choose_contexts,
    context_id,
    number_of_contexts,
    stratum,
)
from sllmr.components.llm_scorer.messages import Context
from sllmr.models.item_vectors import ItemVectors
from tests.components.llm_scorer.market import market_items

CONFIG = CandidateConfig(per_context=8, negatives_per_target=2, tail_per_context=2, popularity_pool=20)
CATALOG = market_items(count=400)


def positive_row(
    user: str = "u", item: str = "i300", history: tuple[str, ...] = ("i310", "i320"), length: int = 9
) -> PositiveRow:
    return PositiveRow(user_id=user, position=length + 1, history_item_ids=history, history_length=length, item_id=item)


def draw(config: CandidateConfig = CONFIG, catalog=CATALOG, **values) -> Context:
    arguments = {"name": OTHER, "calibration": True, "interacted": (), "size": config.per_context, "seed": 1}
    return CandidatePools(catalog, config).context(positive_row(), **{**arguments, **values})


def roles(context: Context) -> collections.Counter:
    return collections.Counter(c.role for c in context.candidates)


def test_a_calibration_context_has_the_target_item_negatives_tail_items_and_popular_ones():
    context = draw()
    assert roles(context) == {scores.TARGET: 1, scores.NEGATIVE: 2, scores.TAIL: 2, scores.POPULAR: 3}
    assert context.target_item_id == "i300"


def test_a_context_without_calibration_does_not_have_the_target_item():
    context = draw(calibration=False)
    assert context.target_item_id == ""
    assert "i300" not in {c.item_id for c in context.candidates}
    assert scores.NEGATIVE not in roles(context)


def test_negatives_are_neighbours_of_the_chosen_item_in_popularity():
    for seed in range(20):
        for candidate in draw(seed=seed).candidates:
            if candidate.role == scores.NEGATIVE:
                # In this market an item's number is its rank.
                assert abs(int(candidate.item_id[1:]) - 300) <= NEIGHBOURS


def test_popular_candidates_come_from_the_pool_of_the_most_popular_items():
    pool = {f"i{n}" for n in range(380, 400)}
    drawn = {c.item_id for s in range(20) for c in draw(seed=s).candidates if c.role == scores.POPULAR}
    assert drawn <= pool
    assert len(drawn) > 10


def test_cold_contexts_get_items_of_many_categories():
    candidates = draw(name=SHORT_HISTORY, calibration=False).candidates
    diverse = [CATALOG[c.item_id].categories[0] for c in candidates if c.role == scores.DIVERSE]
    assert len(diverse) == 6
    assert len(set(diverse)) == 6


def test_uniform_negatives_come_from_the_whole_catalogue():
    config = CONFIG.model_copy(update={"calibration_negatives": "uniform"})
    pools, ranks = CandidatePools(CATALOG, config), []
    for seed in range(300):
        context = pools.context(positive_row(), name=OTHER, calibration=True, interacted=(), size=8, seed=seed)
        ranks += [int(c.item_id[1:]) for c in context.candidates if c.role == scores.NEGATIVE]
    assert len(ranks) == 600
    # Far beyond the neighbours of the chosen item, i300, and as often in each quarter of the market.
    quarters = np.bincount(np.array(ranks) // 100, minlength=4)
    assert scipy.stats.chisquare(quarters).pvalue > 0.001


SIMILAR = CONFIG.model_copy(update={"similar_per_context": 3, "tail_per_context": 0})


def similar(context: Context) -> list[str]:
    return [c.item_id for c in context.candidates if c.role == scores.SIMILAR]


def test_similar_candidates_share_a_category_with_an_item_of_the_history():
    history = ("i310", "i320")
    categories = {CATALOG[i].categories[0] for i in history}
    assert len(categories) == 2
    seen = set()
    for seed in range(30):
        found = similar(draw(SIMILAR, seed=seed))
        assert len(found) == 3
        assert not {"i300", *history} & set(found)
        seen |= {CATALOG[i].categories[0] for i in found}
    assert seen == categories


def test_an_item_without_a_category_is_like_no_other():
    catalog = {i: dataclasses.replace(item, categories=()) for i, item in CATALOG.items()}
    assert similar(draw(SIMILAR, catalog)) == []


def test_similar_candidates_are_among_the_nearest_vectors_where_there_are_vectors():
    ids = [f"i{n}" for n in range(0, 400, 2)]  # every other item has one
    vectors = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    pools = CandidatePools(
        CATALOG, SIMILAR, ItemVectors(row={i: n for n, i in enumerate(ids)}, vectors=vectors, digest="")
    )
    near = set()
    for item in ("i310", "i320"):
        own = vectors[ids.index(item)]
        cosine = {
            i: float(np.dot(own, v) / np.linalg.norm(own) / np.linalg.norm(v))
            for i, v in zip(ids, vectors, strict=True)
        }
        near |= set(sorted(cosine, key=lambda i: -cosine[i])[:NEIGHBOURS])
    found = set()
    for seed in range(40):
        context = pools.context(positive_row(), name=OTHER, calibration=False, interacted=(), size=8, seed=seed)
        assert len(similar(context)) == 3
        found |= set(similar(context))
    assert found <= near
    assert len(found) > 40


def test_a_history_without_vectors_has_no_similar_candidates():
    vectors = ItemVectors(row={"i2": 0, "i4": 1}, vectors=np.eye(2, dtype=np.float32), digest="")
    pools = CandidatePools(CATALOG, SIMILAR, vectors)
    context = pools.context(positive_row(), name=OTHER, calibration=False, interacted=(), size=8, seed=1)
    assert similar(context) == []
    assert len(context.candidates) == 8


def test_parts_that_do_not_fit_a_context_are_refused():
    with pytest.raises(ValidationError, match=r"similar_per_context must be at most per_context, got 9 > 8; raise"):
        CandidateConfig(per_context=8, negatives_per_target=2, tail_per_context=2, similar_per_context=4)


def test_nothing_that_the_user_chose_before_or_after_is_a_candidate():
    taken = {f"i{n}" for n in range(380, 397)}
    for seed in range(20):
        asked = {c.item_id for c in draw(seed=seed, calibration=False, interacted=taken).candidates}
        assert not asked & taken
        assert not asked & {"i310", "i320", "i300"}


def test_items_without_a_title_are_no_candidates():
    catalog = {
        i: item if int(i[1:]) % 2 == 0 else Item(item_id=i, train_count=item.train_count, is_tail=item.is_tail)
        for i, item in CATALOG.items()
    }
    for seed in range(10):
        assert all(int(c.item_id[1:]) % 2 == 0 for c in draw(catalog=catalog, seed=seed).candidates)


def test_candidates_are_distinct_and_never_more_than_asked_for():
    for seed in range(20):
        for size in (2, 5, 8):
            ids = [c.item_id for c in draw(seed=seed, size=size).candidates]
            assert len(ids) == len(set(ids)) == size


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_catalogue():
    backwards = dict(reversed(CATALOG.items()))
    assert draw(seed=3) == draw(seed=3, catalog=backwards)
    assert draw(seed=3).candidates != draw(seed=4).candidates


def test_the_name_of_a_context_does_not_tell_the_user():
    name = context_id(positive_row(user="ada@example.org"), seed=1)
    assert "ada" not in name
    assert name != context_id(positive_row(user="ada@example.org"), seed=2)


@pytest.mark.parametrize(("pairs", "per_context", "contexts"), [(100, 10, 10), (99, 10, 9), (5, 10, 1)])
def test_contexts_fit_the_budget(pairs, per_context, contexts):
    assert number_of_contexts(pairs, per_context) == contexts


def test_a_row_whose_item_is_rare_is_tail_even_where_it_is_cold():
    assert stratum(positive_row(item="i3", length=1), CATALOG, CONFIG) == TAIL
    assert stratum(positive_row(length=3), CATALOG, CONFIG) == SHORT_HISTORY
    assert stratum(positive_row(length=4), CATALOG, CONFIG) == OTHER


def test_without_a_share_of_their_own_rows_of_rare_items_are_drawn_as_all_others():
    config = CONFIG.model_copy(update={"tail_target_fraction": 0.0})
    assert stratum(positive_row(item="i3", length=9), CATALOG, config) == OTHER
    assert stratum(positive_row(item="i3", length=1), CATALOG, config) == SHORT_HISTORY


def test_a_history_without_a_single_title_cannot_be_asked_about():
    catalog = {"i310": Item(item_id="i310"), "i320": Item(item_id="i320", title="Heat")}
    assert can_be_scored(positive_row(history=("i310", "i320")), catalog, history_lag=0)
    assert not can_be_scored(positive_row(history=("i310", "unknown")), catalog, history_lag=0)


def test_a_history_that_is_all_newer_than_the_lag_cannot_be_asked_about():
    catalog = {"i320": Item(item_id="i320", title="Heat")}
    assert can_be_scored(positive_row(history=("i310", "i320")), catalog, history_lag=1)
    assert not can_be_scored(positive_row(history=("i310", "i320")), catalog, history_lag=2)


def strata(tail: int, short: int, other: int) -> dict[str, list[RowKey]]:
    sizes = {TAIL: tail, SHORT_HISTORY: short, OTHER: other}
    return {
        name: [RowKey(user_id=f"{name}{n}", position=9, can_calibrate=True) for n in range(size)]
        for name, size in sizes.items()
    }


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        ((99, 99, 99), {TAIL: 2, SHORT_HISTORY: 6, OTHER: 12}),
        ((1, 2, 99), {TAIL: 1, SHORT_HISTORY: 2, OTHER: 17}),
        ((99, 99, 3), {TAIL: 2, SHORT_HISTORY: 15, OTHER: 3}),
        ((99, 0, 3), {TAIL: 17, OTHER: 3}),
        ((1, 1, 1), {TAIL: 1, SHORT_HISTORY: 1, OTHER: 1}),
    ],
)
def test_strata_get_their_shares_and_pass_on_what_they_cannot_fill(available, expected):
    config = CandidateConfig(tail_target_fraction=0.1, short_history_fraction=0.3)
    chosen = choose_contexts(strata(*available), 20, config)
    assert collections.Counter(name for _, name in chosen) == expected
    assert len({m.user_id for m, _ in chosen}) == len(chosen)


def test_calibration_contexts_are_the_configured_fraction_with_rare_target_items_first():
    rows = [(m, name) for name, found in strata(3, 5, 12).items() for m in found]
    calibration = choose_calibration(rows, CandidateConfig(calibration_fraction=0.4), seed=1)
    assert len(calibration) == 8
    assert {f"{TAIL}{n}" for n in range(3)} <= {row.user_id for row in calibration}
    assert calibration == choose_calibration(rows[::-1], CandidateConfig(calibration_fraction=0.4), seed=1)


@pytest.mark.parametrize(("fraction", "expected"), [(0.35, 1), (0.0, 0)])
def test_a_single_context_calibrates_unless_none_shall(fraction, expected):
    config = CandidateConfig(calibration_fraction=fraction)
    assert len(choose_calibration([(RowKey("u", 9, True), OTHER)], config, seed=1)) == expected


def test_an_item_that_no_prompt_can_name_becomes_no_target_item():
    untitled = CATALOG | {"i3": dataclasses.replace(CATALOG["i3"], title="")}
    assert can_calibrate(positive_row(item="i3"), CATALOG)
    assert not can_calibrate(positive_row(item="i3"), untitled)
    assert not can_calibrate(positive_row(item="unknown"), CATALOG)
    able, unable = RowKey("u", 9, True), RowKey("v", 9, False)
    assert choose_calibration([(unable, OTHER), (able, OTHER)], CandidateConfig(calibration_fraction=1.0), seed=1) == {
        able
    }


def test_a_moment_is_what_it_was_after_json():
    before = positive_row(user="ü\n1")
    assert PositiveRow.from_json(before.to_json().encode()) == before


def test_a_context_of_a_plan_that_an_earlier_version_wrote_is_read():
    today = draw()
    values = json.loads(today.to_json())
    del values["last_position"], values["is_outdated"]
    assert Context.from_json(json.dumps({**values, "scored_user_positives": 0})) == today

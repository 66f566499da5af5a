"""What holds for the pairs of any scores, found by search for a counterexample."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.pairs import CANDIDATE_PAIRS, DROPPED, PAIRS, TIED, select_pairs
from tests.components.pair_builder.test_pairs import record

QUICK = settings(max_examples=60, deadline=None)
# Eighths, so that there are ties and margins are exact.
SCORES = st.dictionaries(
    st.sampled_from([f"i{n}" for n in range(9)]), st.integers(0, 8).map(lambda n: n / 8), min_size=2
)
MARGINS = st.integers(0, 8).map(lambda n: n / 8)
ALL = 100


@QUICK
@given(SCORES, MARGINS, st.integers(1, 12), st.sampled_from(["widest", "cover"]))
def test_the_preferred_item_has_the_higher_score_and_the_counts_add_up(scores, margin, cap, selection):
    selected = select_pairs(record(scores), PairConfig(min_margin=margin, max_per_context=cap, selection=selection))

    for pair in selected.pairs:
        assert scores[pair.preferred_item_id] == pair.preferred_llm_score > pair.other_llm_score
        assert scores[pair.other_item_id] == pair.other_llm_score
    assert (
        len({frozenset((p.preferred_item_id, p.other_item_id)) for p in selected.pairs}) == len(selected.pairs) <= cap
    )
    margins = [pair.llm_margin for pair in selected.pairs]
    assert margins == sorted(margins, reverse=True)
    counts = selected.counts
    assert counts[CANDIDATE_PAIRS] == len(scores) * (len(scores) - 1) // 2
    assert counts[CANDIDATE_PAIRS] == counts[PAIRS] + sum(counts[reason] for reason in DROPPED)
    assert counts[PAIRS] == len(selected.pairs)


@QUICK
@given(SCORES, MARGINS)
def test_exactly_the_gaps_of_min_margin_or_more_make_pairs_or_else_the_widest_one(scores, margin):
    selected = select_pairs(record(scores), PairConfig(min_margin=margin, max_per_context=ALL))

    found = {(pair.preferred_item_id, pair.other_item_id) for pair in selected.pairs}
    gaps = {(a, b): scores[a] - scores[b] for a, b in itertools.permutations(scores, 2) if scores[a] > scores[b]}
    wide = {items for items, gap in gaps.items() if gap >= margin}
    if wide or not gaps:
        assert found == wide
    else:
        (only,) = found
        assert gaps[only] == max(gaps.values())
    assert selected.counts[TIED] == sum(scores[a] == scores[b] for a, b in itertools.combinations(scores, 2))


@QUICK
@given(SCORES, MARGINS)
def test_reversed_scores_make_the_same_pairs_the_other_way_round(scores, margin):
    config = PairConfig(min_margin=margin, max_per_context=ALL)
    opposite = {item_id: 1 - score for item_id, score in scores.items()}

    def items(values: dict[str, float]) -> list[tuple[str, str]]:
        return [(p.preferred_item_id, p.other_item_id) for p in select_pairs(record(values), config).pairs]

    if any(abs(a - b) >= margin for a, b in itertools.combinations(scores.values(), 2)):
        assert sorted(items(opposite)) == sorted((other, preferred) for preferred, other in items(scores))


@QUICK
@given(SCORES, MARGINS, st.integers(1, 12), st.randoms())
def test_the_order_of_the_candidates_decides_nothing(scores, margin, cap, random):
    config = PairConfig(min_margin=margin, max_per_context=cap)
    shuffled = list(scores.items())
    random.shuffle(shuffled)

    assert select_pairs(record(dict(shuffled)), config) == select_pairs(record(scores), config)

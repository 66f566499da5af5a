"""Pairs of one context against a plain reading of the paper's rule."""

import collections
import dataclasses
import random

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing.test_pipeline import TestPipeline as BeamPipeline
from apache_beam.testing.util import assert_that, equal_to

from sllmr.components.catalog import Item, ItemFeatures, write_catalog
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.counts import PairCounts, read_counts
from sllmr.components.pair_builder.pairs import (
    CALIBRATION_PAIRS,
    CANDIDATE_PAIRS,
    DROPPED,
    INCONSISTENT,
    PAIRS,
    Pair,
    pair_values,
    select_pairs,
)
from sllmr.components.pair_builder.transforms import (
    COUNTS,
    ROWS,
    SCORES,
    BuildPairs,
    JoinUsers,
    WriteCounts,
    _with_user,
)
from sllmr.components.scores import NEGATIVE, POPULAR, SIMILAR, TAIL, TARGET, ScoreRecord, context_id
from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes, pair_features
from sllmr.models.parsing import parsing_spec

SIZES = FeatureSizes(history=3, categories=2)


def record(scores: dict[str, float], chosen: str = "", history: tuple[str, ...] = ("h1",)) -> ScoreRecord:
    return ScoreRecord(
        context_id="c",
        history_item_ids=history,
        history_length=len(history),
        item_ids=tuple(scores),
        llm_scores=tuple(scores.values()),
        raw_scores=tuple(scores.values()),
        roles=tuple((TARGET if i == chosen else NEGATIVE) if chosen else POPULAR for i in scores),
        target_item_id=chosen,
        model="m",
        strategy="s",
        prompt_version="p",
        scored_at=0,
    )


def test_the_pairs_with_the_largest_gap_are_kept_in_order():
    pairs = select_pairs(record({"a": 0.9, "b": 0.1, "c": 0.5}), PairConfig(max_per_context=2)).pairs
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("a", "b"), ("a", "c")]
    assert [p.llm_margin for p in pairs] == pytest.approx([0.9 - 0.1, 0.9 - 0.5])


def test_equal_scores_never_make_a_pair():
    assert select_pairs(record({"a": 0.4, "b": 0.4}), PairConfig()).pairs == []


def test_a_gap_as_wide_as_the_least_margin_makes_a_pair():
    pairs = select_pairs(record({"a": 0.75, "b": 0.5, "c": 0.375}), PairConfig(min_margin=0.25)).pairs
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("a", "c"), ("a", "b")]


def test_one_pair_survives_where_every_gap_is_below_the_threshold():
    pairs = select_pairs(record({"a": 0.5, "b": 0.52, "c": 0.55}), PairConfig(min_margin=0.2)).pairs
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("c", "a")]


def test_a_probe_pair_says_whether_the_llm_agrees_with_the_user():
    pairs = select_pairs(record({"chosen": 0.5, "worse": 0.2, "better": 0.8}, chosen="chosen"), PairConfig()).pairs
    labels = {(p.preferred_item_id, p.other_item_id): p.calibration_label for p in pairs}
    assert labels == {
        ("chosen", "worse"): 1,
        ("better", "chosen"): 0,
        ("better", "worse"): features.NOT_CALIBRATION,
    }


def test_every_calibration_pair_is_kept_beyond_the_cap():
    scores = {"chosen": 0.5, **{f"n{i}": 0.5 + (i + 1) * 0.01 for i in range(20)}}
    pairs = select_pairs(record(scores, chosen="chosen"), PairConfig(max_per_context=1)).pairs
    assert sum(p.calibration_label != features.NOT_CALIBRATION for p in pairs) == 20
    assert sum(p.calibration_label == features.NOT_CALIBRATION for p in pairs) == 1


def roles_of(scores: dict[str, float], chosen: str, roles: dict[str, str]) -> ScoreRecord:
    """A calibration context whose candidates have these roles, the others NEGATIVE."""
    made = record(scores, chosen)
    return dataclasses.replace(
        made, roles=tuple(roles.get(i, role) for i, role in zip(scores, made.roles, strict=True))
    )


def test_only_a_sampled_negative_beside_the_choice_makes_a_label():
    scores = {"chosen": 0.5, "worse": 0.2, "better": 0.8, "tail": 0.1, "popular": 0.9, "similar": 0.6}
    roles = {"tail": TAIL, "popular": POPULAR, "similar": SIMILAR}
    pairs = select_pairs(roles_of(scores, "chosen", roles), PairConfig(max_per_context=99)).pairs
    labels = {(p.preferred_item_id, p.other_item_id): p.calibration_label for p in pairs}
    assert len(labels) == 6 * 5 // 2
    assert {pair: label for pair, label in labels.items() if label != features.NOT_CALIBRATION} == {
        ("chosen", "worse"): 1,
        ("better", "chosen"): 0,
    }


def items_of(pairs: list[Pair]) -> list[str]:
    return [item_id for p in pairs for item_id in (p.preferred_item_id, p.other_item_id)]


COVER = PairConfig(selection="cover", max_per_context=99)


@pytest.mark.parametrize("number", [2, 3, 6, 9])
def test_cover_takes_every_candidate_once_the_upper_half_beside_the_lower(number):
    scores = {f"i{n}": 1 - n / 10 for n in range(number)}
    pairs = select_pairs(record(scores), COVER).pairs
    half = (number + 1) // 2
    expected = {(f"i{n}", f"i{n + half}") for n in range(number // 2)}
    assert {(p.preferred_item_id, p.other_item_id) for p in pairs} == expected
    # Of an odd number the last one of the upper half stays alone.
    assert sorted(items_of(pairs)) == sorted(set(scores) - ({f"i{half - 1}"} if number % 2 else set()))


def test_cover_takes_each_candidate_outside_the_labeled_pairs_once():
    rng = random.Random(3)
    for _ in range(30):
        scores = {f"i{n}": rng.random() for n in range(10)}
        roles = {f"i{n}": TAIL for n in range(3, 10)}
        pairs = select_pairs(roles_of(scores, "i0", roles), COVER).pairs
        labeled = [p for p in pairs if p.calibration_label != features.NOT_CALIBRATION]
        assert sorted(set(items_of(labeled))) == ["i0", "i1", "i2"]
        unlabeled = items_of([p for p in pairs if p.calibration_label == features.NOT_CALIBRATION])
        assert len(unlabeled) == len(set(unlabeled)) == 6
        assert set(unlabeled) <= {f"i{n}" for n in range(3, 10)}
        assert all(p.llm_margin > 0 for p in pairs)


def test_cover_keeps_to_the_cap_and_to_the_least_margin():
    scores = {f"i{n}": n / 10 for n in range(8)}
    selection = select_pairs(record(scores), PairConfig(selection="cover", max_per_context=2))
    assert len(selection.pairs) == 2
    assert selection.counts[CANDIDATE_PAIRS] == selection.counts[PAIRS] + sum(selection.counts[r] for r in DROPPED)
    narrow = {"a": 0.9, "b": 0.5, "c": 0.45, "d": 0.1}  # a beside c, b beside d
    pairs = select_pairs(record(narrow), PairConfig(selection="cover", min_margin=0.42)).pairs
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("a", "c")]


def test_a_pair_says_how_far_the_two_answers_on_each_item_lie_apart():
    (pair,) = select_pairs(audited([0.9, 0.1], [0.7, 0.4]), PairConfig()).pairs
    assert (pair.preferred_llm_disagreement, pair.other_llm_disagreement) == pytest.approx((0.2, 0.3))
    (pair,) = select_pairs(record({"a": 0.9, "b": 0.1}), PairConfig()).pairs
    assert (pair.preferred_llm_disagreement, pair.other_llm_disagreement) == (0.0, 0.0)


def audited(first: list[float], second: list[float], chosen: str = "") -> ScoreRecord:
    means = {f"i{n}": (a + b) / 2 for n, (a, b) in enumerate(zip(first, second, strict=True))}
    return dataclasses.replace(record(means, chosen), first_llm_scores=tuple(first), second_llm_scores=tuple(second))


def test_pairs_that_flip_between_the_two_orders_are_dropped_where_that_is_wished():
    # i0 over i1 both times; i2 between them first, below both then.
    flipping = audited([0.9, 0.1, 0.5], [0.8, 0.2, 0.1], chosen="i0")
    everything = select_pairs(flipping, PairConfig())
    assert {(p.preferred_item_id, p.other_item_id) for p in everything.pairs} == {
        ("i0", "i1"),
        ("i0", "i2"),
        ("i2", "i1"),
    }
    assert everything.counts[INCONSISTENT] == 0
    consistent = select_pairs(flipping, PairConfig(drop_inconsistent=True))
    assert {(p.preferred_item_id, p.other_item_id) for p in consistent.pairs} == {("i0", "i1"), ("i0", "i2")}
    assert consistent.counts[INCONSISTENT] == 1


def test_a_pair_of_the_users_choice_that_flips_is_dropped_as_well():
    selection = select_pairs(audited([0.9, 0.1], [0.1, 0.2], chosen="i0"), PairConfig(drop_inconsistent=True))
    assert (selection.pairs, selection.counts[INCONSISTENT]) == ([], 1)


@pytest.mark.parametrize("tie_first", [True, False])
@pytest.mark.parametrize(("strict", "expected"), [([0.1, 0.9], ("i1", "i0")), ([0.9, 0.1], ("i0", "i1"))])
def test_a_tie_in_one_of_the_orders_is_no_flip(tie_first, strict, expected):
    tie = [0.5, 0.5]
    made = audited(tie, strict) if tie_first else audited(strict, tie)
    selection = select_pairs(made, PairConfig(drop_inconsistent=True))
    assert [(p.preferred_item_id, p.other_item_id) for p in selection.pairs] == [expected]


def test_contexts_without_an_audit_drop_nothing_as_inconsistent():
    config = PairConfig(drop_inconsistent=True)
    scores = record({"a": 0.9, "b": 0.1, "c": 0.5})
    assert select_pairs(scores, config) == select_pairs(scores, PairConfig())


def test_every_two_candidates_make_a_pair_or_are_counted_as_dropped_for_one_reason():
    rng = random.Random(7)
    seen: collections.Counter[str] = collections.Counter()
    for n in range(40):
        first, second = ([rng.randrange(6) / 5 for _ in range(7)] for _ in range(2))
        config = PairConfig(max_per_context=4, min_margin=0.3, drop_inconsistent=True)
        selection = select_pairs(audited(first, second, chosen="i3" if n % 2 else ""), config)
        counts = selection.counts
        assert counts[CANDIDATE_PAIRS] == 7 * 6 // 2
        assert counts[CANDIDATE_PAIRS] == counts[PAIRS] + sum(counts[reason] for reason in DROPPED)
        assert counts[PAIRS] == len(selection.pairs)
        assert counts[CALIBRATION_PAIRS] == sum(
            p.calibration_label != features.NOT_CALIBRATION for p in selection.pairs
        )
        seen.update(counts)
    assert all(seen[reason] for reason in DROPPED)


CATALOG = {
    "h1": Item(item_id="h1", categories=("x", "y", "z"), brand="hb"),
    "a": Item(item_id="a", title="Heat of the night", categories=("leaf",), text="a film", brand="ab", train_count=7),
    "b": Item(item_id="b", is_tail=True),
}


def test_pair_values_hold_both_items_and_the_shared_context():
    pair = Pair(
        preferred_item_id="a",
        other_item_id="b",
        preferred_llm_score=0.9,
        other_llm_score=0.4,
        calibration_label=1,
        preferred_llm_disagreement=0.2,
    )
    values = pair_values(record({"a": 0.9, "b": 0.4}), pair, ItemFeatures(CATALOG.values(), SIZES))
    assert values[features.HISTORY_ITEM_IDS] == [b"h1", b"", b""]
    assert values[features.HISTORY_CATEGORIES] == [b"x", b"y", b"", b"", b"", b""]
    assert values[features.PREFERRED + features.ITEM_CATEGORIES] == [b"leaf", b""]
    assert values[features.PREFERRED + features.ITEM_TRAIN_COUNT] == 7
    assert values[features.OTHER + features.IS_TAIL] == 1
    assert values[features.PREFERRED + features.LLM_SCORE] == 0.9
    assert values[features.OTHER + features.LLM_SCORE] == 0.4
    assert values[features.PREFERRED + features.LLM_DISAGREEMENT] == 0.2
    assert values[features.OTHER + features.LLM_DISAGREEMENT] == 0.0
    assert values[features.PREFERRED + features.TEXT_WORDS] == 4 + 1 + 2
    assert values[features.OTHER + features.TEXT_WORDS] == 0
    assert set(values) == {f.name for f in pair_features(SIZES)}


def test_build_pairs_writes_examples_that_the_parsing_spec_reads(tmp_path):
    write_catalog(str(tmp_path), CATALOG.values())

    def preferred_and_scores(serialized: bytes) -> tuple[bytes, float, float]:
        row = tf.io.parse_single_example(serialized, parsing_spec(pair_features(SIZES)))
        scores = (float(row[prefix + features.LLM_SCORE]) for prefix in (features.PREFERRED, features.OTHER))
        return row[features.PREFERRED + features.ITEM_ID].numpy(), *scores

    with BeamPipeline() as pipeline:
        pairs = (
            pipeline
            | beam.Create(
                [(record(scores).serialize(), {}) for scores in ({"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5})]
            )
            | beam.ParDo(BuildPairs(PairConfig(), SIZES, str(tmp_path)))
            | beam.Map(preferred_and_scores)
        )
        assert_that(pairs, equal_to([(b"b", 0.75, 0.25)]))


def train_row(user: str, position: int, label: int) -> bytes:
    example = tf.train.Example()
    example.features.feature[features.USER_ID].bytes_list.value.append(user.encode())
    example.features.feature[features.POSITION].int64_list.value.append(position)
    example.features.feature[features.LABEL].int64_list.value.append(label)
    return example.SerializeToString()


def of_context(user: str, position: int, seed: int) -> bytes:
    return dataclasses.replace(record({"a": 0.5}), context_id=context_id(user, position, seed)).serialize()


def test_scores_get_the_user_of_the_positive_row_that_they_are_of():
    rows = [train_row("ann", 2, 1), train_row("ann", 2, 0), train_row("ann", 3, 1), train_row("bob", 2, 1)]
    with BeamPipeline() as pipeline:
        joined = {
            SCORES: pipeline | "S" >> beam.Create([of_context("bob", 2, 7), of_context("ann", 3, 7)]),
            ROWS: pipeline | "R" >> beam.Create(rows),
        } | JoinUsers(7, SIZES)
        named = (
            joined
            | beam.MapTuple(lambda r, _: ScoreRecord.parse(r))
            | beam.Map(lambda r: (r.user_id, r.context_id, r.llm_scores))
        )
        expected = [("bob", context_id("bob", 2, 7), (0.5,)), ("ann", context_id("ann", 3, 7), (0.5,))]
        assert_that(named, equal_to(expected))


def test_scores_of_another_seed_are_refused_with_the_fix():
    with pytest.raises(UserError, match=r"got scores of the context .*, which no row has; score again with the same"):
        list(_with_user("c", {SCORES: [of_context("ann", 2, 1)], ROWS: []}))


def test_the_counts_of_all_contexts_stand_in_one_file(tmp_path):
    write_catalog(str(tmp_path), [Item(item_id=item_id) for item_id in ("h1", "i0", "i1", "i2", "i3", "i4")])
    # i0 makes four labeled pairs; i1 and i2 are tied, each too close to i3, and only one of them can pair with i4;
    # i3 and i4 flip.
    rich = audited([1.0, 0.5, 0.5, 0.375, 0.0], [1.0, 0.5, 0.5, 0.25, 0.375], chosen="i0")
    config = PairConfig(min_margin=0.25, max_per_context=1, drop_inconsistent=True)
    with BeamPipeline() as pipeline:
        built = (
            pipeline
            | beam.Create([(made.serialize(), {}) for made in (rich, record({"i0": 0.5, "i1": 0.5}))])
            | beam.ParDo(BuildPairs(config, SIZES, str(tmp_path))).with_outputs(COUNTS, main="pairs")
        )
        _ = built[COUNTS] | WriteCounts(str(tmp_path))
    assert read_counts(str(tmp_path)) == PairCounts(
        contexts=2,
        contexts_without_pair=1,
        candidate_pairs=11,
        pairs=5,
        calibration_pairs=4,
        tied=2,
        inconsistent=1,
        narrow=2,
        beyond_cap=1,
    )


def test_a_score_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"llm_scores must be in \[0, 1\], got 1.5"):
        record({"a": 1.5})


def test_score_records_survive_serialization():
    original = record({"a": 0.25, "b": 0.75}, chosen="b", history=("h1", "h2"))
    original = dataclasses.replace(
        original,
        first_llm_scores=(0.25, 0.5),
        second_llm_scores=(0.25, 1.0),
        user_key="k",
        user_positives=7,
        last_position=9,
        fingerprint="d",
    )
    assert ScoreRecord.parse(original.serialize()) == original


def test_a_record_of_an_earlier_version_reads_with_the_defaults_of_what_it_lacks():
    example = tf.train.Example.FromString(record({"a": 0.25}).serialize())
    for name in ("first_llm_scores", "second_llm_scores", "user_key", "user_positives", "last_position", "fingerprint"):
        del example.features.feature[name]
    assert ScoreRecord.parse(example.SerializeToString()) == record({"a": 0.25})


def test_a_record_with_the_former_names_of_fields_and_roles_reads_as_todays():
    original = dataclasses.replace(record({"a": 0.25, "b": 0.75}, chosen="b"), fingerprint="d")
    example = tf.train.Example.FromString(original.serialize())
    feature = example.features.feature
    for name, former in (("target_item_id", "chosen_item_id"), ("fingerprint", "content_digest")):
        feature[former].CopyFrom(feature[name])
        del feature[name]
    feature["roles"].bytes_list.value[:] = [b"negative", b"chosen"]
    assert ScoreRecord.parse(example.SerializeToString()) == original
    assert (original.roles, original.target_item_id) == (("negative", "target"), "b")


def test_scores_of_one_order_alone_are_refused():
    with pytest.raises(ValueError, match="must both be empty or as long as item_ids"):
        dataclasses.replace(record({"a": 0.5, "b": 0.1}), first_llm_scores=(0.5, 0.1))

"""Pairs of one context against a plain reading of the paper's rule."""

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from components.catalog import Item, ItemFeatures, write_catalog
from components.pair_builder.config import PairConfig
from components.pair_builder.pairs import Pair, pair_values, select_pairs
from components.pair_builder.transforms import BuildPairs
from components.scores import CHOSEN, NEGATIVE, POPULAR, ScoreRecord
from models import features
from models.features import FeatureSizes, pair_features, parsing_spec

SIZES = FeatureSizes(history=3, categories=2)


def record(scores: dict[str, float], chosen: str = "", history: tuple[str, ...] = ("h1",)) -> ScoreRecord:
    return ScoreRecord(
        context_id="c",
        history_item_ids=history,
        history_length=len(history),
        item_ids=tuple(scores),
        llm_scores=tuple(scores.values()),
        raw_scores=tuple(scores.values()),
        roles=tuple((CHOSEN if i == chosen else NEGATIVE) if chosen else POPULAR for i in scores),
        chosen_item_id=chosen,
        model="m",
        strategy="s",
        prompt_version="p",
        scored_at=0,
    )


def test_the_pairs_with_the_largest_gap_are_kept_in_order():
    pairs = select_pairs(record({"a": 0.9, "b": 0.1, "c": 0.5}), PairConfig(max_per_context=2))
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("a", "b"), ("a", "c")]
    assert [p.llm_margin for p in pairs] == pytest.approx([0.9 - 0.1, 0.9 - 0.5])


def test_equal_scores_never_make_a_pair():
    assert select_pairs(record({"a": 0.4, "b": 0.4}), PairConfig()) == []


def test_one_pair_survives_where_every_gap_is_below_the_threshold():
    pairs = select_pairs(record({"a": 0.5, "b": 0.52, "c": 0.55}), PairConfig(min_margin=0.2))
    assert [(p.preferred_item_id, p.other_item_id) for p in pairs] == [("c", "a")]


def test_a_probe_pair_says_whether_the_llm_agrees_with_the_user():
    pairs = select_pairs(record({"chosen": 0.5, "worse": 0.2, "better": 0.8}, chosen="chosen"), PairConfig())
    labels = {(p.preferred_item_id, p.other_item_id): p.probe_label for p in pairs}
    assert labels == {
        ("chosen", "worse"): 1,
        ("better", "chosen"): 0,
        ("better", "worse"): features.NOT_A_PROBE,
    }


def test_every_probe_pair_is_kept_beyond_the_cap():
    scores = {"chosen": 0.5, **{f"n{i}": 0.5 + (i + 1) * 0.01 for i in range(20)}}
    pairs = select_pairs(record(scores, chosen="chosen"), PairConfig(max_per_context=1))
    assert sum(p.probe_label != features.NOT_A_PROBE for p in pairs) == 20
    assert sum(p.probe_label == features.NOT_A_PROBE for p in pairs) == 1


CATALOG = {
    "h1": Item(item_id="h1", categories=("x", "y", "z"), brand="hb"),
    "a": Item(item_id="a", categories=("leaf",), brand="ab", train_count=7),
    "b": Item(item_id="b", is_tail=True),
}


def test_pair_values_hold_both_items_and_the_shared_context():
    pair = Pair(preferred_item_id="a", other_item_id="b", llm_margin=0.5, probe_label=1)
    values = pair_values(record({"a": 0.9, "b": 0.4}), pair, ItemFeatures(CATALOG.values(), SIZES))
    assert values[features.HISTORY_ITEM_IDS] == [b"h1", b"", b""]
    assert values[features.HISTORY_CATEGORIES] == [b"x", b"y", b"", b"", b"", b""]
    assert values[features.PREFERRED + features.ITEM_CATEGORIES] == [b"leaf", b""]
    assert values[features.PREFERRED + features.ITEM_TRAIN_COUNT] == 7
    assert values[features.OTHER + features.IS_TAIL] == 1
    assert set(values) == {f.name for f in pair_features(SIZES)}


def test_build_pairs_writes_examples_that_the_parsing_spec_reads(tmp_path):
    write_catalog(str(tmp_path), CATALOG.values())

    def preferred_and_margin(serialized: bytes) -> tuple[bytes, float]:
        row = tf.io.parse_single_example(serialized, parsing_spec(pair_features(SIZES)))
        return row[features.PREFERRED + features.ITEM_ID].numpy(), round(float(row[features.LLM_MARGIN]), 4)

    with TestPipeline() as pipeline:
        pairs = (
            pipeline
            | beam.Create([record({"a": 0.25, "b": 0.75}).serialize(), record({"a": 0.5, "b": 0.5}).serialize()])
            | beam.ParDo(BuildPairs(PairConfig(), SIZES, str(tmp_path)))
            | beam.Map(preferred_and_margin)
        )
        assert_that(pairs, equal_to([(b"b", 0.5)]))


def test_a_score_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"llm_scores must be in \[0, 1\], got 1.5"):
        record({"a": 1.5})


def test_score_records_survive_serialization():
    original = record({"a": 0.25, "b": 0.75}, chosen="b", history=("h1", "h2"))
    assert ScoreRecord.parse(original.serialize()) == original

"""Every leak that is planted into sound rows, catalogs, vocabularies, scores and pairs is caught and named."""

import collections
import copy
import dataclasses
import json
import re
from collections.abc import Callable

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_transform as tft
from apache_beam.testing.test_pipeline import TestPipeline as BeamPipeline

from sllmr.components.catalog import Item, ItemFeatures, write_catalog
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.rows import Event, SplitPlan, make_rows, make_timeline
from sllmr.components.interactions_example_gen.tables import OBSERVED_NEGATIVE, POSITIVE
from sllmr.components.interactions_example_gen.transforms import PrepareInteractions
from sllmr.components.leakage_guard import checks
from sllmr.components.leakage_guard.executor import LeakageError, refuse_leaks
from sllmr.components.leakage_guard.report import LeakageReport, read_leakage_report
from sllmr.components.leakage_guard.transforms import (
    PAIRS,
    SCORES,
    FindLeaks,
    WriteLeakageReport,
    parse_pair,
)
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.pairs import pair_values, select_pairs
from sllmr.components.scores import NEGATIVE, TARGET, ScoreRecord, context_id
from sllmr.models import features
from sllmr.models.declared_features import CATEGORICAL, ITEM, DeclaredFeature
from sllmr.models.features import FeatureSizes, pair_features, row_features
from sllmr.models.tf_examples import Example, to_example
from tests.components.interactions_example_gen.market import interactions, write_tables

SIZES = FeatureSizes(history=4, categories=2)
SEED = 3
SPLITS = ("train", "valid", "test")
_EMPTY = {"string": lambda shape: np.full(shape, b"", object).tolist(), "int64": lambda shape: 0}


def _seen_row(row: Example, split: str) -> tuple[str, checks.SeenRow]:
    """By protobuf, where the guard parses with TensorFlow."""
    seen = checks.SeenRow(
        split=split,
        item_id=strings(row, features.ITEM_ID)[0].decode(),
        label=number(row, features.LABEL),
        position=number(row, features.POSITION),
        history=tuple(value.decode() for value in strings(row, features.HISTORY_ITEM_IDS) if value),
        history_length=number(row, features.HISTORY_LENGTH),
        user_train_count=number(row, features.USER_TRAIN_COUNT),
        item_train_count=number(row, features.ITEM_TRAIN_COUNT),
    )
    return strings(row, features.USER_ID)[0].decode(), seen


class Market:
    """What the steps before the guard write for a small market, as lists that a test can change."""

    def __init__(self, directory, **settings):
        config = DataConfig(**write_tables(directory, interactions()), sizes=SIZES, **settings)
        collected: dict[str, list] = {name: [] for name in (*SPLITS, "catalog")}
        with BeamPipeline() as pipeline:
            output = pipeline | PrepareInteractions(config)
            for name in collected:
                path = str(directory / name)
                lines = output[name] | f"Line_{name}" >> beam.Map(_as_line)
                _ = lines | f"Write_{name}" >> beam.io.WriteToText(path, num_shards=1, shard_name_template="")
        for name in SPLITS:
            lines = (directory / name).read_text().splitlines()
            collected[name] = [Example.FromString(bytes.fromhex(line)) for line in lines]
        self.rows = {name: collected[name] for name in SPLITS}
        self.items = list(_items(directory / "catalog"))
        self.directory = directory / "written"
        self.vocabularies = {
            name: sorted({v for row in self.rows["train"] for column in group for v in strings(row, column) if v})
            for name, group in features.INDEXED.items()
        }
        self.scores = [self._record(row) for row in self.rows["train"] if number(row, features.LABEL)][:20]
        self.pairs = [pair for record in self.scores for pair in self._pairs(record)]

    def _record(self, row: Example) -> ScoreRecord:
        user, target = strings(row, features.USER_ID)[0].decode(), strings(row, features.ITEM_ID)[0].decode()
        other = next(i.item_id for i in self.items if i.item_id != target)
        return ScoreRecord(
            context_id=context_id(user, number(row, features.POSITION), SEED),
            history_item_ids=tuple(v.decode() for v in strings(row, features.HISTORY_ITEM_IDS) if v),
            history_length=number(row, features.HISTORY_LENGTH),
            item_ids=(target, other),
            llm_scores=(0.9, 0.1),
            raw_scores=(0.9, 0.1),
            roles=(TARGET, NEGATIVE),
            target_item_id=target,
            user_id=user,
            model="m",
            strategy="s",
            prompt_version="p",
            scored_at=0,
        )

    def _pairs(self, record: ScoreRecord) -> list[Example]:
        catalog = ItemFeatures(self.items, SIZES)
        pairs = select_pairs(record, PairConfig()).pairs
        return [to_example(pair_values(record, pair, catalog), pair_features(SIZES)) for pair in pairs]

    def find(self) -> LeakageReport:
        write_catalog(str(self.directory), self.items)
        given = {
            name: [row.SerializeToString() for row in rows] for name, rows in (*self.rows.items(), (PAIRS, self.pairs))
        }
        given[SCORES] = [record.serialize() for record in self.scores]
        with BeamPipeline() as pipeline:
            inputs = {name: pipeline | f"Create_{name}" >> beam.Create(values) for name, values in given.items()}
            report = inputs | FindLeaks(str(self.directory), self.vocabularies, SIZES, SEED)
            _ = report | beam.ParDo(WriteLeakageReport(str(self.directory)))
        return read_leakage_report(str(self.directory))

    def leaks(self) -> list[checks.Leak]:
        """What the pure checks find, joined by plain dictionaries."""
        rows = [_seen_row(row, split) for split, part in self.rows.items() for row in part]
        pairs = [parse_pair(pair.SerializeToString()) for pair in self.pairs]
        counts = collections.Counter(row.item_id for _, row in rows if row.split == "train" and row.label)
        found = []
        for user in {user for user, _ in (*rows, *pairs)}:
            own = [[seen for whose, seen in part if whose == user] for part in (rows, pairs)]
            found += checks.leaks_of_user(user, *own, counts)
        found += checks.leaks_of_catalog([(i.item_id, i.train_count, i.is_tail) for i in self.items], counts)
        for name, values in self.vocabularies.items():
            seen = {v.decode() for row in self.rows["train"] for f in features.INDEXED[name] for v in strings(row, f)}
            found += checks.leaks_of_vocabulary(name, [value.decode() for value in values], seen)
        for record in self.scores:
            of_context = [
                (user, row)
                for user, row in rows
                if row.label and context_id(user, row.position, SEED) == record.context_id
            ]
            given = [(record.history_item_ids, record.target_item_id)]
            found += checks.leaks_of_scores(record.context_id, given, of_context)
        return found

    def row(self, split: str, *, last: bool = False, label: int = 1) -> Example:
        """A row of the first user."""
        rows = [
            r
            for r in self.rows[split]
            if strings(r, features.USER_ID) == [b"u00"] and number(r, features.LABEL) == label
        ]
        return sorted(rows, key=lambda row: number(row, features.POSITION))[-1 if last else 0]


def _as_line(value) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return json.dumps([dataclasses.asdict(item) for item in value])


def _items(file):
    for values in json.loads(file.read_text()):
        yield Item(**{**values, "categories": tuple(values["categories"])})


def strings(row: Example, name: str) -> list[bytes]:
    return list(row.features.feature[name].bytes_list.value)


def number(row: Example, name: str) -> int:
    return row.features.feature[name].int64_list.value[0]


def set_string(row: Example, name: str, value: bytes, place: int = 0) -> None:
    row.features.feature[name].bytes_list.value[place] = value


def set_number(row: Example, name: str, value: int) -> None:
    row.features.feature[name].int64_list.value[0] = value


def copy_of(row: Example) -> Example:
    return Example.FromString(row.SerializeToString())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return Market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def market(sound):
    return copy.deepcopy(sound)


@pytest.mark.parametrize(
    "settings",
    [{}, {"split": {"strategy": "global_date"}}],
    ids=["leave_last_two", "global_date"],
)
@pytest.mark.slow
def test_sound_data_has_no_leak_and_everything_is_counted(tmp_path, settings):
    market = Market(tmp_path, **settings)
    report = market.find()

    assert report.leaks == {}
    assert report.checked == {
        "rows": sum(map(len, market.rows.values())),
        "catalog_items": len(market.items),
        "vocabulary_values": sum(map(len, market.vocabularies.values())),
        "pairs": len(market.pairs),
        "scores": len(market.scores),
    }
    assert all(report.checked.values())
    refuse_leaks(report)


def a_test_row_trains(market):
    market.rows["train"].append(copy_of(market.row("test")))


def a_history_holds_the_target(market):
    row = market.row("train", last=True)
    set_string(row, features.HISTORY_ITEM_IDS, strings(row, features.ITEM_ID)[0])


def a_history_holds_the_test_item(market):
    item = strings(market.row("test"), features.ITEM_ID)[0]
    set_string(market.row("train", last=True), features.HISTORY_ITEM_IDS, item)


def a_negatives_history_holds_the_test_item(market):
    item = strings(market.row("test"), features.ITEM_ID)[0]
    set_string(market.row("train", last=True, label=0), features.HISTORY_ITEM_IDS, item)


def popularity_counts_a_test_row(market):
    item = strings(market.row("test"), features.ITEM_ID)[0].decode()
    place = next(n for n, i in enumerate(market.items) if i.item_id == item)
    market.items[place] = dataclasses.replace(market.items[place], train_count=market.items[place].train_count + 1)


def a_row_counts_a_test_row(market):
    row = market.row("train")
    set_number(row, features.ITEM_TRAIN_COUNT, number(row, features.ITEM_TRAIN_COUNT) + 1)


def the_user_count_holds_all_splits(market):
    row = market.row("valid")
    set_number(row, features.USER_TRAIN_COUNT, number(row, features.USER_TRAIN_COUNT) + 2)


def the_tail_is_cut_by_other_counts(market):
    best = max(range(len(market.items)), key=lambda n: market.items[n].train_count)
    market.items[best] = dataclasses.replace(market.items[best], is_tail=True)


def a_vocabulary_holds_a_test_value(market):
    market.vocabularies[features.BRANDS] = [*market.vocabularies[features.BRANDS], b"only in test"]


def scores_are_of_a_test_row(market):
    market.scores.append(market._record(market.row("test")))


def scores_were_made_with_a_later_history(market):
    item = strings(market.row("test"), features.ITEM_ID)[0].decode()
    first = market.scores[0]
    market.scores[0] = dataclasses.replace(first, history_item_ids=(item, *first.history_item_ids[1:]))


def scores_have_the_test_item_as_target(market):
    user = market.scores[0].user_id
    later = next(r for r in market.rows["test"] if strings(r, features.USER_ID)[0].decode() == user)
    market.scores[0] = dataclasses.replace(
        market.scores[0], target_item_id=strings(later, features.ITEM_ID)[0].decode()
    )


def a_pair_is_of_a_test_row(market):
    market.pairs += market._pairs(market._record(market.row("test")))


def a_pair_is_labeled_by_the_test_item(market):
    set_string(market.pairs[0], features.PREFERRED + features.ITEM_ID, b"i39")


def a_pair_has_a_later_history(market):
    set_string(market.pairs[0], features.HISTORY_ITEM_IDS, b"i39")


def a_pair_counts_all_splits(market):
    name = features.OTHER + features.ITEM_TRAIN_COUNT
    set_number(market.pairs[0], name, number(market.pairs[0], name) + 1)


@pytest.mark.parametrize(
    ("plant", "kind", "named"),
    [
        (
            a_test_row_trains,
            "train_row",
            r"train row of user u00, positive item i\d+, position \d+: .* the valid row of user u00",
        ),
        (a_history_holds_the_target, "history", "train row of user u00.*at place 1, the train interaction"),
        (
            a_history_holds_the_test_item,
            "history",
            "train row of user u00.*at place 1, the test interaction of position",
        ),
        (a_negatives_history_holds_the_test_item, "history", "train row of user u00, negative.*the test interaction"),
        (popularity_counts_a_test_row, "count", r"catalog item i\d+: train_count is \d+, but the train rows hold \d+"),
        (a_row_counts_a_test_row, "count", "train row of user u00.*item_train_count is"),
        (the_user_count_holds_all_splits, "count", "valid row of user u00.*user_train_count is"),
        (the_tail_is_cut_by_other_counts, "count", r"catalog item i\d+: it belongs to the long tail"),
        (a_vocabulary_holds_a_test_value, "vocabulary", "vocabulary brands: only in test is in no train row"),
        (scores_are_of_a_test_row, "scores", "the context is that of the test row of user u00"),
        (scores_were_made_with_a_later_history, "scores", r"the history holds i\d+ at place 1"),
        (scores_have_the_test_item_as_target, "scores", r"the target item is i\d+"),
        (a_pair_is_of_a_test_row, "pair", "pair of user u00.*it is made for a test row"),
        (a_pair_is_labeled_by_the_test_item, "pair", "says that the user took i39"),
        (a_pair_has_a_later_history, "pair", "the history holds i39 at place 1"),
        (a_pair_counts_all_splits, "pair", r"item_train_count of i\d+ is \d+, but"),
    ],
)
@pytest.mark.slow
def test_a_planted_leak_is_caught_and_named(market, plant: Callable[[Market], None], kind, named):
    assert market.leaks() == []
    plant(market)

    found = market.leaks()

    assert any(leak.kind == kind and re.search(named, leak.text) for leak in found), found


def rows_of_negatives_after(positives: list[str], window_start: int) -> list[checks.SeenRow]:
    """Of a user who has these positives in January, and whose observed negatives n1 and n2 in February train."""
    config = DataConfig(interactions="unused", items="unused", split={"strategy": "global_date"}, sizes=SIZES)
    events = [Event(item_id, n, 0.0, POSITIVE, "f", n) for n, item_id in enumerate(positives, 1)]
    events += [Event(item_id, 50 + n, 0.0, OBSERVED_NEGATIVE, "f", 50 + n) for n, item_id in enumerate(["n1", "n2"])]
    plan = SplitPlan(valid_from=100, test_from=200, window_start=window_start, observed_negatives=True)
    rows = make_rows("u", make_timeline(events, config, plan), [*positives, "n1", "n2"], config, plan)
    return [
        checks.SeenRow(
            split=row.split,
            item_id=row.item_id,
            label=row.label,
            position=row.history_length + 1,
            history=row.history,
            history_length=row.history_length,
            user_train_count=row.user_train_count,
            item_train_count=0,
        )
        for row in rows
    ]


@pytest.mark.parametrize(("positives", "window_start"), [(["a"], 0), (["a", "b", "c"], 40)])
def test_positives_that_only_the_histories_of_observed_negatives_name_are_no_leak(positives, window_start):
    rows = rows_of_negatives_after(positives, window_start)
    assert [(row.item_id, row.history) for row in rows] == [(n, tuple(reversed(positives))) for n in ("n1", "n2")]
    assert list(checks.leaks_of_user("u", rows, [], {})) == []
    planted = rows[1]._replace(history=("later", *rows[1].history[1:]))
    (leak,) = checks.leaks_of_user("u", [rows[0], planted], [], {})
    assert re.search(f"item n2, .* holds later at place 1, where .* is {positives[-1]}", leak.text)


def test_the_one_value_that_transform_writes_for_an_empty_vocabulary_is_no_leak():
    _, value = tft.analyzers.get_empy_vocabulary_dummy_value("string")
    assert value.decode() == checks.EMPTY_VOCABULARY
    assert list(checks.leaks_of_vocabulary("brands", [checks.EMPTY_VOCABULARY], set())) == []


@pytest.mark.slow
def test_a_test_value_of_a_declared_feature_is_caught_and_one_of_a_train_row_or_of_its_history_is_not(tmp_path):
    declared = DeclaredFeature(name="color", table=ITEM, kind=CATEGORICAL, history=True)
    sizes = FeatureSizes(history=2, categories=1, declared=(declared,))

    def row(color: bytes, history: list[bytes]) -> bytes:
        values = {f.name: _EMPTY[f.dtype](f.shape) for f in row_features(sizes)}
        values |= {features.USER_ID: b"u", features.ITEM_ID: b"i", "color": color, "history_color": history}
        return to_example(values, row_features(sizes)).SerializeToString()

    with BeamPipeline() as pipeline:
        rows = {
            "train": pipeline | "Train" >> beam.Create([row(b"red", [b"blue", b""])]),
            "test": pipeline | "Test" >> beam.Create([row(b"green", [b"red", b""])]),
        }
        write_catalog(str(tmp_path), [])
        find = FindLeaks(str(tmp_path), {"color": [b"red", b"blue", b"green"]}, sizes, SEED)
        _ = rows | find | beam.ParDo(WriteLeakageReport(str(tmp_path)))

    found = read_leakage_report(str(tmp_path)).leaks["vocabulary"]
    assert (found.count, found.named) == (1, ["vocabulary color: green is in no train row"])


@pytest.mark.slow
def test_leaks_of_every_kind_are_refused_in_one_error_that_names_them(market):
    planted = {
        a_test_row_trains: "train_row",
        a_history_holds_the_target: "history",
        popularity_counts_a_test_row: "count",
        a_vocabulary_holds_a_test_value: "vocabulary",
        scores_have_the_test_item_as_target: "scores",
        a_pair_is_labeled_by_the_test_item: "pair",
    }
    for plant in planted:
        plant(market)

    report = market.find()

    assert report.leaks.keys() == set(planted.values())
    with pytest.raises(LeakageError, match="only in test") as raised:
        refuse_leaks(report)
    assert all(text in str(raised.value) for found in report.leaks.values() for text in found.named)

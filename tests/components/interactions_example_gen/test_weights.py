"""Weights of interactions: data.events, data.columns.weight, and data.repeats beside them."""

import pytest
import tensorflow as tf
import yaml

from sllmr.components.interactions_example_gen import rows
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.rows import Event, SplitPlan
from sllmr.components.interactions_example_gen.tables import (
    LOW_RATED,
    OBSERVED_NEGATIVE,
    POSITIVE,
    Interaction,
    read_interactions,
)
from sllmr.models import features
from sllmr.models.parsing import parsing_spec
from tests.components.interactions_example_gen import market
from tests.components.interactions_example_gen.test_transforms import prepare

EVENTS = {"columns": {"event_type": "event"}, "events": {"view": 0.2, "cart": 0.5, "purchase": 1, "refund": 0}}
WEIGHT = {"columns": {"weight": "confidence"}}


def configure(**settings):
    return DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", **settings})


@pytest.fixture
def read(tmp_path):
    """Reads interactions of one user, whose columns after the time hold these cells."""

    def read_rows(header, *cells, **settings):
        lines = [f"u,i{n},{10**9 + n},{cell}" for n, cell in enumerate(cells)]
        path = tmp_path / "interactions.csv"
        path.write_text("\n".join([f"user_id,item_id,timestamp,{header}", *lines]) + "\n")
        return list(read_interactions(str(path), configure(**settings)))

    return read_rows


def kinds_and_weights(found):
    return [(row.kind, row.weight) for row in found]


def test_an_event_type_has_its_weight_and_0_is_no_positive(read):
    found = read("event", "view", "cart", "purchase", "refund", **EVENTS)
    assert kinds_and_weights(found) == [(POSITIVE, 0.2), (POSITIVE, 0.5), (POSITIVE, 1), (LOW_RATED, 1)]


def test_an_event_type_without_a_weight_names_the_row_and_the_line_that_adds_it(read, tmp_path):
    good, bad = read("event", "view", "wish list", **EVENTS)
    assert isinstance(good, Interaction)
    assert bad.reason == "unknown_event_type"
    assert str(bad).startswith(
        f"{tmp_path / 'interactions.csv'}:3: event must be among the keys of data.events, got 'wish list'; write data:"
    )
    written = yaml.safe_load(bad.problem.partition("; write ")[2])
    assert written == {"data": {"events": {**EVENTS["events"], "wish list": 0}}}


def test_a_weight_of_a_column_multiplies_that_of_the_event_type(read):
    settings = {"columns": {"event_type": "event", "weight": "confidence"}, "events": EVENTS["events"]}
    found = read("event,confidence", "view,3", "purchase,0.5", "purchase,0", "refund,2", **settings)
    assert kinds_and_weights(found) == [
        (POSITIVE, pytest.approx(0.6)),
        (POSITIVE, 0.5),
        (LOW_RATED, 0),
        (LOW_RATED, 2),
    ]


def test_an_observed_negative_keeps_its_own_weight(read):
    found = read("label,confidence", "1,2", "0,3", **WEIGHT)
    assert kinds_and_weights(found) == [(POSITIVE, 2), (OBSERVED_NEGATIVE, 3)]


@pytest.mark.parametrize("cell", ["-1", "nan", "inf", "much", ""])
def test_a_weight_must_be_a_number_of_0_or_more(read, cell):
    good, bad = read("confidence", "0.1", cell, **WEIGHT)
    assert good.weight == 0.1
    assert bad.reason == "bad_weight"
    assert f"the weight in 'confidence' must be {'0 or more' if cell == '-1' else 'a number'}, got" in bad.problem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"events": {"view": 1}}, "columns.event_type and positive_event_types or events must be set together"),
        ({**EVENTS, "positive_event_types": ["view"]}, "must not both say which event types are positives"),
        ({**EVENTS, "events": {"view": -1, "buy": 1}}, r"must be finite numbers of 0 or more, got \{'view': -1.0\}"),
        ({**EVENTS, "events": {"view": float("inf")}}, "must be finite numbers of 0 or more"),
        ({**EVENTS, "events": {"view": 0}}, "some weight must be above 0"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        configure(**settings)


def test_rows_carry_weights_only_if_one_is_not_1():
    assert not configure().has_weights
    assert not configure(columns={"event_type": "e"}, events={"view": 0, "buy": 1}).has_weights
    assert configure(**EVENTS).has_weights
    assert configure(**WEIGHT).has_weights
    names = {f.name for f in features.row_features(features.FeatureSizes())}
    with_weights = {f.name for f in features.row_features(features.FeatureSizes(), has_weights=True)}
    assert with_weights - names == {features.EXAMPLE_WEIGHT}


def event(item_id, timestamp, kind=POSITIVE, weight=1.0):
    return Event(item_id, timestamp, 0.0, kind, "a.csv", timestamp, 0, weight)


def made(events, plan, config):
    timeline = rows.make_timeline(events, config, plan)
    return list(rows.make_rows("u", timeline, [f"i{n}" for n in range(40)], config, plan))


def test_train_rows_alone_are_weighted_and_a_sampled_negative_as_its_positive():
    events = [event(f"i{n}", n, weight=n / 10) for n in range(1, 7)]
    found = made(events, SplitPlan(), configure(**WEIGHT))
    assert [(row.split, row.label, row.weight) for row in found] == [
        *(("train", label, weight) for weight in (0.2, 0.3, 0.4) for label in (1, 0)),
        *((split, label, 1.0) for split in ("valid", "test") for label in (1, 0)),
    ]


def test_an_observed_negative_is_weighted_by_its_own_row():
    events = [event("a", 1), event("b", 2, OBSERVED_NEGATIVE, 0.3), *(event(f"i{n}", n, weight=2.0) for n in (3, 4, 5))]
    found = made(events, SplitPlan(observed_negatives=True), configure(**WEIGHT))
    assert [(row.item_id, row.weight) for row in found if row.split == "train"] == [("b", 0.3), ("i3", 2.0)]


def test_of_events_at_the_same_time_the_heaviest_stays():
    kept, surplus = rows.without_duplicates([event("a", 1, weight=0.2), event("a", 1, weight=1.0)._replace(row=9)])
    assert [e.weight for e in kept] == [1.0]
    assert [e.weight for e in surplus] == [0.2]


def test_first_only_keeps_the_first_positive_of_each_item():
    events = [
        event("a", 1, LOW_RATED),
        event("a", 2, weight=0.2),
        event("b", 3),
        event("a", 4),
        event("a", 5, LOW_RATED),
        event("b", 6),
    ]
    assert rows.without_repeats(events, configure(repeats="first_only")) == [events[n] for n in (0, 1, 2, 4)]
    assert rows.without_repeats(events, configure()) == events


def write(directory, chosen, event_of):
    """The market's tables with a column `event`."""
    settings = market.write_tables(directory, chosen)
    path = directory / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    lines = [f"{line},{event_of(number)}" for number, line in enumerate(lines)]
    path.write_text("\n".join([f"{header},event", *lines]) + "\n")
    return settings


@pytest.mark.slow
def test_weights_of_0_and_1_give_the_very_rows_of_positive_event_types(tmp_path):
    settings = write(tmp_path, market.interactions(), lambda number: ("buy", "buy", "buy", "view")[number % 4])
    results = []
    for name, which in (("a", {"events": {"view": 0, "buy": 1}}), ("b", {"positive_event_types": ["buy"]})):
        (tmp_path / name).mkdir()
        config = DataConfig(**settings, columns={"event_type": "event"}, **which)
        results.append(prepare(config, tmp_path / name))
    assert results[0].splits == results[1].splits
    assert results[0].catalog == results[1].catalog
    hashes = [result.report["negatives"]["evaluation_hash"] for result in results]
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_weights_change_nothing_but_the_weights_of_the_train_rows(tmp_path):
    of_event = {"view": 0.25, "buy": 1.0}
    settings = write(tmp_path, market.interactions(), lambda number: ("buy", "view")[number % 2])
    prepared = {}
    for name, weights in (("weighted", of_event), ("plain", dict.fromkeys(of_event, 1))):
        (tmp_path / name).mkdir()
        config = DataConfig(**settings, columns={"event_type": "event"}, events=weights)
        spec = parsing_spec(features.row_features(config.feature_sizes, has_weights=config.has_weights))
        written = prepare(config, tmp_path / name).splits
        prepared[name] = {s: tf.io.parse_example(tf.constant(sorted(written[s])), spec) for s in rows.SPLITS}
    event_of = {}
    for line in (tmp_path / "interactions.csv").read_text().splitlines()[1:]:
        user, item, _, event_type = line.split(",")
        event_of[user, item] = event_type
    for split in rows.SPLITS:
        columns = {name: values.numpy().tolist() for name, values in prepared["weighted"][split].items()}
        weights = columns.pop(features.EXAMPLE_WEIGHT)
        by_row = sorted(zip(*(columns[name] for name in sorted(columns)), strict=True))
        plain = prepared["plain"][split]
        assert by_row == sorted(zip(*(plain[name].numpy().tolist() for name in sorted(columns)), strict=True))
        places = zip(columns[features.USER_ID], columns[features.POSITION], strict=True)
        chosen = market.interactions()
        items = [(user.decode(), chosen[user.decode()][position - 1]) for user, position in places]
        expected = [of_event[event_of[place]] if split == "train" else 1.0 for place in items]
        assert weights == expected
    assert set(prepared["weighted"]["train"][features.EXAMPLE_WEIGHT].numpy()) == {0.25, 1.0}


@pytest.mark.slow
def test_repeats_are_counted_or_left_out_and_said(tmp_path):
    chosen = {user: [*items, items[0]] for user, items in market.interactions().items()}
    settings = market.write_tables(tmp_path, chosen)
    prepared = {}
    for policy in ("keep", "first_only"):
        (tmp_path / policy).mkdir()
        prepared[policy] = prepare(DataConfig(**settings, repeats=policy), tmp_path / policy)
    kept, first = prepared["keep"].report, prepared["first_only"].report
    assert kept["splits"]["test"]["repeated_positives"] == market.USERS
    assert "repeats" not in kept["interactions_table"]["left_out"]
    assert first["splits"]["test"]["repeated_positives"] == 0
    assert first["interactions_table"]["left_out"]["repeats"] == market.USERS
    assert first["interactions_table"]["kept"] == kept["interactions_table"]["kept"]
    (tmp_path / "without").mkdir()
    without = prepare(
        DataConfig(**market.write_tables(tmp_path / "without", market.interactions())), tmp_path / "without"
    )
    assert prepared["first_only"].splits == without.splits

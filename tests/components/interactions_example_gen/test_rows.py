import collections

import pytest

from sllmr.components.catalog import Item, ItemFeatures
from sllmr.components.interactions_example_gen import rows
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.rows import Event, SplitPlan
from sllmr.components.interactions_example_gen.tables import LOW_RATED, OBSERVED_NEGATIVE, POSITIVE
from sllmr.models import features
from sllmr.models.features import FeatureSizes, row_features
from sllmr.models.tf_examples import to_example
from tests.components.interactions_example_gen import market

CATALOG = tuple(f"i{n}" for n in range(40))


def configure(**settings):
    return DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", **settings})


def event(item_id, timestamp, kind=POSITIVE, order=0.0, row=None):
    return Event(item_id, timestamp, order, kind, "a.csv", timestamp if row is None else row)


def chain(count):
    """A user who chose i0, i1, ... one after the other."""
    return [event(f"i{n}", n) for n in range(count)]


def rows_of(events, config=None, plan=None):
    config, plan = config or configure(), plan or SplitPlan()
    return list(rows.make_rows("u", rows.make_timeline(events, config, plan), CATALOG, config, plan))


def positives_by_split(made):
    result = collections.defaultdict(list)
    for row in made:
        if row.label:
            result[row.split].append(row.item_id)
    return dict(result)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_leave_last_two_trains_on_positions_2_to_n_minus_2(count):
    expected = collections.defaultdict(list)
    for position in range(2, count + 1):
        split = {count: "test", count - 1: "valid"}.get(position, "train")
        expected[split].append(f"i{position - 1}")
    assert positives_by_split(rows_of(chain(count))) == expected


def test_each_positive_is_followed_by_one_negative_in_the_same_context():
    made = rows_of(chain(9))
    for positive, negative in zip(made[::2], made[1::2], strict=True):
        assert (positive.label, negative.label) == (1, 0)
        assert negative._replace(item_id=positive.item_id, label=1) == positive


def test_the_history_is_all_that_came_before_latest_first_and_cut_at_its_length():
    made = rows_of(chain(7), configure(sizes=FeatureSizes(history=3)))
    last = next(row for row in made if row.split == "test" and row.label)
    assert last.history == ("i5", "i4", "i3")
    assert last.history_length == 6


def test_no_row_sees_its_own_item_or_a_later_one():
    chosen = [e.item_id for e in chain(12)]
    for row in rows_of(chain(12)):
        assert set(row.history) <= set(chosen[: row.history_length])


def test_global_date_splits_by_the_time_of_the_row_and_keeps_every_earlier_positive_as_history():
    config = configure(split={"strategy": "global_date"})
    made = rows_of(chain(6), config, SplitPlan(valid_from=2, test_from=4))
    assert positives_by_split(made) == {"train": ["i1"], "valid": ["i2", "i3"], "test": ["i4", "i5"]}
    assert [row.history_length for row in made if row.label] == [1, 2, 3, 4, 5]


def test_ties_in_time_follow_the_order_column_and_then_the_file():
    events = [
        event("c", 1, order=2, row=1),
        event("b", 1, order=1, row=3),
        event("a", 1, order=1, row=2),
        event("first", 0, row=9),
    ]
    ordered, surplus = rows.without_duplicates(events)
    assert [e.item_id for e in ordered] == ["first", "a", "b", "c"]
    assert surplus == []


def test_a_repeated_interaction_stays_once_and_the_positive_one_stays():
    events = [
        event("a", 1, OBSERVED_NEGATIVE, row=1),
        event("a", 1, row=2),
        event("a", 1, row=3),
        event("a", 2),
    ]
    ordered, surplus = rows.without_duplicates(events)
    assert [(e.timestamp, e.kind, e.row) for e in ordered] == [(1, POSITIVE, 2), (2, POSITIVE, 2)]
    assert sorted(e.row for e in surplus) == [1, 3]


@pytest.mark.parametrize(
    ("strategy", "plan"),
    [("leave_last_two", SplitPlan()), ("global_date", SplitPlan(valid_from=6, test_from=7))],
)
def test_train_negatives_avoid_only_what_the_user_touched_before_the_cut(strategy, plan):
    # Ten items, of which the user takes eight: i0-i5 train, i6 validates, i7 tests.
    catalog, config = CATALOG[:10], configure(split={"strategy": strategy})
    timeline = rows.make_timeline(chain(8), config, plan)
    seen = collections.defaultdict(set)
    for user in range(300):
        for row in rows.make_rows(f"u{user}", timeline, catalog, config, plan):
            if not row.label:
                seen[row.split].add(row.item_id)
    assert seen["train"] == {"i6", "i7", "i8", "i9"}
    assert seen["valid"] == seen["test"] == {"i8", "i9"}


def test_negatives_are_uniform_and_the_same_on_every_draw():
    draws = [rows.sample_negative(CATALOG, {"i0"}, 7, user) for user in range(39_000)]
    counts = collections.Counter(draws)
    assert set(counts) == set(CATALOG) - {"i0"}
    # 39 items, 1000 draws each: five standard deviations of a binomial are about 156.
    assert max(abs(count - 1000) for count in counts.values()) < 160
    assert draws[:100] == [rows.sample_negative(CATALOG, {"i0"}, 7, user) for user in range(100)]
    assert draws[:100] != [rows.sample_negative(CATALOG, {"i0"}, 8, user) for user in range(100)]


def test_the_only_item_left_is_found_and_none_left_is_none():
    assert rows.sample_negative(CATALOG, set(CATALOG) - {"i23"}, 0) == "i23"
    assert rows.sample_negative(CATALOG, set(CATALOG), 0) is None


def test_low_rated_items_join_no_history_and_are_no_negatives():
    catalog, config, plan = CATALOG[:6], configure(), SplitPlan()
    events = [event("i0", 0), event("i5", 1, LOW_RATED), event("i1", 2), event("i2", 3), event("i3", 4)]
    timeline = rows.make_timeline(events, config, plan)
    made = [row for user in range(50) for row in rows.make_rows(f"u{user}", timeline, catalog, config, plan)]
    assert {row.item_id for row in made if not row.label and row.split != "train"} == {"i4"}
    assert all("i5" not in (*row.history, row.item_id) for row in made)


def test_observed_negatives_join_the_split_of_the_next_positive_with_the_history_before_them():
    events = [
        event("n0", 0, OBSERVED_NEGATIVE),
        event("i0", 1),
        event("n1", 2, OBSERVED_NEGATIVE),
        event("i1", 3),
        event("n2", 4, OBSERVED_NEGATIVE),
        event("i2", 5),
        event("i3", 5, order=1, row=6),
        event("n3", 7, OBSERVED_NEGATIVE),
    ]
    made = rows_of(events, plan=SplitPlan(observed_negatives=True))
    assert [(row.split, row.item_id, row.label, row.history) for row in made] == [
        ("train", "n1", 0, ("i0",)),
        ("train", "i1", 1, ("i0",)),
        ("valid", "n2", 0, ("i1", "i0")),
        ("valid", "i2", 1, ("i1", "i0")),
        ("test", "i3", 1, ("i2", "i1", "i0")),
    ]


def test_a_negative_shown_at_the_moment_of_the_choice_does_not_know_the_choice():
    events = [event("i0", 0), event("i1", 1, row=1), event("n", 1, OBSERVED_NEGATIVE, row=2)]
    ordered, _ = rows.without_duplicates(events)
    made = rows_of(ordered, plan=SplitPlan(observed_negatives=True))
    assert [(row.item_id, row.history) for row in made] == [("n", ("i0",)), ("i1", ("i0",))]


@pytest.mark.parametrize(("count", "cold"), [(5, True), (6, False)])
def test_a_cold_user_of_leave_last_two_has_fewer_than_3_train_positives(count, cold):
    test_row = next(row for row in rows_of(chain(count)) if row.split == "test")
    assert test_row.user_train_count == count - 3
    assert test_row.is_cold == cold


def test_a_cold_row_of_global_date_has_fewer_than_3_positives_before_it():
    config = configure(split={"strategy": "global_date"})
    made = rows_of(chain(6), config, SplitPlan(valid_from=1, test_from=2))
    assert [row.is_cold for row in made if row.label] == [True, True, False, False, False]


def test_the_long_tail_is_the_least_popular_fifth_and_what_nobody_trained_on():
    items = [Item(item_id=item_id) for item_id in ("z", "a", "b", "c", "d", "e", "f")]
    counts = {"a": 5, "b": 1, "c": 9, "d": 2, "e": 7, "f": 4}
    result = rows.with_popularity(items, counts, 0.4)
    assert [item.item_id for item in result] == ["a", "b", "c", "d", "e", "f", "z"]
    assert {item.item_id for item in result if item.is_tail} == {"b", "d", "z"}
    assert {item.item_id: item.train_count for item in result} == {**counts, "z": 0}


def test_ties_at_the_edge_of_the_tail_do_not_depend_on_the_order_of_the_items():
    items = [Item(item_id=item_id) for item_id in CATALOG]
    counts = dict.fromkeys(CATALOG, 3)
    tail = {item.item_id for item in rows.with_popularity(items, counts, 0.2) if item.is_tail}
    backwards = dict.fromkeys(reversed(CATALOG), 3)
    assert len(tail) == 8
    assert tail == {item.item_id for item in rows.with_popularity(items[::-1], backwards, 0.2) if item.is_tail}


def test_row_values_fit_the_table_of_features():
    config = configure(sizes=FeatureSizes(history=2, categories=2))
    items = [
        Item(item_id="a", categories=("x",), brand="A", train_count=4),
        Item(item_id="b", categories=("x", "y"), brand="", is_tail=True),
    ]
    row = rows.Row("train", "u", ("a",), 1, 2, True, "b", 1)
    values = rows.row_values(row, ItemFeatures(items, config.sizes))
    example = to_example(values, row_features(config.sizes)).features.feature
    assert list(example[features.HISTORY_ITEM_IDS].bytes_list.value) == [b"a", b""]
    assert list(example[features.HISTORY_CATEGORIES].bytes_list.value) == [b"x", b"", b"", b""]
    assert list(example[features.HISTORY_BRANDS].bytes_list.value) == [b"A", b""]
    assert list(example[features.ITEM_CATEGORIES].bytes_list.value) == [b"x", b"y"]
    numbers = {name: example[name].int64_list.value[0] for name in example if example[name].int64_list.value}
    assert numbers == {
        features.HISTORY_LENGTH: 1,
        features.ITEM_TRAIN_COUNT: 0,
        features.IS_TAIL: 1,
        features.USER_TRAIN_COUNT: 2,
        features.POSITION: 2,
        features.IS_COLD: 1,
        features.LABEL: 1,
    }


@pytest.mark.parametrize("times", [range(100), [0] * 50 + list(range(1, 51)), range(0, 10**12, 10**10)])
def test_date_cuts_leave_the_configured_fractions_behind_them(times):
    config = configure(split={"strategy": "global_date", "valid_fraction": 0.2, "test_fraction": 0.1})
    times = list(times)
    first, width = min(times), rows.bin_width(min(times), max(times))
    bins = collections.Counter((time - first) // width for time in times)
    valid_from, test_from = rows.date_cuts(bins, first, width, config)
    assert sum(time < valid_from for time in times) == 70
    assert sum(time < test_from for time in times) == 90


def test_a_cut_never_leaves_the_test_split_empty():
    config = configure(split={"strategy": "global_date"})
    assert rows.date_cuts({0: 1, 5: 99}, 1000, 10, config) == (1050, 1050)


def train_side_of(chosen):
    """Train rows and catalogue of a market: all that training may see."""
    config, plan = configure(), SplitPlan()
    catalog = [f"i{n:02}" for n in range(market.ITEMS)]
    timelines = {
        user: rows.make_timeline([event(item, n) for n, item in enumerate(items)], config, plan)
        for user, items in chosen.items()
    }
    made = [row for user, t in timelines.items() for row in rows.make_rows(user, t, catalog, config, plan)]
    counts = collections.Counter(item for t in timelines.values() for item in rows.train_positives(t))
    items = rows.with_popularity([Item(item_id=item_id) for item_id in catalog], counts, config.tail.fraction)
    return [row for row in made if row.split == "train"], items


def test_training_does_not_depend_on_what_users_choose_later():
    chosen = market.interactions()
    assert train_side_of(chosen) == train_side_of(market.with_other_future(chosen))


@pytest.mark.parametrize(
    ("function", "leaky"),
    [
        ("items_known_in_training", rows.items_known),
        ("train_positives", lambda timeline: [e.item_id for e in timeline.events]),
    ],
)
def test_a_planted_leak_is_caught_by_that_comparison(monkeypatch, function, leaky):
    monkeypatch.setattr(rows, function, leaky)
    chosen = market.interactions()
    assert train_side_of(chosen) != train_side_of(market.with_other_future(chosen))


def test_events_within_a_millisecond_keep_their_order_and_are_no_repetitions():
    events = [event("b", 7)._replace(nanoseconds=2), event("a", 7)._replace(nanoseconds=1)]
    events.append(event("a", 7)._replace(nanoseconds=3))
    ordered, surplus = rows.without_duplicates(events)
    assert [(e.item_id, e.nanoseconds) for e in ordered] == [("a", 1), ("b", 2), ("a", 3)]
    assert surplus == []


DAY = 86_400_000
WINDOW = {"split": {"strategy": "global_date"}, "window": {"days": 5, "until": "1970-01-11"}}


def window_plan(config):
    start, valid_from, test_from, _ = config.window.bounds
    return SplitPlan(valid_from=valid_from, test_from=test_from, window_start=start)


def test_a_window_takes_rows_of_its_days_and_histories_of_all():
    config = configure(**WINDOW)
    made = rows_of([event(f"i{n}", n * DAY) for n in range(10)], config, window_plan(config))

    assert positives_by_split(made) == {"train": ["i5", "i6", "i7"], "valid": ["i8"], "test": ["i9"]}
    first = made[0]
    assert (first.item_id, first.history_length) == ("i5", 5)
    assert first.history == ("i4", "i3", "i2", "i1", "i0")
    assert first.user_train_count == 3


def test_a_window_that_moves_on_leaves_the_rows_that_stay_as_they_are():
    def by_item(until):
        config = configure(**{**WINDOW, "window": {"days": 5, "until": until}})
        made = rows_of([event(f"i{n}", n * DAY) for n in range(10)], config, window_plan(config))
        return {row.item_id: row for row in made if row.label and row.split == "train"}

    one, next_day = by_item("1970-01-10"), by_item("1970-01-11")
    both = one.keys() & next_day.keys()
    assert both == {"i5", "i6"}
    for item in both:
        assert one[item].history == next_day[item].history
        assert one[item].history_length == next_day[item].history_length


def test_the_positives_that_a_window_leaves_out_of_every_train_row_and_history_are_named():
    config = configure(**WINDOW, sizes={"history": 2})
    items = ["a", "b", "c", "a", "d", "e", "f", "g", "late", "later"]
    events = [event(item, n * DAY) for n, item in enumerate(items)]
    events.append(event("disliked", 0, kind=LOW_RATED))
    timeline = rows.make_timeline(sorted(events, key=lambda e: e.timestamp), config, window_plan(config))
    assert rows.earlier_positives(timeline, config) == ["a", "b", "c"]
    # Without a train row there is no scoring context.
    idle = rows.make_timeline([event(f"i{n}", n * DAY) for n in (0, 1, 2, 8, 9)], config, window_plan(config))
    assert rows.earlier_positives(idle, config) == []


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("history", [1, 3])
def test_train_rows_their_histories_and_earlier_positives_name_all_positives_before_the_end_of_training(
    window, history
):
    settings = {**WINDOW} if window else {"split": {"strategy": "leave_last_two"}}
    config = configure(**settings, sizes={"history": history})
    plan = window_plan(config) if window else SplitPlan()
    timeline = rows.make_timeline([event(f"i{n}", n * DAY) for n in range(10)], config, plan)
    made = [row for row in rows.make_rows("u", timeline, CATALOG, config, plan) if row.split == "train" and row.label]
    named = {item for row in made for item in (row.item_id, *row.history)}
    earlier = rows.earlier_positives(timeline, config)
    assert bool(earlier) == window
    assert named.isdisjoint(earlier)
    assert named | set(earlier) == {f"i{n}" for n in range(8)}

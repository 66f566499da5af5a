import re

import pytest

from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import FILE_NAME, DataReport, read_report
from sllmr.components.interactions_example_gen.report import (
    EXAMPLES_PER_REASON,
    Tally,
    build_report,
    check_report,
    tally_user,
)
from sllmr.components.interactions_example_gen.rows import Event, Row, SplitPlan, make_timeline
from sllmr.components.interactions_example_gen.tables import POSITIVE, BadRow, DataError, UnreadColumns


def report_with(table=None, items=None, **values):
    """A report of 100 rows in both tables and of splits with both labels, with these changes."""
    report = built(Tally()).model_dump()
    for name, changes in (("interactions", table), ("items", items)):
        report[f"{name}_table"] |= {"read": 100, **(changes or {})}
    for split in report["splits"].values():
        split |= {"rows": 10, "positives": 5}
    for name, changes in values.items():
        (report if name in report else report["splits"])[name] |= changes
    return DataReport.model_validate(report)


def dropped(reason, count):
    return {"dropped": {reason: count}, "examples": {reason: ["a.csv:7: the rule, got 'x'"]}}


def configure(**settings):
    return DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", **settings})


def tally_of(rows):
    tally = Tally()
    for row in rows:
        tally.add_row(row, is_tail=False, in_train=True)
        tally.see(row.split, row.history_length)
    return tally


def row(split, user, item, label=0):
    return Row(split, user, (), len(item), 0, False, item, label)


def test_a_malformed_row_fails_the_run_and_is_shown():
    with pytest.raises(
        DataError, match=r"(?s)no malformed row, got 2; the first:\n  a.csv:7: the rule.*on_bad_row: drop"
    ):
        check_report(report_with(dropped("bad_timestamp", 2)), configure())


def test_a_malformed_row_may_be_dropped_when_asked_for():
    check_report(report_with(dropped("bad_timestamp", 2)), configure(on_bad_row="drop"))


def test_unknown_items_are_dropped_up_to_the_configured_fraction():
    check_report(report_with(dropped("unknown_item", 5)), configure())
    with pytest.raises(DataError, match=r"at most 5.0% of the rows of data.interactions may be dropped.*got 6 of 100"):
        check_report(report_with(dropped("unknown_item", 6)), configure())
    check_report(report_with(dropped("unknown_item", 6)), configure(max_dropped_fraction=0.06))


def test_an_empty_table_fails_the_run():
    with pytest.raises(DataError, match=r"data.interactions must hold rows, got none in a.csv"):
        check_report(report_with({"read": 0}), configure())


@pytest.mark.parametrize("split", [{"rows": 0, "positives": 0}, {"rows": 5, "positives": 5}])
def test_a_split_without_both_labels_fails_the_run(split):
    with pytest.raises(DataError, match="split test must hold positives and negatives"):
        check_report(report_with(test=split), configure())


def test_tallies_merge_to_the_same_sum_in_any_order():
    rows = [row("test", f"u{n % 3}", f"i{n}", n % 2) for n in range(9)]
    whole = tally_of(rows)
    merged = Tally().merge(tally_of(rows[6:])).merge(tally_of(rows[:2])).merge(tally_of(rows[2:6]))
    assert merged == whole
    assert whole.counts["test.rows"] == 9
    assert whole.counts["test.positives"] == 4


@pytest.mark.parametrize("changed", [row("valid", "u1", "a"), row("test", "u2", "a"), row("test", "u1", "b")])
def test_the_hash_of_the_evaluation_negatives_notices_a_change(changed):
    assert tally_of([changed]).negatives_sum != tally_of([row("test", "u1", "a")]).negatives_sum


def test_the_hash_is_of_evaluation_negatives_only():
    assert tally_of([row("train", "u1", "a"), row("test", "u1", "a", label=1)]).negatives_sum == 0


def test_the_first_dropped_rows_are_kept_as_examples():
    tally = Tally()
    for number in (9, 3, 7, 1, 8, 2, 6):
        tally.drop("items", BadRow("a.csv", number, "empty_id", "rule"))
    assert tally.dropped_counts("items") == {"empty_id": 7}
    assert [bad.row for bad in tally.dropped["items.empty_id"]] == sorted([9, 3, 7, 1, 8, 2, 6])[:EXAMPLES_PER_REASON]


def test_the_items_are_judged_before_the_interactions():
    with pytest.raises(DataError, match=r"data.items must hold rows, got none in b.csv"):
        check_report(report_with(dropped("unknown_item", 100), items={"read": 0}), configure())


def test_a_problem_of_a_whole_table_ends_the_run():
    with pytest.raises(DataError, match="the items are odd"):
        check_report(report_with(problems={"items": "the items are odd"}), configure())


def test_user_ids_of_two_forms_are_refused():
    with pytest.raises(DataError, match=r"got 3 rows with \.0 behind an integer and 40 without"):
        check_report(report_with(user_ids={"as_floats": 3, "as_integers": 40}), configure())
    check_report(report_with(user_ids={"as_floats": 43, "as_integers": 0}), configure())


def test_the_report_survives_its_file(tmp_path):
    report = built(rated(unsold=94))
    (tmp_path / FILE_NAME).write_text(report.model_dump_json())
    assert read_report(tmp_path) == report


def timeline(*item_ids):
    events = [Event(item_id, n, 0.0, POSITIVE, "a.csv", n) for n, item_id in enumerate(item_ids)]
    return make_timeline(events, configure(), SplitPlan())


def built(tally, plan=None, **settings):
    return build_report(tally, [], configure(**settings), plan or SplitPlan())


def test_items_that_a_user_had_before_are_counted_among_the_test_positives():
    tally = Tally()
    for items in (("a", "b", "c", "a"), ("a", "b", "c", "d"), ("a", "a", "b", "b"), ("a", "b", "b", "c")):
        tally.merge(tally_user(timeline(*items), [], SplitPlan()))
    assert built(tally).splits["test"].repeated_positives == 2
    assert built(tally).splits["valid"].repeated_positives == 1


def rated(repeated=0, unseen=0, unsold=0):
    """100 test positives and 100 test negatives, so many of them as named."""
    tally = Tally()
    for n in range(100):
        tally.add_row(row("test", f"u{n}", "a", 1), is_tail=False, in_train=n >= unseen)
        tally.add_row(row("test", f"u{n}", "b", 0), is_tail=False, in_train=n >= unsold)
    tally.counts["test.repeated_positives"] = repeated
    return tally


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"unsold": 94}, "94% of the test negatives are items without a train positive"),
        ({"repeated": 62}, "62% of the test positives are items that the user had before.*alone has an AUC of 0.81"),
        ({"unseen": 30}, "30% of the test positives are items without a train positive"),
    ],
)
def test_what_changes_results_is_said(counts, sentence):
    (notice,) = built(rated(**counts)).notices
    assert re.search(sentence, notice)


def users_of(*interactions):
    tally = rated()
    for count in interactions:
        user = Tally()
        user.see_user(count)
        tally.merge(user)
    return tally


def test_a_user_who_may_stand_for_many_is_named_without_the_id():
    (notice,) = built(users_of(20, *[5] * 20)).notices
    assert "one user_id has 17% of all interactions" in notice
    assert built(users_of(10, *[5] * 30)).notices == []
    assert built(users_of(5, 5, 5)).notices == []


def test_interactions_in_the_future_are_counted():
    tally = rated()
    tally.counts["interactions.in_the_future"] = 2
    tally.see("future", 4_039_372_800_000)
    (notice,) = built(tally).notices
    assert "2 interactions lie in the future, the last on 2098-01-01" in notice


def test_the_fraction_of_repeats_among_the_test_positives_is_always_said():
    lines = built(rated(repeated=3)).lines()
    assert "repeats: 3 of 100 test positives (3.0%) are items that the user had before" in lines
    tally = rated()
    tally.counts["left_out.repeats"] = 7
    lines = built(tally, repeats="first_only").lines()
    assert "repeats: 7 positives of items that the user had before left out (data.repeats: first_only)" in lines


def test_what_changes_little_is_only_counted():
    report = built(rated(unsold=10, repeated=5, unseen=10))
    assert report.notices == []
    assert report.splits["test"].negatives_not_in_train == 10
    assert report.splits["test"].positives_not_in_train == 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "all interactions"),
        ({"min_rating": 4}, "interactions rated 4 or more"),
        ({"columns": {"event_type": "event"}, "positive_event_types": ["buy"]}, "interactions of type buy"),
        (
            {"columns": {"event_type": "event", "weight": "w"}, "events": {"view": 0, "cart": 0.5, "buy": 1}},
            "interactions of type cart (0.5), buy (1), weighted by the number in training and with w above 0, which"
            " weighs them in training",
        ),
        ({"columns": {"label": "click"}}, "interactions labeled 1"),
    ],
)
def test_the_report_says_what_a_positive_is_and_when_the_splits_were(settings, words):
    tally = rated()
    tally.see("test", 1_709_280_000_000)
    unread = [UnreadColumns("interactions", ("price", "shop"), ())]
    report = build_report(tally, [], configure(**settings), SplitPlan(), unread)
    assert report.lines() == [
        f"positives: {words}",
        "test 2024-03-01 to 2024-03-01",
        "repeats: 0 of 100 test positives (0.0%) are items that the user had before",
        "not read of data.interactions: price, shop",
    ]

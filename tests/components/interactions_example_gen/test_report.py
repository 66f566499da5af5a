import copy

import pytest

from components.interactions_example_gen.config import DataConfig
from components.interactions_example_gen.report import EXAMPLES_PER_REASON, Tally, check_report
from components.interactions_example_gen.rows import Row
from components.interactions_example_gen.tables import BadRow, DataError

TABLE = {"read": 100, "dropped": {}, "examples": {}}
SPLIT = {"rows": 10, "positives": 5}
REPORT = {
    "interactions_table": TABLE,
    "items_table": TABLE,
    "splits": {"train": SPLIT, "valid": SPLIT, "test": SPLIT},
}


def report_with(table=None, **values):
    result = copy.deepcopy(REPORT)
    if table:
        result["interactions_table"].update(table)
    result["splits"].update(values)
    return result


def dropped(reason, count):
    return {"dropped": {reason: count}, "examples": {reason: ["a.csv:7: the rule, got 'x'"]}}


def configure(**settings):
    return DataConfig.model_validate({"interactions": "a.csv", "items": "b.csv", **settings})


def tally_of(rows):
    tally = Tally()
    for row in rows:
        tally.add_row(row, is_tail=False)
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

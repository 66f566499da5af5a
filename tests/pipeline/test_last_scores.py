"""Which score table LlmScorer brings up to date: never one that was made of later rows than today's."""

import pytest
from tfx.types import standard_artifacts

from sllmr.components.artifacts import LlmScores
from sllmr.components.examples import TRAIN_UNTIL
from sllmr.components.interactions_example_gen.config import iso_to_milliseconds
from sllmr.components.llm_scorer.executor import EXAMPLES_ID
from sllmr.pipeline.last_scores import EXAMPLES, LAST, LastScoresStrategy


@pytest.fixture
def resolved():
    """Ids of the tables that a run takes; tables are given as id: (id of the rows, last day of the train rows)."""

    def resolve(rows_id: int, day: int, tables: dict[int, tuple[int | None, int | None]]) -> list[int]:
        rows = standard_artifacts.Examples()
        rows.id = rows_id
        rows.set_int_custom_property(TRAIN_UNTIL, iso_to_milliseconds(date(day)))
        given = []
        for number, (examples, until) in tables.items():
            table = LlmScores()
            table.id = number
            if examples is not None:
                table.set_int_custom_property(EXAMPLES_ID, examples)
            if until is not None:
                table.set_int_custom_property(TRAIN_UNTIL, iso_to_milliseconds(date(until)))
            given.insert(0, table)
        inputs = {EXAMPLES: [rows], LAST: given}
        return [t.id for t in LastScoresStrategy().resolve_artifacts(None, inputs)[LAST]]

    return resolve


def date(day: int) -> str:
    return f"2024-03-{day:02}"


def test_a_first_run_has_none(resolved):
    assert resolved(1, 1, {}) == []


def test_each_day_takes_the_table_of_the_day_before_and_a_rerun_takes_the_same(resolved):
    assert resolved(3, 3, {10: (1, 1), 20: (2, 2)}) == [20]
    assert resolved(3, 3, {10: (1, 1), 20: (2, 2), 30: (3, 3)}) == [20]
    assert resolved(1, 1, {10: (1, 1)}) == []
    assert resolved(1, 1, {10: (1, 1), 20: (2, 2)}) == []
    assert resolved(1, 5, {10: (1, 5), 20: (2, 5)}) == []  # the rows of a later run, of the same days


def test_a_day_that_is_repeated_takes_no_table_of_later_rows(resolved):
    """The rows of the repeated day are the newest, and the tables of days 4 and 5 know of what they hold out."""
    tables = {10: (1, 2), 20: (2, 4), 30: (3, 5)}
    assert resolved(4, 3, tables) == [10]
    assert resolved(4, 1, tables) == []


def test_after_a_day_was_repeated_the_schedule_goes_on_from_its_latest_day(resolved):
    assert resolved(5, 6, {10: (1, 2), 20: (2, 4), 30: (3, 5), 40: (4, 3)}) == [30]


def test_the_newest_of_the_tables_of_the_same_days_is_taken(resolved):
    assert resolved(3, 3, {10: (1, 2), 20: (1, 2)}) == [20]


def test_a_table_that_item_vectors_scored_beside_the_llms_is_not_brought_up_to_date(resolved):
    assert resolved(3, 3, {10: (1, 1), 20: (2, 2), 21: (None, None)}) == [20]
    assert resolved(3, 3, {21: (None, None)}) == []


def test_a_table_of_an_earlier_version_which_does_not_say_when_its_rows_end_is_not_taken(resolved):
    assert resolved(3, 3, {10: (1, 1), 20: (2, None)}) == [10]

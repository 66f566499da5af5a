"""Which score table LlmScorer brings up to date."""

from tfx.types import standard_artifacts

from sllmr.components.artifacts import LlmScores
from sllmr.components.llm_scorer.executor import EXAMPLES_ID
from sllmr.pipeline.last_scores import EXAMPLES, LAST, LastScoresStrategy


def resolved(current: int, made_of: dict[int, int | None]) -> list[int]:
    rows = standard_artifacts.Examples()
    rows.id = current
    tables = []
    for number, examples in made_of.items():
        table = LlmScores()
        table.id = number
        if examples is not None:
            table.set_int_custom_property(EXAMPLES_ID, examples)
        tables.insert(0, table)
    return [t.id for t in LastScoresStrategy().resolve_artifacts(None, {EXAMPLES: [rows], LAST: tables})[LAST]]


def test_a_first_run_has_none():
    assert resolved(1, {}) == []


def test_the_last_table_of_other_rows_is_found_so_that_a_rerun_finds_what_the_run_before_it_found():
    assert resolved(3, {10: 1, 20: 2}) == [20]
    assert resolved(3, {10: 1, 20: 2, 30: 3}) == [20]
    assert resolved(1, {10: 1}) == []


def test_a_table_that_item_vectors_scored_beside_the_llms_is_not_brought_up_to_date():
    assert resolved(3, {10: 1, 20: 2, 21: None}) == [20]
    assert resolved(3, {21: None}) == []

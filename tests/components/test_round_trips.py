"""What is written and read again is the same, whatever it holds."""

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from sllmr.components.catalog import Item, read_catalog, write_catalog
from sllmr.components.scores import ROLES, ScoreRecord

QUICK = settings(max_examples=40, deadline=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOAT32 = st.floats(0, 1, width=32)
ITEMS = st.builds(
    Item, categories=st.lists(TEXT, max_size=3).map(tuple), title=TEXT, brand=TEXT, text=TEXT, item_id=TEXT
)


@QUICK
@given(st.lists(ITEMS, unique_by=lambda item: item.item_id, max_size=5))
def test_a_catalog_is_read_as_it_was_written_and_in_its_order(items):
    with tempfile.TemporaryDirectory() as directory:
        write_catalog(directory, items)
        assert list(read_catalog(directory).values()) == items


@QUICK
@given(
    st.lists(st.tuples(TEXT, FLOAT32, st.floats(width=32, allow_nan=False), st.sampled_from(ROLES)), max_size=5),
    st.lists(TEXT, max_size=4).map(tuple),
    st.integers(0, 2**63 - 1),
    TEXT,
)
def test_a_score_record_is_parsed_as_it_was_serialized(candidates, history, scored_at, text):
    item_ids, llm_scores, raw_scores, roles = zip(*candidates, strict=True) if candidates else ((), (), (), ())
    record = ScoreRecord(
        context_id=text,
        history_item_ids=history,
        history_length=len(history),
        item_ids=item_ids,
        llm_scores=llm_scores,
        raw_scores=raw_scores,
        roles=roles,
        model=text,
        strategy="listwise",
        prompt_version=text[::-1],
        scored_at=scored_at,
    )
    assert ScoreRecord.parse(record.serialize()) == record

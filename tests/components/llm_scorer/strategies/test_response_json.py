import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmr.components.llm_scorer.strategies.response_json import Scores, is_wrapped, read_scores

ENTRIES = [{"item": 1, "score": 0.5}, {"item": 2, "score": 0}]
OBJECT = json.dumps({"scores": ENTRIES})
LIST = json.dumps(ENTRIES)

entries = st.lists(
    st.fixed_dictionaries({"item": st.integers(1, 99), "score": st.floats(0, 1)}), min_size=1, max_size=20
)
prose = st.text(st.characters(exclude_characters="{[<", codec="utf-8"), max_size=80)


def scores(content):
    return read_scores({"content": content})


def test_the_json_alone_is_not_wrapped():
    assert scores(f"\n{OBJECT} ") == Scores(entries=ENTRIES, wrapped=False)


@pytest.mark.parametrize(
    "content",
    [
        f"```json\n{OBJECT}\n```",
        f"```\n{LIST}\n```",
        f"Here you go:\n```json\n{OBJECT}\n```\nAsk me if you need more [1].",
        f"<think>Maybe {LIST}? Or {{'x'</think>{OBJECT}",
        f'I would say {{"scores": []}} first.</think>\n\n{OBJECT}',
        f"<thinking>hm</thinking>```json\n{OBJECT}```",
        f"\ufeff{OBJECT}",
        f"Based on the history [see above] {{sic}}: {OBJECT} Hope this helps!",
        f"<|channel|>final<|message|>{OBJECT}",
        LIST,
        [{"type": "text", "text": OBJECT[:9]}, {"type": "text", "text": OBJECT[9:]}],
        [{"type": "thinking", "thinking": "{"}, {"type": "text", "text": OBJECT}],
        json.dumps({"scores": ENTRIES}, indent=2) + "\n\nDone.",
    ],
)
def test_one_wrapped_value_is_read_and_counted(content):
    assert scores(content) == Scores(entries=ENTRIES, wrapped=True)
    assert is_wrapped({"choices": [{"message": {"content": content}}]})


@pytest.mark.parametrize(
    "content",
    [
        None,
        7,
        "",
        "I cannot do that.",
        f"{OBJECT}\n{OBJECT}",
        f"```json\n{OBJECT}\n```\nor rather\n```json\n{LIST}\n```",
        f'{{"note": "first"}} {OBJECT}',
        f"<think>I am still thinking: {OBJECT}",
        f"{OBJECT}</think>",
        f"Sure: {OBJECT[:-1]}",
        f'Sure: {{"result": {OBJECT}',
        f"Sure: {LIST[:-1]}",
        OBJECT.replace('"score": 0.5', '"score": 0.5, "score": 0.9'),
        OBJECT[:-1] + ', "scores": []}',
        "[0.1, 0.2]",
        "[]",
        "{'scores': [{'item': 1, 'score': 0.5}]}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[1," * 300_000,
        "{" * 900_000,
        "x" * 1_000_001 + OBJECT,
        '{"scores": [{"item": 1, "score": ' + "9" * 5000 + "}]}",
        [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": OBJECT}],
        [OBJECT],
    ],
    ids=lambda content: ascii(content)[:40],
)
def test_anything_else_is_refused(content):
    assert scores(content) is None


@given(entries, prose, prose, st.sampled_from([None, 2]), st.booleans())
def test_prose_around_one_value_changes_no_entry(listed, before, after, indent, bare):
    value = json.dumps(listed if bare else {"scores": listed}, indent=indent)
    found = scores(before + value + after)
    assert found is not None
    assert found.entries == listed


@given(entries, entries, prose)
@pytest.mark.slow
def test_two_values_are_never_read(one, other, between):
    assert scores(json.dumps({"scores": one}) + between + json.dumps({"scores": other})) is None


@given(st.one_of(st.text(), st.recursive(st.none() | st.text() | st.floats(), st.lists)))
@pytest.mark.slow
def test_no_content_raises(content):
    assert scores(content) is None


@given(entries, st.data())
def test_a_cut_value_is_never_read(listed, data):
    text = json.dumps({"scores": listed})
    assert scores(text[: data.draw(st.integers(0, len(text) - 1))]) is None

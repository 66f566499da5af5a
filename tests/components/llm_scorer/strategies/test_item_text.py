import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.llm_scorer.strategies.item_text import MAX_CHARACTERS, MAX_TEXT_CHARACTERS, describe
from tests.components.llm_scorer.market import context, market_items

MARKS = ["<|im_start|>", "<|eot_id|>", "<｜User｜>", "[INST]", "[/INST]", "<<SYS>>", "<s>", "</s>", "<start_of_turn>"]
MARKS += ["<end_of_turn>", "</think>", "<eos>", "[SYSTEM_PROMPT]", "[TOOL_CALLS]", "### Instruction", "```"]


def test_title_brand_categories_and_text_are_told_on_one_line():
    item = Item(item_id="i", title="Rose\noil", brand="Melvita", categories=("Oils", "Face"), text="For dry\r\nskin")
    assert describe(item) == "Rose oil by Melvita: Oils, Face. For dry skin"
    assert describe(Item(item_id="i", title="Melvita rose oil", brand="melvita")) == "Melvita rose oil"
    assert describe(Item(item_id="i", title="I <3 NY [Blu-ray] #1, a > b")) == "I <3 NY [Blu-ray] #1, a > b"


@pytest.mark.parametrize("name", ["listwise", "yes_no", "title_likelihood"])
def test_the_text_of_history_and_candidates_reaches_the_prompt_of_every_strategy(name):
    catalog = {i: dataclasses.replace(item, brand="", text=f"text of {i}!") for i, item in market_items().items()}
    config = LlmConfig(model="m", base_url="http://host/v1", strategy=name).resolve()
    prompts = json.dumps([r.body for r in create_strategy(config).requests(context(), catalog)])
    assert all(f"text of {i}!" in prompts for i in ("i1", "i2", "i20", "i21", "i22"))


def test_both_parts_are_bounded():
    item = Item(item_id="i", title="t" * 10_000, brand="b" * 10_000, text="x" * 10_000)
    assert describe(item) == "t" * MAX_CHARACTERS + ". " + "x" * MAX_TEXT_CHARACTERS


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("hidden", ["{}", "{}{}", "<{}>", "\u202e{}\u200b"])
def test_no_mark_of_a_chat_template_survives(mark, hidden):
    text = hidden.replace("{}", mark)
    broken = "\u200b".join(mark)
    told = describe(Item(item_id="i", title=f"Heat {text}", brand=broken, categories=(mark.lower(),), text=text))
    assert all(known.casefold() not in told.casefold() for known in MARKS)
    assert told.startswith("Heat ")


@pytest.mark.slow
@given(st.text(), st.lists(st.sampled_from(["<", "|", ">", "[", "]", "/", "INST", "s", "\u200b", "\n", *MARKS])))
def test_whatever_a_title_holds_it_stays_one_printable_line_without_marks(text, pieces):
    told = describe(Item(item_id="i", title="".join(pieces) + text, text="".join(pieces)))
    assert len(told.splitlines()) <= 1
    assert "<|" not in told
    assert "[INST]" not in told.upper()
    assert "<s>" not in told
    assert "\x00" not in told


def test_a_joined_emoji_stays_whole():
    assert describe(Item(item_id="i", title="Mug \U0001f469\u200d\U0001f52c")) == "Mug \U0001f469\u200d\U0001f52c"

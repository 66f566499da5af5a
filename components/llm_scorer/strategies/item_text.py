"""The text of an item and the items of a history in a prompt.

Titles and texts come from whoever sells the items: nothing in them may look like a part of the chat template, end the
line that delimits the item, or fill the prompt.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from sllmr.components.catalog import Item, values_at
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.messages import Context
from sllmr.models.declared_features import Value

MAX_CHARACTERS = 160
"""Of title, brand and categories together."""

MAX_TEXT_CHARACTERS = 200
"""Of `item_columns.text`, which follows them."""

MAX_FEATURES_CHARACTERS = 200
"""Of the declared features of an item, or of the user."""

_TEMPLATE_TOKENS = re.compile(
    r"<[|｜]|[|｜]>"  # <|im_start|>, <｜User｜>
    r"|<{1,2}\s*/?\s*[A-Za-z_][\w:-]{0,40}\s*>{1,2}"  # <s>, <start_of_turn>, <think>, <<SYS>>
    r"|\[\s*/?\s*(?:INST|SYS|SYSTEM|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+|PREFIX|SUFFIX|MIDDLE|IMG[A-Z_]*|THINK|CLS|"
    r"SEP|MASK|PAD|UNK|BOS|EOS|USER|ASSISTANT)\s*\]"
    r"|#{2,}(?=\s*(?:instructions?|response|input|system|user|assistant|human)\b)"
    r"|```",
    re.IGNORECASE,
)
"""What chat templates, and prompts in their style, use as marks."""

# One for one, so that no replacement can put a new mark together.
_LOOKALIKES = str.maketrans("<>[]#`", "‹›()＃'")

_KEPT_FORMATS = "\u200c\u200d"  # joiners, without which Persian words and some emoji fall apart


def describe(item: Item, names: Sequence[str] = (), at: int = 0) -> str:
    """`title by brand: category, category (feature: value; feature: value). text` on one line, without the parts that
    the item lacks.

    Title, brand and categories are cut at MAX_CHARACTERS, the features at MAX_FEATURES_CHARACTERS, the text at
    MAX_TEXT_CHARACTERS. Control characters are left out, and marks of chat templates are replaced by characters that
    look alike.

    Args:
        item: one item.
        names: of the declared features to name.
        at: Unix milliseconds of the time at which the feature values must hold.
    """
    head = item.title
    if item.brand and item.brand.casefold() not in item.title.casefold():
        head += f" by {item.brand}"
    if item.categories:
        head += ": " + ", ".join(item.categories)
    head = _clean(head)[:MAX_CHARACTERS].rstrip()
    found = values_at(item.versions, at) if names else {}
    if told := [feature_text(name, _values(found[name])) for name in names if name in found]:
        head += f" ({_clean('; '.join(told))[:MAX_FEATURES_CHARACTERS].rstrip()})"
    text = _clean(item.text)[:MAX_TEXT_CHARACTERS].rstrip()
    return f"{head}. {text}" if text else head


def feature_text(name: str, values: Sequence[str | float]) -> str:
    """`name: value, value`, numbers as short as they can be written; empty without values."""
    texts = [value if isinstance(value, str) else f"{value:.6g}" for value in values]
    return f"{name.replace('_', ' ')}: {', '.join(texts)}" if texts else ""


def _values(value: Value) -> Sequence[str | float]:
    return value if isinstance(value, tuple) else (value,)


def history_lines(context: Context, catalog: Mapping[str, Item], config: LlmConfig) -> str:
    """The items of told_history, one per line, followed by the user's features of llm.prompt_features.user."""
    names = config.prompt_features.item
    lines = [f"- {describe(item, names, context.timestamp)}" for item in told_history(context, catalog, config)]
    if context.about_user:
        lines += ["", f"About this person: {_clean('; '.join(context.about_user))[:MAX_FEATURES_CHARACTERS].rstrip()}"]
    return "\n".join(lines)


def _clean(text: str) -> str:
    """One line without control characters and marks of chat templates."""
    line = " ".join(text.split())
    if not line.isascii() or not line.isprintable():
        line = "".join(c for c in line if c in _KEPT_FORMATS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
        line = " ".join(line.split())
    return _TEMPLATE_TOKENS.sub(lambda match: match[0].translate(_LOOKALIKES), line)


def told_history(context: Context, catalog: Mapping[str, Item], config: LlmConfig) -> list[Item]:
    """The latest `history_items` items that have a title, latest first, without the `history_lag` newest of all."""
    past = context.history_item_ids[config.history_lag :]
    return [catalog[i] for i in past if i in catalog and catalog[i].title][: config.history_items]

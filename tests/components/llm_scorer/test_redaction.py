import pytest

from components.llm_scorer.redaction import redact, redact_secret

KEY = "k3y-Zq81-Wm42-Lp97-Xt65"


@pytest.mark.parametrize(
    "text", [f"Incorrect key: {KEY}.", f"{KEY[:12]}***", f"***{KEY[-9:]}", f"{KEY}{KEY}", f"x{KEY[3:15]}y"]
)
def test_no_eight_characters_of_the_key_remain(text):
    redacted = redact(text, KEY)
    assert not any(KEY[i : i + 8] in redacted for i in range(len(KEY) - 7))
    assert "[redacted]" in redacted


def test_what_surrounds_the_key_remains():
    assert redact_secret(f"before {KEY} after", KEY) == "before [redacted] after"


def test_bearer_tokens_are_redacted_even_where_they_are_not_the_key():
    assert "other" not in redact("Authorization: Bearer other-token", KEY)


def test_text_without_the_key_is_left_alone():
    assert redact_secret('{"scores": [1, 2]}', KEY) == '{"scores": [1, 2]}'
    assert redact_secret("anything", "") == "anything"

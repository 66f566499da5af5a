import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmr.components.llm_scorer.endpoint.redaction import redact, redact_secret

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


WORDS = st.text(st.characters(codec="ascii", exclude_characters="redacted[]"), max_size=30)
SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="redacted[]"), min_size=8)


@settings(max_examples=100, deadline=None)
@given(SECRETS, st.lists(WORDS, min_size=1, max_size=4), st.data())
def test_no_eight_characters_of_any_secret_survive_wherever_it_stands(secret, words, data):
    begin = data.draw(st.integers(0, len(secret) - 8))
    text = data.draw(st.sampled_from([secret, secret[begin:], secret + secret, secret[: begin + 8]])).join(words)
    redacted = redact(text, secret)

    assert not any(secret[i : i + 8] in redacted for i in range(len(secret) - 7))
    if len(words) > 1:
        assert "[redacted]" in redacted


@settings(max_examples=100, deadline=None)
@given(SECRETS, WORDS)
def test_text_that_holds_no_eight_characters_of_the_secret_is_left_alone(secret, text):
    if not any(secret[i : i + 8] in text for i in range(len(secret) - 7)):
        assert redact_secret(text, secret) == text


def test_a_short_key_is_struck_out_of_messages_and_not_out_of_responses():
    response = '{"usage": {"prompt_tokens": 5}}'
    assert redact_secret(response, "token") == response
    assert redact("refused token", "token") == "refused [redacted]"

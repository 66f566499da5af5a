"""Keeps the API key out of everything that is written, also where a server echoes it."""

import re

MARK = "[redacted]"
_WINDOW = 8
_CREDENTIAL = re.compile(r"(?i)\b(?:bearer\s+[^\s\"',;}]+|sk-[A-Za-z0-9_-]{8,})")


def redact(text: str, secret: str) -> str:
    """`text` without the secret, any eight characters in a row of it, and anything that looks like a bearer
    token.

    Args:
        secret: empty where there is none; one shorter than eight characters is only replaced as a whole.
    """
    if 0 < len(secret) < _WINDOW:
        text = text.replace(secret, MARK)
    return _CREDENTIAL.sub(MARK, redact_secret(text, secret))


def redact_secret(text: str, secret: str) -> str:
    """`text` without the secret and any eight characters in a row of it; nothing else is touched.

    A secret shorter than eight characters stays: a placeholder like `token` is part of ordinary words, and struck out
    it would destroy responses.
    """
    if len(secret) < _WINDOW:
        return text
    windows = {secret[i : i + _WINDOW] for i in range(len(secret) - _WINDOW + 1)}
    if not any(window in text for window in windows):
        return text
    kept: list[str] = []
    position = 0
    while position < len(text):
        end = position
        while text[end : end + _WINDOW] in windows:
            end += 1
        if end == position:
            kept.append(text[position])
            position += 1
        else:
            kept.append(MARK)
            position = end - 1 + _WINDOW
    return "".join(kept)

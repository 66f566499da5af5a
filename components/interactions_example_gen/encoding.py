"""Guesses the encoding of a text that is not in the configured one."""

import unicodedata

_ONE_BYTE = ("windows-1252", "windows-1250", "windows-1251", "windows-1253", "windows-1254", "iso-8859-2", "koi8-r")
_TWO_BYTES = ("shift_jis", "gb18030", "big5", "euc_jp", "euc_kr")
_MARKS = frozenset("‘’‚“”„–—…•€£§©®°´·«»¿¡¢¥ªº²³½¼¾×™ \xa0")
"""What stands in names beside letters."""

MAX_READINGS = 4
"""How many readings an error shows."""


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, as Python names it, from the first bytes of a table; None if it is neither."""
    for mark, name in ((b"\xff\xfe\x00\x00", "utf-32"), (b"\x00\x00\xfe\xff", "utf-32")):
        if head.startswith(mark):
            return name
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for name, zeros in (("utf-32-le", b"\x00\x00\x00"), ("utf-16-le", b"\x00")):
        if len(head) > len(zeros) and head[0] and head[1:].startswith(zeros):
            return name
    for name, zeros in (("utf-32-be", b"\x00\x00\x00"), ("utf-16-be", b"\x00")):
        if len(head) > len(zeros) and head.startswith(zeros) and head[len(zeros)]:
            return name
    return None


def readings(content: bytes) -> dict[str, str]:
    """How bytes that are not UTF-8 read in other encodings, the likeliest first, at most MAX_READINGS.

    An encoding counts only if every byte above 127 becomes a letter or a mark that names hold. No rule can tell one
    language from another, but a person who sees the readings can.
    """
    found: dict[str, str] = {}
    for name in (*_TWO_BYTES, *_ONE_BYTE):
        try:
            text = content.decode(name)
        except UnicodeError:
            continue
        if text not in found.values() and all(_is_plausible(c) for c in text if ord(c) > 127):
            found[name] = text
    ranked = sorted(found, key=lambda name: _oddness(found[name]))
    return {name: found[name] for name in ranked[:MAX_READINGS]}


def _is_plausible(character: str) -> bool:
    return character in _MARKS or unicodedata.category(character) in ("Lu", "Ll", "Lo", "Lm", "Mn", "Po", "Ps", "Pe")


def _oddness(text: str) -> float:
    """How odd a text is as a name: the fraction of capitals after small letters, marks, rare letters, mixed scripts."""
    odd = sum(text[k].isupper() and text[k - 1].islower() for k in range(1, len(text)) if ord(text[k]) > 127)
    odd += sum(c in _MARKS or "\uff61" <= c <= "\uff9f" or "\ue000" <= c <= "\uf8ff" for c in text)
    scripts = {unicodedata.name(c, "?").split()[0] for c in text if c.isalpha()}
    return (odd + (len(scripts - {"LATIN"}) > 1)) / max(len(text), 1)


def repaired(text: str) -> str | None:
    """The original of a text that was written as UTF-8 and read as windows-1252 or latin-1; None if it was not."""
    if text.isascii():
        return None
    for name in ("windows-1252", "latin-1"):
        try:
            result = text.encode(name).decode()
        except UnicodeError:
            continue
        if len(result) < len(text) and any(c.isalpha() for c in result if ord(c) > 127):
            return result
    return None

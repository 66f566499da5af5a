"""Compares two results field by field and says in lines which differ."""

import html.parser
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

Fields = dict[str, Any]
"""Leaf values by path."""

NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
VOID = {"br", "link", "meta"}
DRAWN = {"svg", "style"}
"""Elements whose inside is no text of the page."""


def of_json(value: Any, path: str = "") -> Fields:
    """The leaves of parsed JSON: `metrics.cold.auc`, `epochs[0].seconds`. Empty lists and objects are leaves."""
    if isinstance(value, dict) and value:
        return {p: v for key, part in value.items() for p, v in of_json(part, f"{path}.{key}".lstrip(".")).items()}
    if isinstance(value, list) and value:
        return {p: v for n, part in enumerate(value) for p, v in of_json(part, f"{path}[{n}]").items()}
    return {path: value}


def of_page(page: str) -> Fields:
    """The texts of a page: `h2[1]`, `table[3] tr[2] td[4]` of the third table, `svg[2]` with the drawing's title.

    Numbers count within the enclosing element that has one: rows in their table, cells in their row, all else in the
    page. Of a drawing only the title counts; what it draws are numbers of the summary.
    """
    parser = _Texts()
    parser.feed(page)
    return {path: " ".join(text.split()) for path, text in parser.fields.items()}


def differences(expected: Fields, actual: Fields, tolerance: float, volatile: Iterable[re.Pattern[str]]) -> list[str]:
    """One line for each field that is missing, new or different, in the order of `expected`.

    Args:
        expected, actual: leaf values by path.
        tolerance: absolute, of numbers with a fraction, in texts as well; whole numbers must be equal.
        volatile: fields whose whole path matches one of these count as present or not, whatever their value.
    """
    patterns = tuple(volatile)
    lines = [f"{path}: missing, expected {expected[path]!r}" for path in expected.keys() - actual.keys()]
    lines += [f"{path}: new, got {actual[path]!r}" for path in actual.keys() - expected.keys()]
    for path in expected.keys() & actual.keys():
        if any(pattern.fullmatch(path) for pattern in patterns):
            continue
        if not _equal(expected[path], actual[path], tolerance):
            lines.append(f"{path}: expected {expected[path]!r}, got {actual[path]!r}")
    order = {path: n for n, path in enumerate(expected | actual)}
    return sorted(lines, key=lambda line: order[line.split(": ", 1)[0]])


def masked(fields: Mapping[str, Any], volatile: Iterable[re.Pattern[str]], digits: int) -> Fields:
    """The fields as a golden file holds them: without what varies, and rounded."""
    patterns = tuple(volatile)
    return {
        path: "varies"
        if any(pattern.fullmatch(path) for pattern in patterns)
        else round(value, digits)
        if isinstance(value, float)
        else value
        for path, value in fields.items()
    }


def _equal(expected: Any, actual: Any, tolerance: float) -> bool:
    if isinstance(expected, str) and isinstance(actual, str):
        mine, yours = NUMBER.findall(expected), NUMBER.findall(actual)
        same_words = NUMBER.sub("#", expected) == NUMBER.sub("#", actual)
        return same_words and all(map(_equal, map(_number, mine), map(_number, yours), [tolerance] * len(mine)))
    if isinstance(expected, float) or isinstance(actual, float):
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (expected, actual))
        return numbers and math.isclose(expected, actual, rel_tol=0, abs_tol=tolerance)
    return type(expected) is type(actual) and expected == actual


def _number(text: str) -> float | int:
    plain = text.replace(",", "")
    return float(plain) if "." in plain or "e" in plain else int(plain)


class _Texts(html.parser.HTMLParser):
    """Collects the texts of a page by numbered element."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: Fields = {}
        self._open: list[tuple[str, str]] = []
        self._numbers: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID or any(name in DRAWN for name, _ in self._open):
            if tag in DRAWN:
                self._open.append((tag, ""))
            elif tag == "br":
                self.handle_data(" ")
            return
        parent = next((path for name, path in reversed(self._open) if name in ("table", "tr")), "")
        place = f"{parent} {tag}".strip()
        self._numbers[place] = self._numbers.get(place, 0) + 1
        path = f"{place}[{self._numbers[place]}]"
        self._open.append((tag, path))
        if tag == "svg":
            self.fields[path] = dict(attrs).get("aria-label") or ""

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1][0] in DRAWN or not data.strip():
            return
        path = self._open[-1][1]
        self.fields[path] = self.fields.get(path, "") + data

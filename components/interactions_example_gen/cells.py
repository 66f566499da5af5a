"""Reads single cells: times, ids, titles, categories. A cell that breaks a rule raises RowError."""

import ast
import datetime
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from sllmr.components.interactions_example_gen.config import DEFAULT_LIST_SEPARATOR, DEFAULT_PATH_SEPARATOR, DataConfig

_NULLS = ("nan", "NaN", "NAN", "-nan", "None", "NONE", "NULL", "null", "Null", "\\N", "<NA>", "NaT", "NA", "N/A", "n/a")
NULL_LIKE = frozenset(_NULLS).union(("#N/A", "#NA", "undefined", "nil", "(null)", "<null>", "none", "NIL"))
"""What programs write for a missing value."""

LABELS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), False),
}
"""Cells of a label in lower case, and whether they are positives."""

NANOSECONDS = {"seconds": 10**9, "milliseconds": 10**6, "microseconds": 10**3, "nanoseconds": 1}
_FIRST_NUMBER = {"seconds": 31_536_000, "milliseconds": 788_918_400, "microseconds": 788_918_400}
_FIRST_NUMBER["nanoseconds"] = 788_918_400
"""Seconds since 1970 from which a number is taken for a time in that unit: 1971 for seconds, 1995 for the finer ones,
because .NET ticks and yyyymmddHHMM would pass for earlier ones."""
FIRST_YEAR, YEAR_LIMIT = 1971, 2100
_LAST_SECOND = 4_102_444_800  # 2100-01-01

_ISO_ZONE = re.compile(r"\s*(?:\[?(?:Etc/)?(?:UTC|GMT)\]?)$", re.IGNORECASE)
_ISO_FRACTION = re.compile(r"^(.*:\d\d)[.,](\d{1,9})\d*(.*)$")
_EXPONENT = re.compile(r"^[+-]?(\d+)(?:\.(\d*))?[eE]\+?(\d+)$")
_DIGITS = re.compile(r"^\d+$")


class RowError(Exception):
    """A rule that a row breaks; becomes a BadRow where file and row are known."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem


def text_of(value: Any) -> str:
    """The text of a cell; empty where it is missing."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def line_of(value: Any) -> str:
    """A cell as one line without surrounding blanks; empty where it is missing or null-like."""
    line = " ".join(text_of(value).split())
    return "" if line in NULL_LIKE else line


def is_null_like(value: Any) -> bool:
    """Whether a cell holds what a program writes for a missing value, rather than nothing."""
    return text_of(value).strip() in NULL_LIKE


def parse_id(value: Any, column: str) -> str:
    """A user or item id.

    Raises:
        RowError: empty, null-like, a list, several lines, or a number that has lost digits. The value is named only
            if it says nothing about a user.
    """
    if isinstance(value, (list, tuple, dict)):
        raise RowError("id_is_a_list", f"{column} must be one id, got a list; write one row for each of its items")
    text = text_of(value).strip()
    if not text:
        raise RowError("empty_id", f"{column} must not be empty; fill it in or remove the row")
    if text in NULL_LIKE:
        raise RowError("null_like_id", f"{column} must be an id, got {text!r}, a missing value; remove the row")
    if any(ord(c) < 32 or ord(c) == 127 or c in "\x85\u2028\u2029" for c in text):
        problem = f"{column} must be one line without control characters, got several lines or such a character"
        raise RowError("control_character_in_id", f"{problem}; check the quotes before this row, or clean the id")
    if text[0] == "[" and text[-1] == "]" and "," in text:
        raise RowError("id_is_a_list", f"{column} must be one id, got a list; write one row for each of its items")
    if re.fullmatch(r"\d\.\d+[eE]\+\d+", text):  # not 12e5, which may be a hash
        problem = f"{column} must be written in full, got a number with an exponent, which has lost digits"
        raise RowError("id_with_exponent", f"{problem}; export the column as text")
    return text


def canonical_id(item_id: str) -> str:
    """An id without what other programs change: `.0` of a float, zero padding, case, Unicode form, quotes, invisible
    characters, separators of thousands, and - for _.
    """
    text = _bare(unicodedata.normalize("NFKC", item_id)).casefold()
    text = re.sub(r"^\+?(\d{1,3})((?:,\d{3})+)(?=$|\.)", lambda m: m[1] + m[2].replace(",", ""), text)
    text = re.sub(r"^\+?(\d+)(?:\.0+)?$", r"\1", text).replace("_", "-")
    return text.lstrip("0") or "0"


def _bare(text: str) -> str:
    """Without quotes and invisible characters."""
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").strip()
    quoted = re.fullmatch(r"""=?b?(['"])(.*)\1""", text)
    return quoted[2] if quoted else text.lstrip("'")


def id_difference(got: str, known: str) -> str:
    """In words, how two ids of the same canonical_id differ."""
    for text, other in ((got, known), (known, got)):
        if re.fullmatch(r"\d+\.0+", text) and not re.search(r"\.0+$", other):
            return "the same id with .0, as pandas writes integers after a missing value; write both as integers"
    if got.lstrip("0") == known.lstrip("0"):
        return "the same id with other zero padding; write both as text of the same width"
    if _bare(got) != got or _bare(known) != known:
        return "the same id but for quotes or invisible characters; remove them"
    if not re.search(r"[_,+]", got + known) or got.casefold() == known.casefold():
        return "the same id but for letter case or Unicode form; write both the same way"
    return "the same id but for punctuation; write both the same way"


def parse_timestamp(value: Any, unit: str | None = None) -> int:
    """Nanoseconds since 1970 of a time.

    Args:
        value: a number, ISO 8601 text (UTC where it names no zone; ` UTC` and ` GMT` may follow), a date or a
            date-time.
        unit: of numbers; None finds it from the size: seconds from 1971, the finer units from 1995, up to 2099.

    Raises:
        ValueError: none of these; the message is what the value looks like and the fix.
    """
    if isinstance(value, datetime.date):  # a datetime is one, too
        return _moment(value.isoformat()) + getattr(value, "nanosecond", 0)
    if isinstance(value, bool):
        raise ValueError("name another column in data.columns.timestamp")
    text = text_of(value).strip()
    if text in NULL_LIKE or not text:
        raise ValueError("the time is missing; remove the row")
    exponent = _EXPONENT.match(text) if isinstance(value, str) else None
    if exponent and len(exponent[1] + (exponent[2] or "")) < min(int(exponent[3]) + 1, 10):
        raise ValueError("a number with an exponent has lost digits; export the column as text")
    try:
        nanoseconds_of_one = _scaled(value, text)
    except ValueError:
        return _iso(text)
    if unit is not None:
        result = nanoseconds_of_one(NANOSECONDS[unit])
        if not 0 <= result < _LAST_SECOND * 10**9:
            raise ValueError(f"it is no time before {YEAR_LIMIT} in {unit}; correct data.timestamp_unit")
        return result
    for name, factor in NANOSECONDS.items():
        result = nanoseconds_of_one(factor)
        if _FIRST_NUMBER[name] * 10**9 <= result < _LAST_SECOND * 10**9:
            return result
    raise ValueError(_hint(text))


def _scaled(value: Any, text: str) -> Any:
    """A function from the nanoseconds of one unit to those of the number; an integer loses no digits."""
    if isinstance(value, int) or _DIGITS.match(text):
        return lambda factor: int(text) * factor
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    whole, _, fraction = text.partition(".")
    if _DIGITS.match(whole) and _DIGITS.match(fraction or "0"):
        return lambda factor: int(whole) * factor + int((fraction + "0" * 9)[:9]) * factor // 10**9
    return lambda factor: round(number * factor)


def _iso(text: str) -> int:
    text = _ISO_ZONE.sub("", text)
    fraction = _ISO_FRACTION.match(text)
    if fraction:
        return _moment(fraction[1] + fraction[3]) + int(fraction[2].ljust(9, "0"))
    return _moment(text)


def _moment(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(_text_hint(text)) from None
    if not FIRST_YEAR <= moment.year < YEAR_LIMIT:
        raise ValueError(
            f"the year must be in [{FIRST_YEAR}, {YEAR_LIMIT - 1}], and {moment.year:04d} looks like a stand-in for a"
            " missing time; remove or correct the row"
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000


_FORMS = (
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%Y-%m-%d %I:%M:%S %p",
    "%a, %d %b %Y %H:%M:%S",
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
)
"""Forms of dates that other programs write and in which no day can be taken for a month."""


def _text_hint(text: str) -> str:
    if re.fullmatch(r"\d{4}-\d{2}", text):
        return "a month is too coarse to order interactions; give full dates"
    if re.match(r"\d{1,2}/\d{1,2}/\d{2,4}", text):
        return "the day and the month cannot be told apart; write 2024-01-31"
    for form in _FORMS:
        try:
            return f"write {datetime.datetime.strptime(text, form).isoformat(' ')}"
        except ValueError:
            continue
    if re.fullmatch(r"[+-]?\d{1,3}([,.' ]\d{3})+", text):
        return "write the number without separators of thousands"
    if re.fullmatch(r"""['"]\s*\d+\s*['"]""", text) or re.fullmatch(r"\d+,\d+", text):
        return "write the number without quotes and with a decimal point"
    if re.search(r"\d [A-Za-z/_]+$", text):
        return "a named zone cannot be read; write the offset, such as +01:00, or UTC"
    return "write it as one of these"


_DATES = (
    (14, "%Y%m%d%H%M%S"),
    (12, "%Y%m%d%H%M"),
    (8, "%Y%m%d"),
    (10, "%Y%m%d%H"),
    (6, "%Y%m"),
    (8, "%d%m%Y"),
    (8, "%m%d%Y"),
    (6, "%y%m%d"),
)
_EPOCHS = (
    (6.2e17, 6.7e17, ".NET ticks", "subtract 621355968000000000 and divide by 10000000"),
    (1.2e17, 1.7e17, "a Windows file time", "divide by 10000000 and subtract 11644473600"),
    (1.2e16, 1.7e16, "a WebKit time", "divide by 1000000 and subtract 11644473600"),
    (2.448e6, 2.49e6, "a Julian day", "subtract 2440587.5 and multiply by 86400"),
)
_COARSER = {"minutes": 60, "hours": 3600, "days": 86_400}


def _hint(text: str) -> str:
    number = float(text)
    digits = text.partition(".")[0].rjust(8 if len(text.partition(".")[0]) == 7 else 0, "0")
    for length, form in _DATES:
        year = digits[-4:-2] if form.endswith("m%Y") or form.endswith("d%Y") else digits[:2]
        if len(digits) == length and (year in ("19", "20") or form.startswith("%y")):
            try:
                date = datetime.datetime.strptime(digits, form).isoformat(" ")[: 10 if length <= 8 else 19]
            except ValueError:
                continue
            return f"it looks like a date and not like seconds; write {date}"
    if number.is_integer() and 1900 <= number < YEAR_LIMIT:
        return "it looks like a year, too coarse to order interactions; give full dates"
    for first, last, name, fix in _EPOCHS:
        if first <= number < last:
            return f"it looks like {name}; {fix}"
    if 33_000 <= number < 73_000:  # 1990 to 2099
        day = datetime.datetime(1899, 12, 30) + datetime.timedelta(days=number)
        return f"it looks like a spreadsheet's serial date; write {day:%Y-%m-%d}"
    for name, seconds in _COARSER.items():
        if _FIRST_NUMBER["milliseconds"] <= number * seconds < _LAST_SECOND:
            return f"it looks like {name} since 1970; multiply by {seconds}"
    if 0 <= number < _FIRST_NUMBER["seconds"]:
        return (
            "as Unix seconds it would lie in 1970; write real times, or set data.timestamp_unit: seconds if numbers"
            " from 0 on are meant"
        )
    if number < 0:
        return "it would lie before 1970; write real times"
    return "it fits no unit between 1995 and 2099; write Unix seconds, or set data.timestamp_unit"


def parse_categories(value: Any, config: DataConfig) -> tuple[str, ...]:
    """Categories of one cell, most specific first, without repetitions, at most `sizes.categories`.

    A path, as text or as an inner list of a list of lists, is reversed: its last level is the most specific. A list
    keeps its order. Text that a program printed from a list (`['a', 'b']`, `["a", "b"]`, `[{"name": "a"}]`) is read
    as that list.

    Raises:
        RowError: the cell looks like a list and is not one, or holds something other than names.
    """
    columns = config.item_columns
    list_separator = columns.list_separator or DEFAULT_LIST_SEPARATOR
    path_separator = columns.path_separator or DEFAULT_PATH_SEPARATOR
    parts = list_of(value)
    if parts is None:
        parts = text_of(value).split(list_separator)
    elif len(parts) > 1 and all(isinstance(part, (list, tuple)) for part in parts):
        parts = sorted(parts, key=len, reverse=True)
    names: dict[str, None] = {}
    for part in parts:
        levels = part if isinstance(part, (list, tuple)) else _levels(part, path_separator)
        for level in reversed(levels):
            name = _category(level)
            if name:
                names[name] = None
    return tuple(names)[: config.sizes.categories]


def _levels(part: Any, separator: str) -> list[Any]:
    if not isinstance(part, str):
        return [part]
    if separator == DEFAULT_PATH_SEPARATOR:
        return re.split(r"[-=]*>+", part)
    return part.split(separator.strip() or separator)


def _category(level: Any) -> str:
    if isinstance(level, dict):
        named = [level[key] for key in ("name", "Name", "title") if key in level]
        if not named:
            raise _bad_categories(level)
        level = named[0]
    if isinstance(level, (list, tuple, dict)):
        raise _bad_categories(level)
    return line_of(level)


def list_of(value: Any) -> Sequence[Any] | None:
    """The elements of a list or of the text of one; None if the cell is plain text.

    Raises:
        RowError: the cell looks like a list and is not one.
    """
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        return [value]
    text = _unwrapped(text_of(value).strip())
    if not looks_like_list(text):
        return None
    if text.startswith(("['", '["', "[{")) and text[-1] != "]":
        raise _bad_categories(text)
    try:
        read = json.loads(text)
    except ValueError:
        read = None if re.search(r"""['"]\s+['"]""", text) else _literal(text)  # NumPy prints lists without commas
    if isinstance(read, dict):
        return [read]
    if isinstance(read, (set, frozenset)):
        return sorted(read, key=str)
    if isinstance(read, (list, tuple)):
        return read
    if text[0] == "(":  # a name in brackets
        return None
    raise _bad_categories(text)


def _unwrapped(text: str) -> str:
    """The text of a list without the quotes or the name of a NumPy array around it."""
    array = re.fullmatch(r"array\((\[.*\])(?:,\s*dtype=[^)]*)?\)", text, re.DOTALL)
    if array:
        return array[1]
    quoted = len(text) > 2 and text[0] == text[-1] == '"' and looks_like_list(text[1:-1])
    return text[1:-1] if quoted else text


def looks_like_list(text: str) -> bool:
    """Whether a cell's text is that of a list, or the start of one."""
    text = text.strip()
    if text.startswith(("['", '["', "[{", "array([", "\"['", '"["')):
        return True
    return len(text) >= 2 and (text[0], text[-1]) in {("[", "]"), ("(", ")"), ("{", "}")}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _bad_categories(value: Any) -> RowError:
    shown = text_of(value)[:80]
    return RowError(
        "bad_categories",
        f"categories must be a path, a list or the text of a Python or JSON list of names, got {shown!r}; write"
        " `Beauty > Makeup` or `Comedy|Drama`",
    )


_OTHER_SEPARATORS = {
    "&gt;": "path_separator",
    ";": "list_separator",
    ",": "list_separator",
    "/": "path_separator",
    "\\": "path_separator",
    "»": "path_separator",
    "›": "path_separator",
    "::": "path_separator",
    "\t": "list_separator",
    "\n": "list_separator",
    "→": "path_separator",
    "＞": "path_separator",
    "•": "list_separator",
    "·": "list_separator",
    "，": "list_separator",
    "、": "list_separator",
    "；": "list_separator",
    "｜": "list_separator",
    "~": "list_separator",
    "^": "list_separator",
    "__": "path_separator",
    " - ": "path_separator",
    "|": "list_separator",
    ">": "path_separator",
}
_MIN_CELLS, _MIN_FRACTION, _MAX_DISTINCT = 3, 0.3, 0.8


def other_separator(cells: Iterable[str], config: DataConfig) -> tuple[str, str] | None:
    """A separator that the categories' cells seem to use although another is configured, and the key to set.

    A separator counts if 30% of the cells hold it, at least three different ones, and splitting at it finds the same
    names in different cells, which it does not in names such as `Arts, Crafts & Sewing`. A key that is configured is
    not questioned.
    """
    columns = config.item_columns
    used = (columns.list_separator or DEFAULT_LIST_SEPARATOR, columns.path_separator or DEFAULT_PATH_SEPARATOR)
    all_cells = [cell for cell in cells if cell]
    for separator, key in _OTHER_SEPARATORS.items():
        if getattr(columns, key) is not None or separator.strip() in {name.strip() for name in used}:
            continue
        holding = [cell for cell in all_cells if separator in cell and not any(u.strip() in cell for u in used)]
        distinct = set(holding)
        if len(distinct) < _MIN_CELLS or len(holding) < _MIN_FRACTION * len(all_cells):
            continue
        parts = [part.strip() for cell in distinct for part in cell.split(separator)]
        if len(set(parts)) <= _MAX_DISTINCT * len(parts):
            return separator, key
    return None

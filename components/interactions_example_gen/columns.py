"""Finds the columns of a table that are read, and reports on the others."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sllmr.components.interactions_example_gen.cells import LABELS, is_null_like, text_of
from sllmr.components.interactions_example_gen.config import ORDER_COLUMNS, VALID_FROM, CsvConfig, DataConfig
from sllmr.components.interactions_example_gen.files import CsvTable, DataError, ParquetTable, open_table, table_paths
from sllmr.models.declared_features import INTERACTION, ITEM, USER

Table = CsvTable | ParquetTable


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LABELS = _names("""
    label labels labelled labeled click clicks clicked isclick isclicked target targets y purchase purchased
    ispurchase ispurchased bought isbought ordered isordered buy isbuy like liked likes islike isliked dislike
    convert converted conversion positive ispositive relevant relevance feedback response outcome engaged
    engagement played completed watched installed applied accepted hired booked isbooked hit reward clk cvr cvt
""")
_RATINGS = _names("""
    rating ratings rate rated stars star starrating score scores overall grade userrating reviewscore
    reviewrating preference vote votes sterne bewertung thumbs
""")
_EVENT_TYPES = _names("""
    event events eventtype eventname action actions actiontype behavior behaviour behaviortype behaviourtype
    interactiontype activity activitytype type eventkind verb
""")
_EVENT_WORDS = _names("""
    view views pageview pv detailview click clicks clicked cart addtocart removefromcart fav favorite favourite wishlist
    buy bought purchase purchased order ordered transaction transactions checkout impression impressions exposure
    play played skip skipped like liked dislike disliked share shared download install rent watch watched
""")
_BEST_EVENTS = ("buy", "bought", "purchase", "purchased", "transaction", "order", "ordered", "checkout", "like")
_LOOKS_LIKE = {"label": _LABELS, "rating": _RATINGS, "event_type": _EVENT_TYPES}
_ABOUT_SOMETHING_ELSE = _names("""
    time date datetime timestamp ts id ids at day hour month year count counts num number total url price
    amount device source product text title comment summary mean avg average
    position rank ip country language version platform max min
""")
_ITEM_LIKES = {
    "categories": _names("""
    categories category categoriespath categorypath categoryname maincategory subcategory genre genres tag
    tags class classes topic topics department producttype producttypename productgroup productgroupname
    section categoryid cat cats
"""),
    "brand": _names("brand brands brandname manufacturer maker publisher author artist store vendor"),
    "text": _names("description descriptions text abstract summary details features plot overview about"),
}


class UnreadColumns(NamedTuple):
    """Columns of a table that are not read.

    Attributes:
        table: `interactions`, `items` or `users`.
        names: in the order of the table.
        notices: a sentence for each that looks like one that could be read.
    """

    table: str
    names: tuple[str, ...]
    notices: tuple[str, ...]


def interaction_columns(table: Table, config: DataConfig) -> list[str | None]:
    """Names of the columns for user, item, time, label, rating, order, type of event and weight, and of the declared
    features of interactions; None for a column that is not read.

    Raises:
        DataError: a column is missing.
    """
    columns = config.columns
    rating = None
    if config.min_rating is not None:
        rating = _optional(table, columns.rating, "data.columns.rating", ("rating",))
        if rating is None:
            raise DataError(
                f"{table.path}: data.min_rating = {config.min_rating} needs a rating column; the columns are"
                f" {', '.join(table.columns)}; set data.columns.rating or remove data.min_rating"
            )
    return [
        _required(table, columns.user_id, "data.columns.user_id"),
        _required(table, columns.item_id, "data.columns.item_id"),
        _required(table, columns.timestamp, "data.columns.timestamp"),
        _optional(table, columns.label, "data.columns.label", () if "label" in columns.ignore else ("label",)),
        rating,
        _optional(table, columns.order, "data.columns.order", ORDER_COLUMNS),
        _optional(table, columns.event_type, "data.columns.event_type", ()),
        _optional(table, columns.weight, "data.columns.weight", ()),
        *_feature_columns(table, config, INTERACTION),
    ]


def item_columns(table: Table, config: DataConfig) -> list[str | None]:
    """Names of the columns for id, title, categories, brand and further text and, if features of items are declared,
    for the time from which they hold and for the features; None for a column that is not read.

    Raises:
        DataError: a column is missing.
    """
    columns = config.item_columns
    return [
        _required(table, columns.item_id, "data.item_columns.item_id"),
        _required(table, columns.title, "data.item_columns.title"),
        _optional(table, columns.categories, "data.item_columns.categories", ("categories",)),
        _optional(table, columns.brand, "data.item_columns.brand", ("brand",)),
        *(_required(table, name, "data.item_columns.text") for name in columns.text),
        *_features_and_time(table, config, ITEM, columns.valid_from),
    ]


def user_columns(table: Table, config: DataConfig) -> list[str | None]:
    """Names of the columns for id, for the time from which the features hold, and for the features; None if not read.

    Raises:
        DataError: a column is missing.
    """
    columns = config.user_columns
    return [
        _required(table, columns.user_id, "data.user_columns.user_id"),
        *_features_and_time(table, config, USER, columns.valid_from),
    ]


def _features_and_time(table: Table, config: DataConfig, name: str, valid_from: str | None) -> list[str | None]:
    features = _feature_columns(table, config, name)
    if not features:
        return []
    return [_optional(table, valid_from, f"data.{name}_columns.valid_from", (VALID_FROM,)), *features]


def _feature_columns(table: Table, config: DataConfig, name: str) -> list[str]:
    return [
        _required(table, f.source, f"data.features.{name}.{f.name}.column")
        for f in config.feature_sizes.of_tables(name)
    ]


def check_tables(config: DataConfig) -> list[UnreadColumns]:
    """Checks files, formats and columns, and that the parts of a table have the same columns. For use before a run.

    Returns:
        The columns of each table that are not read.

    Raises:
        DataError: the first problem found; the items come first.
    """
    unread = []
    tables: dict[str, tuple[CsvConfig, str, Callable[[Table, DataConfig], list[str | None]]]] = {
        "items": (config.item_table_csv, "data.items_csv", item_columns),
        "interactions": (config.csv, "data.csv", interaction_columns),
    }
    if config.users is not None:
        tables["users"] = (config.user_table_csv, "data.users_csv", user_columns)
    for name, (settings, key, columns_of) in tables.items():
        first: Table | None = None
        for path in table_paths(getattr(config, name), f"data.{name}"):
            with open_table(path, settings, key) as table:
                if first is None:
                    first = table
                    read = columns_of(table, config)
                    deciding = read[:_DECIDING]  # a column read as a feature may still be a label
                    values = _values(table, deciding) if name == "interactions" else {}
                    if name == "interactions":
                        _check_decided(table, deciding, config, values)
                    unread.append(_unread(name, table, read, config, values))
                else:
                    _check_same_columns(first, table)
    return unread


_DECIDING = 8
"""Number of columns that interaction_columns returns before the declared features."""


def _check_same_columns(first: Table, other: Table) -> None:
    missing = [name for name in first.columns if name not in other.columns]
    added = [name for name in other.columns if name not in first.columns]
    if missing or added:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"adds {', '.join(added)}"] if added else []
        raise DataError(
            f"all parts of a table must have the same columns, but {other.path} {' and '.join(parts)}, compared with"
            f" {first.path}; write the parts with the same header"
        )


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _looks_like(name: str, known: frozenset[str]) -> bool:
    words = _words(name)
    if "".join(words) in known:
        return True
    words_alone = known - _ONLY_AS_A_WHOLE
    return any(word in words_alone for word in words) and not any(word in _ABOUT_SOMETHING_ELSE for word in words)


_ONLY_AS_A_WHOLE = _names("type y hit rate class section about maker text")


def _check_decided(
    table: Table, read: Sequence[str | None], config: DataConfig, values: Mapping[str, Sequence[str]]
) -> None:
    """Raises DataError for a column that may say which rows are positives, if the configuration does not decide it."""
    columns = config.columns
    if read[3] is not None:  # a label decides alone
        return
    decided = {
        "label": columns.label == "",
        "rating": columns.rating == "" or config.min_rating is not None,
        "event_type": columns.event_type is not None,
    }
    others = [name for name in values if name not in columns.ignore]
    for kind, names in _LOOKS_LIKE.items():
        for name in others if not decided[kind] else ():
            if _looks_like(name, names):
                raise DataError(_undecided(table, name, kind, values[name]))
    for name in others if not decided["event_type"] else ():
        if _holds_event_types(values[name]):
            raise DataError(_undecided(table, name, "event_type", values[name]))


def _holds_event_types(values: Sequence[str]) -> bool:
    """Whether a column's values are the names of what users do, whatever its own name."""
    known = sum("".join(_words(value)) in _EVENT_WORDS for value in values)
    return 2 <= len(values) <= MAX_EVENT_TYPES and 2 * known >= len(values) and known >= 2


MAX_EVENT_TYPES = 20


def _undecided(table: Table, name: str, kind: str, values: Sequence[str]) -> str:
    quoted = name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) and name.lower() not in _YAML_WORDS else repr(name)
    what = {"label": "a label", "rating": "a rating", "event_type": "a type of event"}[kind]
    worst = {"label": "a 0", "rating": "a rating of 1", "event_type": "a view"}[kind]
    ignore = "columns: {rating: ''}" if name == "rating" else f"columns: {{ignore: [{quoted}]}}"
    shown = f" ({', '.join(values[:5])}{', ...' if len(values) > 5 else ''})" if any(values) else ""
    lines = [
        f"{table.path}: the column {name!r} looks like {what}{shown}, and nothing says whether it is one. Write one of",
        f"  {_reading_line(name, quoted, kind, values)}",
        f"  data: {{{ignore}}}   # ignore it: every row is a positive, {worst} too",
    ]
    return "\n".join(lines)


def _reading_line(name: str, quoted: str, kind: str, values: Sequence[str]) -> str:
    """The line of YAML that reads a column, as its values allow: a rating in words is read as a type of event."""
    values = [value for value in values if value and not is_null_like(value)]
    numbers = [float(value) for value in values if _NUMBER.match(value)]
    if len(numbers) < len(values) and not all(value.lower() in LABELS for value in values):
        kind = "event_type"
    elif kind == "label" and any(value.lower() not in LABELS for value in values):
        kind = "rating"
    if kind == "label":
        return f"data: {{columns: {{label: {quoted}}}}}   # 1 is a positive, 0 a negative"
    if kind == "rating":
        column = "" if name == "rating" else f"columns: {{rating: {quoted}}}, "
        least = _least_rating(numbers)
        return f"data: {{{column}min_rating: {least:g}}}   # from {least:g} on a positive, below known not to be one"
    best = next((v for word in _BEST_EVENTS for v in values if "".join(_words(v)) == word), (values or ["buy"])[0])
    return (
        f"data: {{columns: {{event_type: {quoted}}}, positive_event_types: [{json.dumps(best, ensure_ascii=False)}]}}"
        "   # name the values that are positives; data.events gives each a weight instead"
    )


def _least_rating(numbers: Sequence[float]) -> float:
    """A proposal: 4 on a scale that ends with 5, and about as far up on other scales."""
    highest = max(numbers, default=5.0)
    if 3 < highest <= 5 or highest <= 0:
        return 4.0
    return round(0.8 * highest, 1) if highest < 10 else float(round(0.8 * highest))


_NUMBER = re.compile(r"^[+-]?\d+(\.\d+)?$")


def _values(table: Table, read: Sequence[str | None]) -> dict[str, list[str]]:
    """The different values at the start of a table, by column that is not read."""
    names = [name for name in table.columns if name and name not in read]
    found: dict[str, dict[str, None]] = {name: {} for name in names}
    for _, cells in itertools.islice(table.rows(names), MAX_ROWS_FOR_VALUES) if names else ():
        if isinstance(cells, tuple):
            for name, cell in zip(names, cells, strict=True):
                found[name][text_of(cell).strip()[:30]] = None
    return {name: list(values) for name, values in found.items()}


MAX_ROWS_FOR_VALUES = 1000


_YAML_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


def _unread(
    name: str,
    table: Table,
    read: Sequence[str | None],
    config: DataConfig,
    values: Mapping[str, Sequence[str]],
) -> UnreadColumns:
    names = tuple(column for column in table.columns if column and column not in read)
    notices = []
    if name == "items":
        found = {"categories": read[2], "brand": read[3], "text": config.item_columns.text or None}
        set_to = {
            "categories": config.item_columns.categories,
            "brand": config.item_columns.brand,
            "text": None,
        }
        for key, likes in _ITEM_LIKES.items():
            if found[key] is not None or set_to[key] == "":
                continue
            for column in names:
                if _looks_like(column, likes):
                    value = f"[{column}]" if key == "text" else column
                    what = "further text" if key == "text" else key
                    notices.append(
                        f"the column {column!r} of data.items looks like {what} and is not read;"
                        f" data.item_columns.{key}: {value} reads it"
                    )
                    break
    elif name == "interactions":
        for column in names:
            kinds = [kind for kind, likes in _LOOKS_LIKE.items() if _looks_like(column, likes)]
            if kinds:
                what = kinds[0].replace("_", " of ", 1) if kinds[0] != "event_type" else "type of event"
                notices.append(f"the column {column!r} of data.interactions looks like a {what} and decides nothing")
            elif read[3] is None and len(values[column]) == 2 and {v.lower() for v in values[column]} <= LABELS.keys():
                notices.append(
                    f"the column {column!r} of data.interactions holds only {' and '.join(sorted(values[column]))} and"
                    f" decides nothing; if 1 means a positive, data.columns.label: {column} reads it"
                )
            elif read[5] is None and column.lower() in ORDER_COLUMNS:
                notices.append(
                    f"the column {column!r} of data.interactions is not read; data.columns.order: {column} orders"
                    " equal times by it"
                )
    return UnreadColumns(name, names, tuple(notices))


def _required(table: Table, name: str, key: str) -> str:
    if name in table.columns:
        return name
    raise DataError(
        f"{table.path} must have the column {name!r}, but its columns are {_shown(table.columns)};"
        f" {_fix(table, name, key)}"
    )


def _shown(columns: Sequence[str]) -> str:
    text = ", ".join(columns)
    return text if len(text) <= 300 else text[:300] + " ..."


_SYNONYMS = {
    "user_id": _names("user users userid uid customer customerid visitorid reviewerid memberid u uuid"),
    "item_id": _names("item items itemid iid product productid movieid asin parentasin sku articleid i"),
    "timestamp": _names("timestamp time date datetime ts unixreviewtime eventtime createdat created unixtime tdat"),
    "title": _names("title name itemname productname movietitle prodname itemtitle producttitle"),
}


def _fix(table: Table, name: str, key: str) -> str:
    settings = "data.csv"
    for part, of_part in (("item", "data.items_csv"), ("user", "data.users_csv")):
        if key.startswith((f"data.{part}_columns", f"data.features.{part}.")):
            settings = of_part
    if isinstance(table, CsvTable):
        fix = _header_fix(table.columns, name, settings)
        if fix is not None:
            return fix
    close = [column for column in table.columns if "".join(_words(column)) in _SYNONYMS.get(name, frozenset())]
    close += [column for column in table.columns if column.lower() == name.lower()]
    if close:
        return f"set {key}: {close[-1]}, if that is the right one"
    fix = f"set {key} to the right one"
    if isinstance(table, CsvTable):
        fix += ", or put a header line with the names of the columns first if that is a row"
    return fix


def _header_fix(columns: Sequence[str], name: str, settings: str) -> str | None:
    """The fix for a header that is wrong as a whole; None if it is not."""
    first_line = ",".join(columns)
    if first_line.lower().startswith("sep="):
        return "remove the first line, which is for spreadsheets, and set data.csv.separator"
    if first_line.startswith(("#", "//", "--")) and name not in first_line:
        return "remove the first line, which looks like a comment"
    if len(columns) > 1 and all(len(column) > 1 and column[0] == column[-1] == "'" for column in columns):
        return "the fields are in single quotes, which CSV takes for text: write double quotes or none"
    if "::" in first_line:
        return "the fields seem to be separated by '::': replace it by a comma or tab and put a header line first"
    if len(columns) <= 2:
        for separator, shown in _SEPARATORS.items():
            header = [cell.strip().strip('"') for cell in first_line.split(separator)]
            if len(header) <= len(columns) or (separator == " " and name not in header):
                continue
            return f"the fields seem to be separated by {shown}: set {settings}.separator: {shown}"
    if any(_NUMBER.match(column) for column in columns):
        return "the first line looks like data: put a header line with the names of the columns before it"
    return None


_SEPARATORS = {
    ";": '";"',
    "\t": r'"\t"',
    "|": '"|"',
    ":": '":"',
    "^": '"^"',
    "~": '"~"',
    "\x01": r'"\x01"',
    ",": '","',
    " ": '" "',
}
"""Separators that an error proposes, and how YAML writes them."""


def _optional(table: Table, name: str | None, key: str, defaults: Sequence[str]) -> str | None:
    if name:
        return _required(table, name, key)
    if name == "":
        return None
    return next((default for default in defaults if default in table.columns), None)

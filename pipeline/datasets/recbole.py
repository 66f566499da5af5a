"""Atomic files of RecBole: tab-separated, each column with its type in the header (`user_id:token`).

Source: RecBole's documentation, "Atomic Files": .inter, .item and .user; types token, token_seq, float and float_seq, a
sequence separated by blanks.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from sllmr.pipeline.datasets.delimited import Layout, Record, category_list, clean, read_header, read_records
from sllmr.pipeline.datasets.tables import PreparedTables, SourceError, TableRows, prepare_tables

TYPES = ("token", "token_seq", "float", "float_seq")

TITLES = ("title", "movie_title", "item_name", "name", "product_name", "song_name", "venue_name")
CATEGORIES = ("categories", "class", "genre", "genres", "category", "tags")
"""Names of the columns that become `title` and `categories`, in their order."""


def prepare_recbole(
    inter: pathlib.Path, item: pathlib.Path, user: pathlib.Path | None, directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the tables with every column of the files under its name without the type.

    The first name of TITLES that the file has becomes `title`, and the first of CATEGORIES `categories`. A token_seq
    stays text with blanks in a title, and becomes a list with `|` elsewhere.

    Raises:
        SourceError: a header without types, a column that is missing, or a cell that is not of its type.
    """
    interactions = _table(inter, ("user_id", "item_id", "timestamp"), {})
    renamed = {}
    for name, names in (("title", TITLES), ("categories", CATEGORIES)):
        found = [known for known in names if known in _types(item)]
        if found:
            renamed[found[0]] = name
        elif name == "title":
            raise SourceError(
                f"{item}:1: the header must name a title, one of {', '.join(TITLES)}, got {', '.join(_types(item))};"
                " rename the column in the header"
            )
    return prepare_tables(
        directory,
        interactions,
        _table(item, ("item_id",), renamed),
        None if user is None else _table(user, ("user_id",), {}),
    )


def _layout(columns: Sequence[str]) -> Layout:
    return Layout(columns=tuple(columns), separator="\t", quotes=False)


def _types(path: pathlib.Path) -> dict[str, str]:
    """The type of each column of an atomic file, by name."""
    types = {}
    for cell in read_header(path, _layout(())):
        name, _, kind = cell.strip().rpartition(":")
        if not name or kind not in TYPES:
            raise SourceError(
                f"{path}:1: the header must give each column a type of {', '.join(TYPES)}, as user_id:token, got"
                f" {cell!r}; name an atomic file, with tabs between the columns"
            )
        types[name] = kind
    return types


def _table(path: pathlib.Path, first: Sequence[str], renamed: dict[str, str]) -> TableRows:
    types = _types(path)
    missing = [name for name in first if name not in types]
    if missing:
        raise SourceError(
            f"{path}:1: the header must name {', '.join(missing)}, got {', '.join(types)}; rename the columns in the"
            " header, or name the right file"
        )
    names = [*first, *(name for name in types if name not in first)]
    cell_of = [_cell(f"{name}:{types[name]}", types[name], renamed.get(name, name)) for name in names]

    def rows() -> Iterator[list[str]]:
        for record in read_records(path, _layout([f"{name}:{kind}" for name, kind in types.items()])):
            yield [cell(record) for cell in cell_of]

    return TableRows([renamed.get(name, name) for name in names], rows())


def _cell(column: str, kind: str, name: str) -> Callable[[Record], str]:
    if name in ("user_id", "item_id"):
        return lambda record: record.id(column)
    if kind == "float":
        return lambda record: record.number(column, may_be_empty=name != "timestamp")
    if kind == "token" or name == "title":
        return lambda record: record.text(column)
    return lambda record: category_list(clean(record.text(column)).split())

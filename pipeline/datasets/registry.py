"""The public data sets of `sllmr data`: for each its files, its preparation, and how a run reads the tables."""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from sllmr.pipeline.datasets import amazon, hm, movielens, recbole, rees46
from sllmr.pipeline.datasets.tables import PreparedTables

_EVERY_RATING = "  columns: {rating: ''}   # every rating is a positive; or min_rating: 4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set.

    Attributes:
        help: of the command.
        options: keyword arguments of argparse's add_argument by option; `--output` comes on top.
        prepare: called with the options.
        reading: further lines of the section `data` of a run on it.
    """

    help: str
    options: Mapping[str, Mapping[str, Any]]
    prepare: Callable[[argparse.Namespace], PreparedTables]
    reading: str = _EVERY_RATING


def _file(help: str, **changes: Any) -> dict[str, Any]:
    return {"metavar": "FILE", "type": pathlib.Path, "required": True, "help": help, **changes}


def _amazon(year: int, **further: Mapping[str, Any]) -> DataSet:
    return DataSet(
        help=f"reviews and metadata as published in {year} ({amazon.RELEASES[year].files})",
        options={
            **{f"--{name}": option for name, option in further.items()},
            "--reviews": _file("the reviews as published, plain or .gz", required=not further),
            "--meta": _file("the items' metadata as published, plain or .gz", required=not further),
        },
        prepare=functools.partial(_prepare_amazon, year),
    )


def _prepare_amazon(year: int, options: argparse.Namespace) -> PreparedTables:
    reviews, meta = options.reviews, options.meta
    if getattr(options, "download", None):
        reviews, meta = amazon.download_amazon_2014(options.download, options.output)
    return amazon.prepare_amazon(year, reviews, meta, options.output)


DATASETS = {
    "movielens-100k": DataSet(
        help="downloads MovieLens-100K (2 MB, pinned hash)",
        options={
            "--cache-dir": {"default": "~/.cache/sllmr", "metavar": "DIR", "help": "where the download is kept"},
        },
        prepare=lambda options: movielens.prepare_movielens_100k(options.output, options.cache_dir),
    ),
    "movielens-1m": DataSet(
        help="MovieLens-1M, from its files",
        options={
            "--ratings": _file("ratings.dat"),
            "--movies": _file("movies.dat"),
            "--users": _file("users.dat"),
        },
        prepare=lambda options: movielens.prepare_movielens_1m(
            options.ratings, options.movies, options.users, options.output
        ),
    ),
    "movielens-25m": DataSet(
        help="MovieLens-25M, from its files",
        options={"--ratings": _file("ratings.csv"), "--movies": _file("movies.csv")},
        prepare=lambda options: movielens.prepare_movielens_25m(options.ratings, options.movies, options.output),
    ),
    "amazon-2014": _amazon(2014, download={"metavar": "CATEGORY", "help": "fetch that category first, e.g. Beauty"}),
    "amazon-2018": _amazon(2018),
    "amazon-2023": _amazon(2023),
    "rees46": DataSet(
        help="REES46: views, carts and purchases of online shops, from the files of some months",
        options={"--events": _file("one file a month, in their order, plain or .gz", nargs="+")},
        prepare=lambda options: rees46.prepare_rees46(options.events, options.output),
        reading="  columns: {event_type: event_type}\n"
        "  events: {view: 0.2, cart: 0.5, remove_from_cart: 0, purchase: 1}   # weights; 0 is no positive",
    ),
    "hm": DataSet(
        help="H&M: transactions, articles and customers, from their files",
        options={
            "--transactions": _file("transactions_train.csv"),
            "--articles": _file("articles.csv"),
            "--customers": _file("customers.csv"),
        },
        prepare=lambda options: hm.prepare_hm(
            options.transactions, options.articles, options.customers, options.output
        ),
        reading="  repeats: first_only   # or keep: a purchase of an article that the customer had before counts too\n"
        "  item_columns: {text: [color, description]}",
    ),
    "recbole": DataSet(
        help="atomic files of RecBole, with typed headers",
        options={
            "--inter": _file("NAME.inter"),
            "--item": _file("NAME.item"),
            "--user": _file("NAME.user", required=False),
        },
        prepare=lambda options: recbole.prepare_recbole(options.inter, options.item, options.user, options.output),
        reading="  columns: {rating: ''}   # every interaction is a positive; or, with a column rating, min_rating: 4",
    ),
}

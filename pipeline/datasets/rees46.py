"""REES46: events of online shops (view, cart, remove_from_cart, purchase), from local files.

Source: "eCommerce behavior data from multi category store" and "eCommerce Events History in Cosmetics Shop", REES46
Marketing Platform; one CSV file a month.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from sllmr.pipeline.datasets.delimited import Layout, category_path, read_records
from sllmr.pipeline.datasets.tables import PreparedTables, TableRows, prepare_tables

LAYOUT = Layout(
    columns=(
        *("event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price", "user_id"),
        "user_session",
    )
)

EVENT_TYPES = ("view", "cart", "remove_from_cart", "purchase")

_TIME = re.compile(r"(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2}) UTC")


def prepare_rees46(events: Sequence[pathlib.Path], directory: str | os.PathLike[str]) -> PreparedTables:
    """Writes the two tables from the files of some months, in their order.

    Products have no names: a title is `brand kind`, with the last level of category_code as the kind. Category, brand
    and price are those of a product's first event, so that no later value leaks into earlier rows.

    Raises:
        SourceError: a file or a row is not in the published layout.
    """
    products: dict[str, tuple[str, ...]] = {}
    counts: collections.Counter[str] = collections.Counter()

    def interactions() -> Iterator[tuple[str, ...]]:
        for path in events:
            for record in read_records(path, LAYOUT):
                time, event_type = _TIME.fullmatch(record.text("event_time")), record.id("event_type")
                if time is None:
                    raise record.error("event_time", "must be a time such as 2019-10-01 00:00:00 UTC")
                if event_type not in EVENT_TYPES:
                    raise record.error("event_type", f"must be among {', '.join(EVENT_TYPES)}")
                product, price = record.id("product_id"), record.number("price", may_be_empty=True)
                if product not in products:
                    levels, brand = record.text("category_code").split("."), record.text("brand")
                    title = " ".join(filter(None, (brand, levels[-1].replace("_", " "))))
                    products[product] = (product, title, category_path(levels), brand, price)
                counts[f"events_{event_type}"] += 1
                yield record.id("user_id"), product, f"{time[1]}T{time[2]}Z", event_type, price

    def seen_products() -> Iterator[tuple[str, ...]]:
        yield from products.values()

    return prepare_tables(
        directory,
        TableRows(["user_id", "item_id", "timestamp", "event_type", "price"], interactions()),
        TableRows(["item_id", "title", "categories", "brand", "price"], seen_products()),
        counts=counts,
    )

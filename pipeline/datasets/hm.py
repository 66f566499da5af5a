"""H&M: transactions, articles and customers, from local files.

Source: "H&M Personalized Fashion Recommendations", H&M Group, 2022.
"""

import collections
import os
import pathlib
import re
from collections.abc import Iterator

from sllmr.pipeline.datasets.delimited import Layout, Record, category_path, read_records
from sllmr.pipeline.datasets.tables import PreparedTables, TableRows, prepare_tables

TRANSACTIONS = Layout(columns=("t_dat", "customer_id", "article_id", "price", "sales_channel_id"))
ARTICLES = Layout(
    columns=(
        *("article_id", "prod_name", "product_type_name", "product_group_name", "graphical_appearance_name"),
        *("colour_group_name", "department_name", "index_group_name", "section_name", "garment_group_name"),
        "detail_desc",
    )
)
CUSTOMERS = Layout(
    columns=("customer_id", "FN", "Active", "club_member_status", "fashion_news_frequency", "age", "postal_code")
)

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def prepare_hm(
    transactions: pathlib.Path, articles: pathlib.Path, customers: pathlib.Path, directory: str | os.PathLike[str]
) -> PreparedTables:
    """Writes the three tables from transactions_train.csv, articles.csv and customers.csv.

    An article that a customer bought several times on a day is one interaction: times are days.

    Raises:
        SourceError: a file or a row is not in the published layout.
    """
    counts: collections.Counter[str] = collections.Counter(repeated_on_the_day=0)

    def interactions() -> Iterator[tuple[str, ...]]:
        today, seen = "", set[tuple[str, str]]()
        for record in read_records(transactions, TRANSACTIONS):
            day, customer, article = record.text("t_dat"), record.id("customer_id"), record.id("article_id")
            if not _DAY.fullmatch(day):
                raise record.error("t_dat", "must be a day such as 2018-09-20")
            if day < today:
                raise record.error("t_dat", f"must not lie before that of the row above, {today}")
            if day > today:
                today, seen = day, set()
            if (customer, article) in seen:
                counts["repeated_on_the_day"] += 1
                continue
            seen.add((customer, article))
            yield customer, article, day, record.number("price"), record.text("sales_channel_id")

    return prepare_tables(
        directory,
        TableRows(["user_id", "item_id", "timestamp", "price", "sales_channel"], interactions()),
        TableRows(
            ["item_id", "title", "categories", "color", "appearance", "department", "garment_group", "description"],
            map(_article, read_records(articles, ARTICLES)),
        ),
        TableRows(
            ["user_id", "fashion_news", "active", "club_member_status", "fashion_news_frequency", "age", "postal_code"],
            map(_customer, read_records(customers, CUSTOMERS)),
        ),
        counts=counts,
    )


def _article(record: Record) -> tuple[str, ...]:
    levels = ("index_group_name", "section_name", "product_group_name", "product_type_name")
    further = ("colour_group_name", "graphical_appearance_name", "department_name", "garment_group_name", "detail_desc")
    path = category_path([record.text(name) for name in levels])
    return (record.id("article_id"), record.text("prod_name"), path, *(record.text(name) for name in further))


def _customer(record: Record) -> tuple[str, ...]:
    flags = ["1" if record.number(name, may_be_empty=True) else "0" for name in ("FN", "Active")]
    texts = [record.text(name) for name in ("club_member_status", "fashion_news_frequency")]
    age = record.number("age", may_be_empty=True)
    return record.id("customer_id"), *flags, *texts, age, record.text("postal_code")

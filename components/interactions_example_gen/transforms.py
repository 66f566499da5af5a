"""The Beam graph of InteractionsExampleGen: read, check, group by user, count on train, make rows.

What is held in memory at once: one user's interactions, one bucket of rows, the catalogue.
"""

import collections
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from components.catalog import Item, ItemFeatures, write_catalog
from components.interactions_example_gen import report, rows
from components.interactions_example_gen.config import DataConfig, iso_to_milliseconds
from components.interactions_example_gen.report import Tally
from components.interactions_example_gen.tables import (
    OBSERVED_NEGATIVE,
    POSITIVE,
    BadRow,
    read_interactions,
    read_items,
    table_paths,
)
from models import features

TALLY = "tally"

INTERACTIONS_PER_BUCKET = 10_000
"""Rows are written bucket by bucket of their seeded hash: large enough to tear a user's rows apart, small
enough to be sorted in memory."""


class PrepareInteractions(beam.PTransform):
    """The two tables of a DataConfig as rows.

    Expands a pipeline to a dict of PCollections: each split's serialized tf.Examples (bytes) under its name,
    `catalog` (one list of Item, sorted by id) and `report` (one dict).

    Raises:
        DataError: a file is missing, or its name has no known suffix; at run time: a file cannot be read or
            lacks a column. What is wrong with single rows is in the report; see report.check_report.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, pbegin: beam.pvalue.PBegin) -> Any:
        """Builds the graph."""
        config = self._config
        item_files = table_paths(config.items, "data.items")
        interaction_files = table_paths(config.interactions, "data.interactions")

        read_items_output = (
            pbegin
            | "ItemFiles" >> beam.Create([item_files])
            | "ReadItems" >> beam.ParDo(ReadItems(config)).with_outputs(TALLY, main="items")
        )
        items = read_items_output["items"]
        ids = items | "ItemIds" >> beam.Map(item_ids)
        read_output = (
            pbegin
            | "InteractionFiles" >> beam.Create(interaction_files)
            | "OneWorkerAFile" >> beam.Reshuffle()
            | "ReadInteractions"
            >> beam.ParDo(
                ReadInteractions(config), AsSingleton(ids | "KnownItems" >> beam.Map(frozenset))
            ).with_outputs(TALLY, main="events")
        )
        read_tally = read_output[TALLY] | "MergeReadTallies" >> beam.CombineGlobally(MergeTallies())
        sorted_output = (
            read_output["events"]
            | "GroupByUser" >> beam.GroupByKey()
            | "SortByTime" >> beam.ParDo(SortByTime()).with_outputs(TALLY, main="users")
        )
        users = sorted_output["users"]
        plan = self._plan(users, read_tally)
        timelines = users | "Split" >> beam.ParDo(MakeTimeline(config), AsSingleton(plan))
        train_counts = (
            timelines
            | "TrainPositives" >> beam.FlatMap(train_positives)
            | "CountByItem" >> beam.combiners.Count.PerElement()
            | "TrainCounts" >> beam.combiners.ToDict()
        )
        catalog = items | "Popularity" >> beam.Map(
            rows.with_popularity, AsSingleton(train_counts), config.tail.fraction
        )
        row_output = timelines | "MakeRows" >> beam.ParDo(
            MakeRows(config), AsSingleton(ids), AsSingleton(plan)
        ).with_outputs(TALLY, main="rows")
        written = (
            row_output["rows"]
            | "GroupByBucket" >> beam.GroupByKey()
            | "Encode"
            >> beam.ParDo(
                EncodeRows(config),
                AsSingleton(catalog | "ItemFeatures" >> beam.Map(ItemFeatures, config.sizes)),
            ).with_outputs(TALLY, *rows.SPLITS)
        )
        tally = (
            (read_items_output[TALLY], read_tally, sorted_output[TALLY], row_output[TALLY], written[TALLY])
            | "AllTallies" >> beam.Flatten()
            | "MergeTallies" >> beam.CombineGlobally(MergeTallies())
        )
        report_ = tally | "Report" >> beam.Map(report.build_report, AsSingleton(catalog), config, AsSingleton(plan))
        return {**{split: written[split] for split in rows.SPLITS}, "catalog": catalog, "report": report_}

    def _plan(self, users: beam.PCollection, read_tally: beam.PCollection) -> beam.PCollection:
        config = self._config
        if config.split.strategy == "leave_last_two" or config.split.valid_from is not None:
            return read_tally | "Plan" >> beam.Map(make_plan, [], (0, 1), config)
        first_and_width = read_tally | "BinWidth" >> beam.Map(first_and_bin_width)
        bins = (
            users
            | "TimeBins" >> beam.FlatMap(time_bins, AsSingleton(first_and_width))
            | "CountByBin" >> beam.CombinePerKey(sum)
            | "Histogram" >> beam.combiners.ToList()
        )
        return read_tally | "Plan" >> beam.Map(make_plan, AsSingleton(bins), AsSingleton(first_and_width), config)


def item_ids(items: Iterable[Item]) -> tuple[str, ...]:
    """The ids of a catalogue, sorted."""
    return tuple(sorted(item.item_id for item in items))


def train_positives(user: tuple[str, rows.Timeline]) -> list[str]:
    """See rows.train_positives."""
    return rows.train_positives(user[1])


def first_and_bin_width(tally: Tally) -> tuple[int, int]:
    """Start and width of the bins of time that the date cuts are found with, milliseconds."""
    first, last = tally.spans.get("positives", (0, 0))
    return first, rows.bin_width(first, last)


def time_bins(user: tuple[str, list[rows.Event]], first_and_width: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """One user's positives by bin of time."""
    first, width = first_and_width
    events = user[1]
    return collections.Counter((e.timestamp - first) // width for e in events if e.kind == POSITIVE).items()


def make_plan(
    tally: Tally, bins: list[tuple[int, int]], first_and_width: tuple[int, int], config: DataConfig
) -> rows.SplitPlan:
    """What is decided on the whole data."""
    observed = config.negatives == "observed"
    if config.negatives is None:
        observed = tally.counts["interactions.observed_negatives"] > 0
    cuts = (0, 0)
    if config.split.valid_from is not None and config.split.test_from is not None:
        cuts = iso_to_milliseconds(config.split.valid_from), iso_to_milliseconds(config.split.test_from)
    elif config.split.strategy == "global_date":
        cuts = rows.date_cuts(dict(bins), *first_and_width, config)
    buckets = 1 + tally.counts["interactions.read"] // INTERACTIONS_PER_BUCKET
    return rows.SplitPlan(valid_from=cuts[0], test_from=cuts[1], observed_negatives=observed, buckets=buckets)


class ReadItems(beam.DoFn):
    """Lists of files to lists of Item; malformed rows go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, paths: list[str]) -> Iterator[Any]:
        """Reads all files of the table in their order."""
        tally, items = Tally(), []
        for item in read_items(paths, self._config):
            tally.counts["items.read"] += 1
            if isinstance(item, BadRow):
                tally.drop("items", item)
            else:
                tally.counts["items.empty_titles"] += not item.title
                items.append(item)
        yield items
        yield TaggedOutput(TALLY, tally)


class ReadInteractions(beam.DoFn):
    """Files to (user id, the fields of rows.Event); malformed rows and unknown items go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, path: str, known_items: frozenset[str]) -> Iterator[Any]:
        """Reads one file."""
        tally = Tally()
        for row in read_interactions(path, self._config):
            tally.counts["interactions.read"] += 1
            if isinstance(row, BadRow):
                tally.drop("interactions", row)
            elif row.item_id not in known_items:
                column = self._config.columns.item_id
                problem = f"{column} must be in the items table, got {row.item_id!r}; add it or remove the row"
                tally.drop("interactions", BadRow(row.file, row.row, report.UNKNOWN_ITEM, problem))
            else:
                tally.counts["interactions.observed_negatives"] += row.kind == OBSERVED_NEGATIVE
                if row.kind == POSITIVE:
                    tally.see("positives", row.timestamp)
                yield row.user_id, tuple(row[1:])
        yield TaggedOutput(TALLY, tally)


class SortByTime(beam.DoFn):
    """(user id, fields of its events) to (user id, sorted events); repetitions go to the tally."""

    def process(self, user: tuple[str, Iterable[tuple]]) -> Iterator[Any]:
        """Sorts one user's interactions."""
        user_id, fields = user
        events, surplus = rows.without_duplicates(rows.Event(*values) for values in fields)
        tally = Tally()
        tally.counts["users"] += 1
        for event in surplus:
            problem = "user, item and timestamp must not repeat; remove the row"
            tally.drop("interactions", BadRow(event.file, event.row, report.DUPLICATE, problem))
        yield user_id, events
        yield TaggedOutput(TALLY, tally)


class MakeTimeline(beam.DoFn):
    """(user id, sorted events) to (user id, Timeline)."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, user: tuple[str, list[rows.Event]], plan: rows.SplitPlan) -> Iterator[tuple[str, rows.Timeline]]:
        """Splits one user's events."""
        yield user[0], rows.make_timeline(user[1], self._config, plan)


class MakeRows(beam.DoFn):
    """(user id, Timeline) to (bucket, (hash, fields of rows.Row)); what was left out goes to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(
        self, user: tuple[str, rows.Timeline], item_ids: tuple[str, ...], plan: rows.SplitPlan
    ) -> Iterator[Any]:
        """Makes one user's rows."""
        user_id, timeline = user
        user_rows = list(rows.make_rows(user_id, timeline, item_ids, self._config, plan))
        for row in user_rows:
            order = rows.seeded_hash(self._config.seed, "order", user_id, row.history_length, row.item_id, row.label)
            yield order % plan.buckets, (order, tuple(row))
        yield TaggedOutput(TALLY, report.tally_user(timeline, user_rows, plan))


class EncodeRows(beam.DoFn):
    """One bucket's rows in the order of their seeded hash, as serialized tf.Examples under their split's tag.

    The rows of one user are spread over the buckets: a reader with a bounded shuffle buffer meets them apart.
    """

    def __init__(self, config: DataConfig) -> None:
        self._features = features.row_features(config.sizes)

    def process(self, bucket: tuple[int, Iterable[tuple[int, tuple]]], items: ItemFeatures) -> Iterator[Any]:
        """Encodes one bucket."""
        tally = Tally()
        for _, fields in sorted(bucket[1]):
            row = rows.Row(*fields)
            values = rows.row_values(row, items)
            tally.add_row(row, is_tail=values[features.IS_TAIL] == 1)
            example = features.to_example(values, self._features)
            yield TaggedOutput(row.split, example.SerializeToString(deterministic=True))
        yield TaggedOutput(TALLY, tally)


class MergeTallies(beam.CombineFn):
    """Sum of tallies."""

    def create_accumulator(self) -> Tally:
        """Nothing counted."""
        return Tally()

    def add_input(self, accumulator: Tally, tally: Tally) -> Tally:
        """Adds one tally."""
        return accumulator.merge(tally)

    def merge_accumulators(self, accumulators: Iterable[Tally]) -> Tally:
        """Adds several."""
        result = Tally()
        for accumulator in accumulators:
            result.merge(accumulator)
        return result

    def extract_output(self, accumulator: Tally) -> Tally:
        """The sum."""
        return accumulator


class WriteCatalog(beam.DoFn):
    """Writes a list of Item to an ItemCatalog artifact."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, items: list[Item]) -> None:
        """Writes the catalogue."""
        write_catalog(self._directory, items)


class WriteReport(beam.DoFn):
    """Writes the report to a DataReport artifact."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, content: dict[str, Any]) -> None:
        """Writes data_report.json."""
        os.makedirs(self._directory, exist_ok=True)
        with open(os.path.join(self._directory, report.FILE_NAME), "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")

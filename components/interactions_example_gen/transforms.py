"""The Beam graph of InteractionsExampleGen: read, check, group by user, count on train, make rows.

What is held in memory at once: one user's interactions, one bucket of rows, the catalog.
"""

import collections
import json
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from sllmr.components.catalog import Item, ItemFeatures, Version, write_catalog
from sllmr.components.interactions_example_gen import report, rows
from sllmr.components.interactions_example_gen.config import DataConfig, iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import FILE_NAME, DataReport
from sllmr.components.interactions_example_gen.report import Tally
from sllmr.components.interactions_example_gen.tables import (
    OBSERVED_NEGATIVE,
    POSITIVE,
    BadRow,
    DataError,
    ItemCells,
    UnknownItems,
    catalog_notices,
    catalog_problem,
    check_tables,
    read_interactions,
    read_items,
    read_users,
    table_paths,
)
from sllmr.models import artifact_files, features
from sllmr.models.declared_features import INTERACTION, USER
from sllmr.models.tf_examples import to_example

TALLY = "tally"

INTERACTIONS_PER_BUCKET = 10_000
"""Rows are written in buckets by their seeded hash: large enough to separate the rows of a user, small enough to be
sorted in memory."""


SECONDS_OF_A_DAY = 86_400
"""How far a time may lie ahead of the clock, as it may have been written in another time zone."""


class PrepareInteractions(beam.PTransform):
    """The tables of a DataConfig as rows.

    Expands a pipeline to a dict of PCollections: each split's serialized tf.Examples (bytes) under its name,
    `catalog` (one list of Item, sorted by id), `non_positives` and `earlier_positives` ((user id, item id), see
    components.catalog.NON_POSITIVES_PREFIX and EARLIER_POSITIVES_PREFIX) and `report` (one DataReport).

    Raises:
        DataError: a file is missing, is not in a known format or lacks a column. Problems in the rows below the
            headers go to the report; see report.check_report.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, pbegin: beam.pvalue.PBegin) -> Any:
        """Builds the graph."""
        config = self._config
        item_files = table_paths(config.items, "data.items")
        interaction_files = table_paths(config.interactions, "data.interactions")
        unread = check_tables(config)

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
            | "SortByTime" >> beam.ParDo(SortByTime(config)).with_outputs(TALLY, main="users")
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
        of_users: beam.PCollection = timelines
        tallies: list[beam.PCollection] = []
        if config.users is not None:
            of_users, tallies = self._with_versions(pbegin, timelines, config.users)
        row_output = of_users | "MakeRows" >> beam.ParDo(
            MakeRows(config), AsSingleton(ids), AsSingleton(plan)
        ).with_outputs(TALLY, main="rows")
        written = (
            row_output["rows"]
            | "GroupByBucket" >> beam.GroupByKey()
            | "Encode"
            >> beam.ParDo(
                EncodeRows(config),
                AsSingleton(catalog | "ItemFeatures" >> beam.Map(ItemFeatures, config.feature_sizes)),
            ).with_outputs(TALLY, *rows.SPLITS)
        )
        tally = (
            (read_items_output[TALLY], read_tally, sorted_output[TALLY], row_output[TALLY], written[TALLY], *tallies)
            | "AllTallies" >> beam.Flatten()
            | "MergeTallies" >> beam.CombineGlobally(MergeTallies())
        )
        report_ = tally | "Report" >> beam.Map(
            report.build_report, AsSingleton(catalog), config, AsSingleton(plan), unread
        )
        non_positives = timelines | "NonPositives" >> beam.FlatMap(held_out_non_positives)
        earlier = timelines | "EarlierPositives" >> beam.FlatMap(earlier_positives, config)
        return {
            **{split: written[split] for split in rows.SPLITS},
            "catalog": catalog,
            "non_positives": non_positives,
            "earlier_positives": earlier,
            "report": report_,
        }

    def _with_versions(
        self, pbegin: beam.pvalue.PBegin, timelines: beam.PCollection, users: str
    ) -> tuple[beam.PCollection, list[beam.PCollection]]:
        """(user id, Timeline) to (user id, Timeline, versions of the user), and tallies."""
        read_output = (
            pbegin
            | "UserFiles" >> beam.Create(table_paths(users, "data.users"))
            | "OneWorkerAUserFile" >> beam.Reshuffle()
            | "ReadUsers" >> beam.ParDo(ReadUsers(self._config)).with_outputs(TALLY, main="users")
        )
        joined = (
            {_TIMELINE: timelines, _VERSIONS: read_output["users"]}
            | "JoinUsers" >> beam.CoGroupByKey()
            | "SortVersions" >> beam.ParDo(SortVersions()).with_outputs(TALLY, main="users")
        )
        return joined["users"], [read_output[TALLY], joined[TALLY]]

    def _plan(self, users: beam.PCollection, read_tally: beam.PCollection) -> beam.PCollection:
        config = self._config
        if config.split.strategy == "leave_last_two" or config.split.valid_from or config.window:
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
    """The ids of a catalog, sorted."""
    return tuple(sorted(item.item_id for item in items))


def train_positives(user: tuple[str, rows.Timeline]) -> list[str]:
    """See rows.train_positives."""
    return rows.train_positives(user[1])


def held_out_non_positives(user: tuple[str, rows.Timeline]) -> Iterator[tuple[str, str]]:
    """See rows.held_out_non_positives; with the user id."""
    user_id, timeline = user
    for item_id in rows.held_out_non_positives(timeline):
        yield user_id, item_id


def earlier_positives(user: tuple[str, rows.Timeline], config: DataConfig) -> Iterator[tuple[str, str]]:
    """See rows.earlier_positives; with the user id."""
    user_id, timeline = user
    for item_id in rows.earlier_positives(timeline, config):
        yield user_id, item_id


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
    """Makes the decisions that need the whole data set."""
    observed = config.negatives == "observed"
    if config.negatives is None:
        observed = tally.counts["interactions.observed_negatives"] > 0
    cuts, window_start = (0, 0), 0
    if config.window is not None:
        window_start, valid_from, test_from, _ = config.window.bounds
        cuts = valid_from, test_from
    elif config.split.valid_from is not None and config.split.test_from is not None:
        cuts = iso_to_milliseconds(config.split.valid_from), iso_to_milliseconds(config.split.test_from)
    elif config.split.strategy == "global_date":
        cuts = rows.date_cuts(dict(bins), *first_and_width, config)
    buckets = 1 + tally.counts["interactions.read"] // INTERACTIONS_PER_BUCKET
    return rows.SplitPlan(
        valid_from=cuts[0],
        test_from=cuts[1],
        window_start=window_start,
        observed_negatives=observed,
        buckets=buckets,
    )


class ReadItems(beam.DoFn):
    """Lists of files to lists of Item; malformed rows go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, paths: list[str]) -> Iterator[Any]:
        """Reads all files of the table in their order."""
        tally, items, cells = Tally(), [], ItemCells()
        try:
            for item in read_items(paths, self._config, cells):
                tally.counts["items.read"] += 1
                if isinstance(item, BadRow):
                    tally.drop("items", item)
                else:
                    tally.counts["items.empty_titles"] += not item.title
                    items.append(item)
            problem = catalog_problem(cells, self._config)
        except DataError as error:
            problem = str(error)
        if problem is not None:
            tally.fail("items", problem)
        tally.notices += catalog_notices(items, cells)
        yield items
        yield TaggedOutput(TALLY, tally)


class ReadInteractions(beam.DoFn):
    """Files to (user id, the fields of rows.Event); malformed rows and unknown items go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, path: str, known_items: frozenset[str]) -> Iterator[Any]:
        """Reads one file, or none of it if there are no items."""
        tally, unknown = Tally(), UnknownItems(known_items)
        latest = 1000 * (time.time() + SECONDS_OF_A_DAY)
        window = self._config.window and self._config.window.bounds
        try:
            for row in read_interactions(path, self._config) if known_items else ():
                tally.counts["interactions.read"] += 1
                if isinstance(row, BadRow):
                    tally.drop("interactions", row)
                elif row.item_id not in known_items:
                    problem = unknown.problem(row.item_id)
                    tally.drop("interactions", BadRow(row.file, row.row, report.UNKNOWN_ITEM, problem))
                elif window and row.timestamp >= window.until:
                    tally.counts["left_out.after_window"] += 1
                else:
                    tally.counts["interactions.observed_negatives"] += row.kind == OBSERVED_NEGATIVE
                    tally.see_user_id(row.user_id)
                    if row.kind == POSITIVE:
                        tally.see("positives", row.timestamp)
                    if row.timestamp > latest:
                        tally.counts["interactions.in_the_future"] += 1
                        tally.see("future", row.timestamp)
                    yield row.user_id, tuple(row[1:])
        except DataError as error:
            tally.fail("interactions", str(error))
        yield TaggedOutput(TALLY, tally)


_TIMELINE, _VERSIONS = "timeline", "versions"


class ReadUsers(beam.DoFn):
    """Files to (user id, (file, row, fields of Version)); malformed rows go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, path: str) -> Iterator[Any]:
        """Reads one file."""
        tally = Tally()
        try:
            for row in read_users(path, self._config):
                tally.counts["users.read"] += 1
                if isinstance(row, BadRow):
                    tally.drop("users", row)
                else:
                    yield row.user_id, (row.file, row.row, tuple(row.version))
        except DataError as error:
            tally.fail("users", str(error))
        yield TaggedOutput(TALLY, tally)


class SortVersions(beam.DoFn):
    """A user's Timeline and rows of the users table to (user id, Timeline, versions); duplicates go to the tally."""

    def process(self, user: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[Any]:
        """Sorts the versions of one user."""
        user_id, joined = user
        tally, versions = Tally(), dict[int, Version]()
        for file, row, fields in sorted(joined[_VERSIONS], key=lambda found: found[:2]):
            version = Version(*fields)
            if version.valid_from in versions:
                problem = "user_id and the time from which a row holds must be unique; remove the row"
                tally.drop("users", BadRow(file, row, report.DUPLICATE_USER, problem))
            else:
                versions[version.valid_from] = version
        timeline = next(iter(joined[_TIMELINE]), None)
        tally.counts["users.with_row"] += bool(versions and timeline)
        tally.counts["users.without_row"] += not versions
        tally.counts["users.without_interaction"] += timeline is None
        if timeline is not None:
            yield user_id, timeline, [versions[start] for start in sorted(versions)]
        yield TaggedOutput(TALLY, tally)


class SortByTime(beam.DoFn):
    """(user id, fields of its events) to (user id, sorted events); what is left out goes to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, user: tuple[str, Iterable[tuple]]) -> Iterator[Any]:
        """Sorts one user's interactions."""
        user_id, fields = user
        events, surplus = rows.without_duplicates(rows.Event(*values) for values in fields)
        tally = Tally()
        tally.see_user(len(events))
        for event in surplus:
            problem = "user, item and timestamp must not repeat; remove the row"
            tally.drop("interactions", BadRow(event.file, event.row, report.DUPLICATE, problem))
        kept = rows.without_repeats(events, self._config)
        tally.counts["left_out.repeats"] += len(events) - len(kept)
        yield user_id, kept
        yield TaggedOutput(TALLY, tally)


class MakeTimeline(beam.DoFn):
    """(user id, sorted events) to (user id, Timeline)."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, user: tuple[str, list[rows.Event]], plan: rows.SplitPlan) -> Iterator[tuple[str, rows.Timeline]]:
        """Splits one user's events."""
        yield user[0], rows.make_timeline(user[1], self._config, plan)


class MakeRows(beam.DoFn):
    """(user id, Timeline, maybe versions) to (bucket, (hash, fields of rows.Row)); counts go to the tally."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config

    def process(self, user: tuple[Any, ...], item_ids: tuple[str, ...], plan: rows.SplitPlan) -> Iterator[Any]:
        """Makes one user's rows."""
        user_id, timeline, *versions = user
        user_rows = list(rows.make_rows(user_id, timeline, item_ids, self._config, plan, *versions))
        for row in user_rows:
            order = rows.seeded_hash(self._config.seed, "order", user_id, row.history_length, row.item_id, row.label)
            yield order % plan.buckets, (order, tuple(row))
        yield TaggedOutput(TALLY, report.tally_user(timeline, user_rows, plan))


class EncodeRows(beam.DoFn):
    """One bucket's rows in the order of their seeded hash, as serialized tf.Examples under their split's tag.

    The rows of one user are spread over the buckets: a reader with a bounded shuffle buffer meets them apart.
    """

    def __init__(self, config: DataConfig) -> None:
        self._features = features.row_features(config.feature_sizes, has_weights=config.has_weights)
        self._declared = config.feature_sizes.declared
        self._of_row = config.feature_sizes.of_tables(USER, INTERACTION)

    def process(self, bucket: tuple[int, Iterable[tuple[int, tuple]]], items: ItemFeatures) -> Iterator[Any]:
        """Encodes one bucket."""
        tally = Tally()
        for _, fields in sorted(bucket[1]):
            row = rows.Row(*fields)
            values = rows.row_values(row, items, self._of_row)
            tally.add_row(row, is_tail=values[features.IS_TAIL] == 1, in_train=values[features.ITEM_TRAIN_COUNT] > 0)
            for f in self._declared:
                tally.counts[f"{row.split}.missing.{f.name}"] += f.is_missing(values[f.name])
            example = to_example(values, self._features)
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
        """Writes the catalog."""
        write_catalog(self._directory, items)


class WriteItemsOfUsers(beam.PTransform):
    """Writes (user id, item id) to JSON lines beside the catalog."""

    def __init__(self, directory: str, prefix: str) -> None:
        """
        Args:
            directory: of the ItemCatalog artifact.
            prefix: of the files, one of components.catalog.
        """
        super().__init__()
        self._prefix = os.path.join(directory, prefix)

    def expand(self, items: beam.PCollection) -> beam.PCollection:
        """Writes the files."""
        lines = items | "Encode" >> beam.Map(json.dumps, ensure_ascii=False)
        return lines | "Write" >> beam.io.WriteToText(self._prefix, file_name_suffix=".jsonl.gz")


class WriteReport(beam.DoFn):
    """Writes the report to a DataReport artifact."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def process(self, content: DataReport) -> None:
        """Writes data_report.json."""
        artifact_files.make_folder(self._directory)
        with artifact_files.open(os.path.join(self._directory, FILE_NAME), "w") as file:
            file.write(content.model_dump_json(indent=2) + "\n")

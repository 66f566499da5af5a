"""Counts what is read, dropped and split on the way; the counts merge in any order."""

import collections
import dataclasses
import datetime
import hashlib
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from sllmr.components.catalog import Item
from sllmr.components.interactions_example_gen import rows
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import DataReport
from sllmr.components.interactions_example_gen.tables import POSITIVE, BadRow, DataError, UnreadColumns
from sllmr.models.declared_features import INTERACTION

EXAMPLES_PER_REASON = 5
SHORT_HISTORY = 3
"""The paper counts rows whose history holds at most so many items as cold-start interactions."""


@dataclasses.dataclass
class Tally:
    """Counts that merge in any order.

    Attributes:
        counts: by name.
        spans: by split, first and last Unix milliseconds.
        dropped: by table and reason, the first few rows by file and row.
        most_of_a_user: the most interactions that one user has.
        negatives_sum: sum of the SHA-256 values of the evaluation negatives, modulo 2^256.
        problems: by table, the first problem that ended its reading.
        notices: sentences about tables that can be used.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    spans: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    dropped: dict[str, list[BadRow]] = dataclasses.field(default_factory=dict)
    negatives_sum: int = 0
    most_of_a_user: int = 0
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    notices: list[str] = dataclasses.field(default_factory=list)

    def fail(self, table: str, problem: str) -> None:
        """Keeps a problem of a whole table: of several the alphabetically first, so that merge order is irrelevant."""
        self.problems[table] = min(problem, self.problems.get(table, problem))

    def see_user(self, interactions: int) -> None:
        """Counts a user with so many interactions."""
        self.counts["users"] += 1
        self.counts["interactions.of_users"] += interactions
        self.most_of_a_user = max(self.most_of_a_user, interactions)

    def see_user_id(self, user_id: str) -> None:
        """Counts user ids that are integers, with and without `.0`: two forms that one column should not mix."""
        if user_id.endswith(".0") and user_id[:-2].isdigit():
            self.counts["interactions.user_ids_as_floats"] += 1
        elif user_id.isdigit():
            self.counts["interactions.user_ids_as_integers"] += 1

    def drop(self, table: str, row: BadRow) -> None:
        """Counts one unused row of `interactions`, `items` or `users`."""
        self.counts[f"{table}.dropped.{row.reason}"] += 1
        self._keep_first(table + "." + row.reason, [row])

    def see(self, split: str, timestamp: int) -> None:
        """Widens a split's time span."""
        first, last = self.spans.get(split, (timestamp, timestamp))
        self.spans[split] = (min(first, timestamp), max(last, timestamp))

    def add_row(self, row: rows.Row, is_tail: bool, in_train: bool) -> None:
        """Counts one row that is written; `in_train`: whether its item has a positive among the train rows."""
        self.counts[f"{row.split}.rows"] += 1
        self.counts[f"{row.split}.positives"] += row.label
        self.counts[f"{row.split}.cold_rows"] += row.is_cold
        self.counts[f"{row.split}.tail_rows"] += is_tail
        if not in_train:
            self.counts[f"{row.split}.{'positives' if row.label else 'negatives'}_not_in_train"] += 1
        self.counts[f"{row.split}.short_history_rows"] += row.history_length <= SHORT_HISTORY
        if row.split != rows.TRAIN and not row.label:
            key = "\x1f".join((row.split, row.user_id, str(row.history_length + 1), row.item_id))
            self._add_hash(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))

    def merge(self, other: "Tally") -> "Tally":
        """Adds `other` to this one."""
        self.counts.update(other.counts)
        for split, span in other.spans.items():
            for timestamp in span:
                self.see(split, timestamp)
        for key, examples in other.dropped.items():
            self._keep_first(key, examples)
        self._add_hash(other.negatives_sum)
        self.most_of_a_user = max(self.most_of_a_user, other.most_of_a_user)
        for table, problem in other.problems.items():
            self.fail(table, problem)
        self.notices += other.notices
        return self

    def _keep_first(self, key: str, examples: Sequence[BadRow]) -> None:
        self.dropped[key] = heapq.nsmallest(EXAMPLES_PER_REASON, [*self.dropped.get(key, ()), *examples])

    def _add_hash(self, value: int) -> None:
        self.negatives_sum = (self.negatives_sum + value) % (1 << 256)

    def dropped_counts(self, table: str) -> dict[str, int]:
        """By reason, the unused rows of one table."""
        prefix = f"{table}.dropped."
        return {k.removeprefix(prefix): n for k, n in sorted(self.counts.items()) if k.startswith(prefix)}


def tally_user(timeline: rows.Timeline, user_rows: Sequence[rows.Row], plan: rows.SplitPlan) -> Tally:
    """One user's part of the report: splits, time spans, and what makes no row of its own."""
    tally = Tally()
    tally.counts.update({f"{row.split}.users": 1 for row in user_rows})
    tally.counts["test.cold_users"] += any(row.is_cold for row in user_rows if row.split == rows.TEST)
    if not plan.observed_negatives:
        tally.counts["positives_without_negative"] += 2 * sum(row.label for row in user_rows) - len(user_rows)
    positives = sum(event.kind == POSITIVE for event in timeline.events)
    earlier: set[str] = set()
    for event, split, before in zip(timeline.events, timeline.splits, timeline.positives_before, strict=True):
        if event.kind == POSITIVE:
            if split is not None:
                tally.counts[f"{split}.repeated_positives"] += event.item_id in earlier
            earlier.add(event.item_id)
        if event.kind != POSITIVE and not plan.observed_negatives:
            tally.counts["left_out.unused_non_positives"] += 1
        elif split is not None:
            tally.see(split, event.timestamp)
        elif event.timestamp < plan.window_start:
            tally.counts["left_out.before_window"] += 1
        elif event.kind == POSITIVE:
            tally.counts["left_out.first_positives"] += 1
        else:
            reason = "negatives_after_last_positive" if before == positives else "negatives_without_history"
            tally.counts[f"left_out.{reason}"] += 1
    return tally


def build_report(
    tally: Tally,
    items: Sequence[Item],
    config: DataConfig,
    plan: rows.SplitPlan,
    unread: Sequence[UnreadColumns] = (),
) -> DataReport:
    """The report of what was counted."""
    counts = tally.counts
    tables = {
        "interactions": _table(tally, "interactions") | {"left_out": _left_out(tally, config)},
        "items": _table(tally, "items") | {"empty_titles": counts["items.empty_titles"]},
    }
    strategy: dict[str, Any] = {"strategy": config.split.strategy}
    if config.split.strategy == "global_date":
        strategy |= {"valid_from": _iso(plan.valid_from), "test_from": _iso(plan.test_from)}
    content = {
        "problems": tally.problems,
        "unread_columns": {columns.table: list(columns.names) for columns in unread},
        "positives_are": _positives(tally, config),
        "notices": [
            *(notice for columns in unread for notice in columns.notices),
            *_notices(tally, plan),
            *_feature_notices(tally, config),
        ],
        "users": counts["users"],
        "user_ids": {form: counts[f"interactions.user_ids_{form}"] for form in ("as_floats", "as_integers")},
        "items": len(items),
        **{f"{name}_table": table for name, table in tables.items()},
        "split": strategy,
        "splits": {split: _split(tally, split) for split in rows.SPLITS},
        "negatives": {
            "kind": "observed" if plan.observed_negatives else "sampled",
            "seed": config.seed,
            "positives_without_negative": counts["positives_without_negative"],
            "evaluation_hash": f"{tally.negatives_sum:064x}",
        },
        "cold": {
            "definition": _cold_definition(config),
            "by": config.cold_by,
            "below": config.cold.below,
            **{f"{split}_rows": counts[f"{split}.cold_rows"] for split in rows.SPLITS},
            "test_users": counts["test.cold_users"],
        },
        "tail": _tail(tally, items, config),
        "users_table": _users(tally) if config.users is not None else None,
        "features": {
            f.name: {
                "table": f.table,
                "kind": f.kind,
                **{f"{split}_missing": counts[f"{split}.missing.{f.name}"] for split in rows.SPLITS},
            }
            for f in config.feature_sizes.declared
        },
        "paper": {
            "train_rows": counts["train.rows"],
            "train_rows_with_history_of_at_most_3": counts["train.short_history_rows"],
            "long_tail_items": sum(item.is_tail and item.train_count > 0 for item in items),
        },
    }
    return DataReport.model_validate(content)


def check_report(report: DataReport, config: DataConfig) -> None:
    """Fails a run whose data broke a rule.

    Raises:
        DataError: see check_tables_read; or a split has no positives or no negatives, or a declared feature no
            value in the train rows.
    """
    check_tables_read(report, config)
    for split, values in report.splits.items():
        if not 0 < values.positives < values.rows:
            raise DataError(
                f"split {split} must hold positives and negatives, got {values.positives} positives in"
                f" {values.rows} rows by {config.split.strategy}; give users with more interactions, or"
                " change data.split or data.negatives"
            )
    for f in config.feature_sizes.declared:
        if report.features[f.name].train_missing == report.splits[rows.TRAIN].rows:
            times = ", or the times from which they hold," if f.table != INTERACTION else ""
            raise DataError(
                f"data.features.{f.table}.{f.name} must have a value in some train row, got none in"
                f" {report.splits[rows.TRAIN].rows} rows from the column {f.source!r}; correct the column{times} or"
                " remove the feature"
            )


def check_tables_read(report: DataReport, config: DataConfig) -> None:
    """Fails if a table could not be read as configured.

    Raises:
        DataError: a table has no rows; a malformed row under on_bad_row fail; more dropped than max_dropped_fraction;
            ids of users in two forms.
    """
    # The items first: without them every interaction is of an unknown item.
    for name in ("items", "interactions", *(["users"] if config.users is not None else [])):
        table = report.table(name)
        if name in report.problems:
            raise DataError(report.problems[name])
        if table.read == 0:
            raise DataError(f"data.{name} must hold rows, got none in {getattr(config, name)}; name the right file")
        malformed = {reason: n for reason, n in table.dropped.items() if reason not in DROPPED_ALWAYS}
        if malformed and config.on_bad_row == "fail":
            raise DataError(
                f"data.{name} must have no malformed row, got {sum(malformed.values())}; the first:\n"
                + _lines(table.examples, malformed)
                + "\ncorrect them, or set data.on_bad_row: drop to run without them"
            )
        dropped = sum(table.dropped.values())
        if dropped > config.max_dropped_fraction * table.read:
            raise DataError(
                f"at most {config.max_dropped_fraction:.1%} of the rows of data.{name} may be dropped"
                f" (data.max_dropped_fraction), got {dropped} of {table.read}:\n"
                + _lines(table.examples, table.dropped)
                + "\ncorrect the tables or raise the fraction"
            )
    floats, integers = report.user_ids.as_floats, report.user_ids.as_integers
    if floats and integers:
        raise DataError(
            f"data.interactions must write each user_id in one form, got {floats} rows with .0 behind an integer and"
            f" {integers} without, which makes two users of one; write all as integers"
        )


UNKNOWN_ITEM = "unknown_item"
DUPLICATE = "duplicate_interaction"
DUPLICATE_USER = "duplicate_user"
DROPPED_ALWAYS = (UNKNOWN_ITEM, DUPLICATE)
"""Reasons that drop a row whatever on_bad_row says."""


def _lines(examples: dict[str, list[str]], reasons: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for reason in reasons for line in examples[reason])


def _table(tally: Tally, name: str) -> dict[str, Any]:
    read, dropped = tally.counts[f"{name}.read"], tally.dropped_counts(name)
    return {
        "read": read,
        "kept": read - sum(dropped.values()),
        "dropped": dropped,
        "examples": {reason: [str(row) for row in tally.dropped[f"{name}.{reason}"]] for reason in dropped},
    }


def _users(tally: Tally) -> dict[str, Any]:
    names = ("with_row", "without_row", "without_interaction")
    return _table(tally, "users") | {name: tally.counts[f"users.{name}"] for name in names}


def _left_out(tally: Tally, config: DataConfig) -> dict[str, int]:
    names = [
        "first_positives",
        "negatives_without_history",
        "negatives_after_last_positive",
        "unused_non_positives",
    ]
    if config.repeats == "first_only":
        names.append("repeats")
    if config.window is not None:
        names += ["before_window", "after_window"]
    return {name: tally.counts[f"left_out.{name}"] for name in names}


def _split(tally: Tally, split: str) -> dict[str, Any]:
    first, last = tally.spans.get(split, (None, None))
    return {
        "rows": tally.counts[f"{split}.rows"],
        "positives": tally.counts[f"{split}.positives"],
        "users": tally.counts[f"{split}.users"],
        "tail_rows": tally.counts[f"{split}.tail_rows"],
        "positives_not_in_train": tally.counts[f"{split}.positives_not_in_train"],
        "negatives_not_in_train": tally.counts[f"{split}.negatives_not_in_train"],
        "repeated_positives": tally.counts[f"{split}.repeated_positives"],
        "first": None if first is None else _iso(first),
        "last": None if last is None else _iso(last),
    }


def _positives(tally: Tally, config: DataConfig) -> str:
    rules = []
    if config.min_rating is not None:
        rules.append(f"rated {config.min_rating:g} or more")
    if config.positive_event_types:
        rules.append(f"of type {', '.join(config.positive_event_types)}")
    if config.events:
        weights = (f"{name} ({weight:g})" for name, weight in config.events.items() if weight)
        rules.append(f"of type {', '.join(weights)}, weighted by the number in training")
    if config.columns.weight:
        rules.append(f"with {config.columns.weight} above 0, which weighs them in training")
    if config.repeats == "first_only":
        rules.append("the first of their user and item")
    if tally.counts["interactions.observed_negatives"] or config.columns.label:
        rules.append("labeled 1")
    return f"interactions {' and '.join(rules)}" if rules else "all interactions"


MANY_NOT_IN_TRAIN, MANY_REPEATED, MANY_UNSEEN = 0.5, 0.1, 0.2
"""Fractions of the test negatives or positives from which on a notice says what these do to the results."""


MIN_USERS, MUCH_OF_ONE_USER = 20, 0.1
"""With MIN_USERS users or more, a notice asks whether a user_id with this fraction of all interactions is one user."""


def _notices(tally: Tally, plan: rows.SplitPlan) -> list[str]:
    counts, notices = tally.counts, list(tally.notices)
    positives = counts["test.positives"]
    negatives = counts["test.rows"] - positives
    sampled = not plan.observed_negatives
    unsold = counts["test.negatives_not_in_train"] / negatives if negatives else 0.0
    repeated = counts["test.repeated_positives"] / positives if positives else 0.0
    unseen = counts["test.positives_not_in_train"] / positives if positives else 0.0
    if counts["users"] >= MIN_USERS and tally.most_of_a_user >= MUCH_OF_ONE_USER * counts["interactions.of_users"]:
        notices.append(
            f"one user_id has {tally.most_of_a_user / counts['interactions.of_users']:.0%} of all interactions; if it"
            " stands for unknown users (0, -1, guest), remove its rows"
        )
    if counts["interactions.in_the_future"]:
        notices.append(
            f"{counts['interactions.in_the_future']} interactions lie in the future, the last on"
            f" {_iso(tally.spans['future'][1])[:10]}; they end up among the test rows: are their times right?"
        )
    if unsold >= MANY_NOT_IN_TRAIN:
        notices.append(
            f"{unsold:.0%} of the test negatives are items without a train positive (never sold before the test):"
            " popularity alone tells them from positives, and every AUC is high for that reason; keep such items out of"
            " data.items to compare models on the others"
        )
    if repeated >= MANY_REPEATED:
        notices.append(
            f"{repeated:.0%} of the test positives are items that the user had before"
            + (
                f", and sampled negatives never are: the rule 'had it before' alone has an AUC of"
                f" {0.5 + repeated / 2:.2f};"
                " keep only the first interaction with an item to measure discovery"
                if sampled
                else ""
            )
        )
    if unseen >= MANY_UNSEEN:
        notices.append(
            f"{unseen:.0%} of the test positives are items without a train positive: the model knows only their"
            " attributes"
        )
    return notices


MANY_MISSING = 0.5
"""A notice names a feature that is missing in at least this fraction of the train rows."""


def _feature_notices(tally: Tally, config: DataConfig) -> list[str]:
    counts, notices = tally.counts, []
    if counts["users.without_row"]:
        notices.append(
            f"{counts['users.without_row']:,} of {counts['users']:,} users have no row in data.users: their features"
            " are missing"
        )
    for f in config.feature_sizes.declared:
        fraction = counts[f"train.missing.{f.name}"] / max(counts["train.rows"], 1)
        if fraction >= MANY_MISSING:
            notices.append(f"{fraction:.0%} of the train rows have no value of data.features.{f.table}.{f.name}")
    return notices


def _cold_definition(config: DataConfig) -> str:
    if config.cold_by == "user_train_positives":
        return f"the user has fewer than {config.cold.below} positives among the train rows"
    return f"fewer than {config.cold.below} positives lie before the row"


def _tail(tally: Tally, items: Sequence[Item], config: DataConfig) -> dict[str, Any]:
    seen = [item for item in items if item.train_count]
    tail = [item.train_count for item in seen if item.is_tail]
    threshold, unseen = max(tail, default=0), len(items) - len(seen)
    return {
        "definition": (
            f"the {len(tail)} least popular of {len(seen)} items with a train positive (fraction"
            f" {config.tail.fraction}, at most {threshold} train positives each), and {unseen} without one"
        ),
        "items": len(tail),
        "items_without_train_positive": unseen,
        "max_train_count": threshold,
        **{f"{split}_rows": tally.counts[f"{split}.tail_rows"] for split in rows.SPLITS},
    }


def _iso(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).isoformat()

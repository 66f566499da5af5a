"""What was read, dropped and split: counted on the way, merged in any order, written as data_report.json."""

import collections
import dataclasses
import datetime
import hashlib
import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from components.catalog import Item
from components.interactions_example_gen import rows
from components.interactions_example_gen.config import DataConfig
from components.interactions_example_gen.tables import POSITIVE, BadRow, DataError

FILE_NAME = "data_report.json"

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
        negatives_sum: sum of the SHA-256 values of the evaluation negatives, modulo 2^256.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    spans: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    dropped: dict[str, list[BadRow]] = dataclasses.field(default_factory=dict)
    negatives_sum: int = 0

    def drop(self, table: str, row: BadRow) -> None:
        """Counts one unused row of `interactions` or `items`."""
        self.counts[f"{table}.dropped.{row.reason}"] += 1
        self._keep_first(table + "." + row.reason, [row])

    def see(self, split: str, timestamp: int) -> None:
        """Widens a split's time span."""
        first, last = self.spans.get(split, (timestamp, timestamp))
        self.spans[split] = (min(first, timestamp), max(last, timestamp))

    def add_row(self, row: rows.Row, is_tail: bool) -> None:
        """Counts one row that is written."""
        self.counts[f"{row.split}.rows"] += 1
        self.counts[f"{row.split}.positives"] += row.label
        self.counts[f"{row.split}.cold_rows"] += row.is_cold
        self.counts[f"{row.split}.tail_rows"] += is_tail
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
    """One user's share of the report: splits, time spans, and what makes no row of its own."""
    tally = Tally()
    tally.counts.update({f"{row.split}.users": 1 for row in user_rows})
    tally.counts["test.cold_users"] += any(row.is_cold for row in user_rows if row.split == rows.TEST)
    if not plan.observed_negatives:
        tally.counts["positives_without_negative"] += 2 * sum(row.label for row in user_rows) - len(user_rows)
    positives = sum(event.kind == POSITIVE for event in timeline.events)
    for event, split, before in zip(timeline.events, timeline.splits, timeline.positives_before, strict=True):
        if event.kind != POSITIVE and not plan.observed_negatives:
            tally.counts["left_out.unused_non_positives"] += 1
        elif split is not None:
            tally.see(split, event.timestamp)
        elif event.kind == POSITIVE:
            tally.counts["left_out.first_positives"] += 1
        else:
            reason = "negatives_after_last_positive" if before == positives else "negatives_without_history"
            tally.counts[f"left_out.{reason}"] += 1
    return tally


def build_report(tally: Tally, items: Sequence[Item], config: DataConfig, plan: rows.SplitPlan) -> dict[str, Any]:
    """The content of data_report.json."""
    counts = tally.counts
    tables = {
        "interactions": _table(tally, "interactions") | {"left_out": _left_out(tally)},
        "items": _table(tally, "items") | {"empty_titles": counts["items.empty_titles"]},
    }
    strategy: dict[str, Any] = {"strategy": config.split.strategy}
    if config.split.strategy == "global_date":
        strategy |= {"valid_from": _iso(plan.valid_from), "test_from": _iso(plan.test_from)}
    return {
        "users": counts["users"],
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
        "paper": {
            "train_rows": counts["train.rows"],
            "train_rows_with_history_of_at_most_3": counts["train.short_history_rows"],
            "long_tail_items": sum(item.is_tail and item.train_count > 0 for item in items),
        },
    }


def check_report(report: dict[str, Any], config: DataConfig) -> None:
    """Fails a run whose data broke a rule.

    Raises:
        DataError: a malformed row under on_bad_row fail; more dropped than max_dropped_fraction; a split
            without positives or without negatives.
    """
    for name in ("interactions", "items"):
        table = report[f"{name}_table"]
        if table["read"] == 0:
            raise DataError(f"data.{name} must hold rows, got none in {getattr(config, name)}; name the right file")
        malformed = {reason: n for reason, n in table["dropped"].items() if reason not in DROPPED_ALWAYS}
        if malformed and config.on_bad_row == "fail":
            raise DataError(
                f"data.{name} must have no malformed row, got {sum(malformed.values())}; the first:\n"
                + _lines(table["examples"], malformed)
                + "\ncorrect them, or set data.on_bad_row: drop to run without them"
            )
        dropped = sum(table["dropped"].values())
        if dropped > config.max_dropped_fraction * table["read"]:
            raise DataError(
                f"at most {config.max_dropped_fraction:.1%} of the rows of data.{name} may be dropped"
                f" (data.max_dropped_fraction), got {dropped} of {table['read']}:\n"
                + _lines(table["examples"], table["dropped"])
                + "\ncorrect the tables or raise the fraction"
            )
    for split, values in report["splits"].items():
        if not 0 < values["positives"] < values["rows"]:
            raise DataError(
                f"split {split} must hold positives and negatives, got {values['positives']} positives in"
                f" {values['rows']} rows by {config.split.strategy}; give users with more interactions, or"
                " change data.split or data.negatives"
            )


UNKNOWN_ITEM = "unknown_item"
DUPLICATE = "duplicate_interaction"
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


def _left_out(tally: Tally) -> dict[str, int]:
    names = (
        "first_positives",
        "negatives_without_history",
        "negatives_after_last_positive",
        "unused_non_positives",
    )
    return {name: tally.counts[f"left_out.{name}"] for name in names}


def _split(tally: Tally, split: str) -> dict[str, Any]:
    first, last = tally.spans.get(split, (None, None))
    return {
        "rows": tally.counts[f"{split}.rows"],
        "positives": tally.counts[f"{split}.positives"],
        "users": tally.counts[f"{split}.users"],
        "tail_rows": tally.counts[f"{split}.tail_rows"],
        "first": None if first is None else _iso(first),
        "last": None if last is None else _iso(last),
    }


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

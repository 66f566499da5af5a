"""Scoring contexts for a table of scores by user and item (llm.replay_table), built around train rows of its users.

Such a table says which items a user has scores for, not at which point of the history they were given. One user's
contexts are, latest first and at most MAX_CONTEXTS_PER_USER:

    the latest positive train row, with up to MAX_CANDIDATES candidates;
    each positive train row whose own item has a score and is new to the history: a calibration context, which holds
    that target item and, unless it is the latest row, at most llm.candidates.per_context - 1 candidates.

Candidates are the scored items that the user did not interact with: not in the train split, before or after the row,
not before data.window, and not in the validation and test splits. The positives of the validation and test splits must
not become candidates: a pair with one of them would train on what evaluation measures. The negatives of these splits
are left out, too, or training would push down the negatives and never the positives. So are other interactions of that
time that are no positives, such as low ratings, which make no row. The validation and test rows are read for nothing
else.

In a context with a target item, every other candidate has the role of a sampled negative, so that its pair with the
target item is a calibration pair.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import apache_beam as beam

from sllmr.components import scores
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, NON_POSITIVES_PREFIX, Item
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts.candidates import PositiveRow, context_id
from sllmr.components.llm_scorer.contexts.transforms import (
    MAX_CONTEXTS_PER_USER,
    ParsePositiveRows,
    ReadItemsOfUsers,
    WithCatalog,
)
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Candidate, Context, user_key
from sllmr.components.llm_scorer.results import ReplayTableReport
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.llm_scorer.strategies.replay import user_scores_to_replay
from sllmr.components.llm_scorer.strategies.user_scores import UserScores
from sllmr.models import features
from sllmr.models.tf_examples import Example

TRAIN = "train"
HELD_OUT = "held_out"
_EARLIER = "earlier"

CONTEXTS = "contexts"
TALLY = "tally"

MAX_CANDIDATES = 100
"""Maximum number of candidates of one context: PairBuilder looks at every pair of them."""

DUPLICATE = "duplicate"
UNKNOWN_USER = "unknown_user"
UNKNOWN_ITEM = "unknown_item"
IN_HISTORY = "in_history"
HELD_OUT_ITEM = "held_out_item"
HELD_OUT_NEGATIVE = "held_out_negative"
TOO_FEW = "too_few_items_of_user"
BEYOND_LIMIT = "beyond_limit_of_user"
BEYOND_BUDGET = "beyond_budget"
DROPPED = (
    DUPLICATE,
    UNKNOWN_USER,
    UNKNOWN_ITEM,
    IN_HISTORY,
    HELD_OUT_ITEM,
    HELD_OUT_NEGATIVE,
    TOO_FEW,
    BEYOND_LIMIT,
    BEYOND_BUDGET,
)
"""Why a row of the table is in no context: the user and item have another row; the user has no positive train row with
a history; the item is not in data.items; the user interacted with it before the end of training and no train row can
have it as its target item; it is a positive, or a negative or another non-positive, of the user after the train split;
the user has no second item to make a pair with; the user has more contexts or items than a user's contexts hold;
llm.budget.pairs is used up."""

_USED = "used"
_ROWS = "rows"
_USERS = "users"
_USERS_USED = "users_used"


class ScoredUser(NamedTuple):
    """One user's contexts, latest first, and why each scored item outside them is dropped."""

    contexts: list[Context]
    dropped: dict[str, str]


def contexts_of_user(
    rows: Iterable[PositiveRow],
    scored: Sequence[str],
    held_out: Mapping[str, int],
    catalog: Mapping[str, Item],
    config: LlmConfig,
    earlier: Collection[str] = (),
) -> ScoredUser:
    """The scoring contexts of one user.

    Args:
        rows: all positive train rows of the user.
        scored: the items that the user has scores for.
        held_out: the items of the user's validation and test rows -> 1 if one of the item's rows is a positive, else 0.
        catalog: all items.
        config: resolved.
        earlier: the items of the user's positives that no row names.
    """
    by_time = sorted(rows, key=lambda row: row.position)
    rest = {item_id for item_id in scored if item_id in catalog}
    dropped = {item_id: UNKNOWN_ITEM for item_id in scored if item_id not in rest}
    met = set(earlier)
    targets: dict[int, str] = {}
    for row in by_time:
        met.update(row.history_item_ids)
        if row.item_id in rest and row.item_id not in met:
            targets[row.position] = row.item_id
        met.add(row.item_id)
    candidates = []
    for item_id in sorted(rest):
        if item_id in met:
            dropped[item_id] = IN_HISTORY
        elif item_id in held_out:
            dropped[item_id] = HELD_OUT_ITEM if held_out[item_id] else HELD_OUT_NEGATIVE
        else:
            candidates.append(item_id)
    dropped |= dict.fromkeys(targets.values(), BEYOND_LIMIT) | dict.fromkeys(candidates, BEYOND_LIMIT)
    contexts: list[Context] = []
    size = min(MAX_CANDIDATES, config.budget.pairs or MAX_CANDIDATES)
    for row in reversed(by_time):
        is_latest, target = row is by_time[-1], targets.get(row.position, "")
        if not (is_latest or target) or len(contexts) == MAX_CONTEXTS_PER_USER:
            continue
        context = _context(
            row,
            target,
            candidates,
            config,
            size=size if is_latest else min(size, config.candidates.per_context),
            last_position=by_time[-1].position,
        )
        # One candidate alone can never form a pair.
        if len(context.candidates) > 1:
            contexts.append(context)
    if not contexts:
        dropped |= dict.fromkeys(targets.values(), TOO_FEW) | dict.fromkeys(candidates, TOO_FEW)
    used = {candidate.item_id for context in contexts for candidate in context.candidates}
    return ScoredUser(contexts, {item_id: why for item_id, why in dropped.items() if item_id not in used})


def _context(
    row: PositiveRow, target: str, candidates: Sequence[str], config: LlmConfig, *, size: int, last_position: int
) -> Context:
    identifier = context_id(row, config.seed)
    room = size - bool(target)
    drawn = candidates
    if len(candidates) > room:
        drawn = random.Random(f"scored\x1f{config.seed}\x1f{identifier}").sample(candidates, room)
    role = scores.NEGATIVE if target else scores.REPLAYED
    return Context(
        context_id=identifier,
        history_item_ids=row.history_item_ids,
        history_length=row.history_length,
        candidates=(
            *((Candidate(item_id=target, role=scores.TARGET),) if target else ()),
            *(Candidate(item_id=item_id, role=role) for item_id in drawn),
        ),
        target_item_id=target,
        user_id=row.user_id if config.store_user_ids else "",
        user_key=user_key(row.user_id, config.seed),
        user_positives=row.user_positives,
        last_position=last_position,
        timestamp=row.timestamp,
        about_user=row.about_user,
    )


class ContextsOfScoredUsers(beam.PTransform):
    """{TRAIN: serialized train rows, HELD_OUT: serialized validation and test rows} -> {CONTEXTS: Context, TALLY: one
    dict, as `report_of` takes it}.

    Interactions that make no row are read from files beside the catalog: see NON_POSITIVES_PREFIX and
    EARLIER_POSITIVES_PREFIX of components.catalog.

    The table is read once in each worker. Contexts are chosen within the budget: the latest of every user first.
    """

    def __init__(self, catalog_directory: str, config: LlmConfig):
        """
        Args:
            catalog_directory: of the ItemCatalog.
            config: resolved; its replay_table names users.
        """
        super().__init__()
        self._arguments = (catalog_directory, config)

    def expand(self, inputs):
        pipeline, (catalog_directory, _) = inputs[TRAIN].pipeline, self._arguments
        non_positives = (
            pipeline
            | "ReadNonPositives" >> ReadItemsOfUsers(catalog_directory, NON_POSITIVES_PREFIX)
            | "NonPositives" >> beam.ParDo(_ItemsOfScoredUsers(*self._arguments))
            | "AsNegatives" >> beam.MapTuple(_as_negative)
        )
        of_users = {
            TRAIN: inputs[TRAIN]
            | "ParsePositiveRows" >> beam.ParDo(ParsePositiveRows(self._arguments[1]))
            | "MomentsOfScoredUsers" >> beam.ParDo(_MomentsOfScoredUsers(*self._arguments)),
            HELD_OUT: (
                inputs[HELD_OUT] | "HeldOutOfScoredUsers" >> beam.ParDo(_HeldOutOfScoredUsers(*self._arguments)),
                non_positives,
            )
            | "AllHeldOut" >> beam.Flatten(),
            _EARLIER: pipeline
            | "ReadEarlierPositives" >> ReadItemsOfUsers(catalog_directory, EARLIER_POSITIVES_PREFIX)
            | "EarlierPositives" >> beam.ParDo(_ItemsOfScoredUsers(*self._arguments)),
        } | "JoinUser" >> beam.CoGroupByKey()
        chosen = (
            of_users
            | "Rank" >> beam.ParDo(_Rank(*self._arguments))
            | "Ranked" >> beam.combiners.ToList()
            | "WithinBudget" >> beam.Map(within_budget, self._arguments[1].budget.pairs)
        )
        made = of_users | "MakeContexts" >> beam.ParDo(
            _MakeContexts(*self._arguments), beam.pvalue.AsSingleton(chosen)
        ).with_outputs(TALLY, main=CONTEXTS)
        return {CONTEXTS: made[CONTEXTS], TALLY: made[TALLY] | "MergeTallies" >> beam.CombineGlobally(_merge)}


class _OfScoredUsers(WithCatalog):
    """Has the table and the catalog at hand."""

    def setup(self) -> None:
        super().setup()
        table = user_scores_to_replay(self._config)
        assert table is not None
        self._table: UserScores = table

    def _scored(self, user_id: str) -> list[str]:
        return self._table.items_of(user_key(user_id, self._config.seed), self._config.seed)

    def _of(self, user_id: str, joined: Mapping[str, Iterable]) -> ScoredUser:
        held_out: dict[str, int] = {}
        for item_id, label in joined[HELD_OUT]:
            held_out[item_id] = max(label, held_out.get(item_id, 0))
        rows = [PositiveRow.from_json(encoded) for encoded in joined[TRAIN]]
        earlier = set(joined[_EARLIER])
        return contexts_of_user(rows, self._scored(user_id), held_out, self._catalog, self._config, earlier)


class _MomentsOfScoredUsers(_OfScoredUsers):
    """PositiveRow -> (user, PositiveRow as bytes) if the user is in the table."""

    def process(self, row: PositiveRow) -> Iterator[tuple[str, bytes]]:
        if self._scored(row.user_id):
            yield row.user_id, row.to_json().encode()


class _HeldOutOfScoredUsers(_OfScoredUsers):
    """Serialized validation or test row -> (user, (item, label)) if the user is in the table."""

    def process(self, row: bytes) -> Iterator[tuple[str, tuple[str, int]]]:
        columns = Example.FromString(row).features.feature
        user_id = columns[features.USER_ID].bytes_list.value[0].decode()
        if self._scored(user_id):
            item_id = columns[features.ITEM_ID].bytes_list.value[0].decode()
            yield user_id, (item_id, columns[features.LABEL].int64_list.value[0])


class _ItemsOfScoredUsers(_OfScoredUsers):
    """(user, item) -> the same if the user is in the table."""

    def process(self, found: tuple[str, str]) -> Iterator[tuple[str, str]]:
        if self._scored(found[0]):
            yield found


def _as_negative(user_id: str, item_id: str) -> tuple[str, tuple[str, int]]:
    return user_id, (item_id, 0)


class _Rank(_OfScoredUsers):
    """A user's rows -> for each context: its rank among those of the user, a hash, its id and its size."""

    def process(self, element: tuple[str, Mapping[str, Iterable]]) -> Iterator[tuple[int, float, str, int]]:
        for rank, context in enumerate(self._of(*element).contexts):
            yield (
                rank,
                seeded_fraction(self._config.seed, context.context_id),
                context.context_id,
                len(context.candidates),
            )


def within_budget(
    ranked: Collection[tuple[int, float, str, int]], pairs: int | None
) -> frozenset[str] | Literal["all"]:
    """The contexts that `pairs` candidates allow, by rank and hash.

    If all fit, it returns "all" and not None: Flink's Java side fails on a side input that is None.
    """
    if pairs is None or sum(size for *_, size in ranked) <= pairs:
        return "all"
    chosen = []
    for _, _, identifier, size in sorted(ranked):
        if size <= pairs:
            chosen.append(identifier)
            pairs -= size
    return frozenset(chosen)


class _MakeContexts(_OfScoredUsers):
    """A user's rows -> the chosen contexts, and a count of what became of the user's scores as TALLY."""

    def process(self, element: tuple[str, Mapping[str, Iterable]], chosen: frozenset[str] | Literal["all"]):
        user = self._of(*element)
        contexts = [c for c in user.contexts if chosen == "all" or c.context_id in chosen]
        yield from contexts
        if not list(element[1][TRAIN]):
            return  # without train rows: counted as unknown
        rows = len(self._scored(element[0]))
        used = len({candidate.item_id for context in contexts for candidate in context.candidates})
        tally = Counter(user.dropped.values())
        tally[BEYOND_BUDGET] = rows - len(user.dropped) - used
        tally.update({_ROWS: rows, _USED: used, _USERS: 1, _USERS_USED: bool(contexts)})
        yield beam.pvalue.TaggedOutput(TALLY, dict(tally))


def _merge(tallies: Iterable[Mapping[str, int]]) -> dict[str, int]:
    merged: Counter[str] = Counter()
    for tally in tallies:
        merged.update(tally)
    return dict(merged)


def encode_tally(tally: Mapping[str, int]) -> str:
    """The tally as a JSON line."""
    return json.dumps(tally)


def report_of(table: UserScores, tally: Mapping[str, int]) -> ReplayTableReport:
    """What of the table is used, for ledger.json: `rows` = `used` + the sum of `dropped`.

    Args:
        table: as read.
        tally: of ContextsOfScoredUsers.
    """
    dropped = {reason: tally.get(reason, 0) for reason in DROPPED}
    dropped[DUPLICATE] = table.duplicates
    dropped[UNKNOWN_USER] = table.rows - tally.get(_ROWS, 0)
    return ReplayTableReport(
        rows=table.rows + table.duplicates,
        used=tally.get(_USED, 0),
        dropped={reason: count for reason, count in dropped.items() if count},
        users=len(table.user_ids),
        users_in_train=tally.get(_USERS, 0),
        users_used=tally.get(_USERS_USED, 0),
        scaled_from=table.scaled_from,
    )


def report_line(report: ReplayTableReport) -> str:
    """`900 of 1,000 rows of llm.replay_table are used, of 90 of 100 users; dropped: 100 unknown_user`."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
    return (
        f"{report.used:,} of {report.rows:,} rows of llm.replay_table are used, of {report.users_used:,} of "
        f"{report.users:,} users" + (f"; dropped: {dropped}" if dropped else "")
    )


def tell(report: ReplayTableReport, logger: logging.Logger) -> None:
    """Logs what is used, and how the scores were scaled."""
    if report.scaled_from:
        lowest, highest = report.scaled_from
        logger.warning(
            "llm: the scores of llm.replay_table are in [%g, %g] and were scaled to [0, 1] by (score - lowest) / "
            "(highest - lowest); a table with scores in [0, 1] is taken as it is",
            lowest,
            highest,
        )
    logger.log(logging.WARNING if report.used < report.rows / 2 else logging.INFO, "llm: %s", report_line(report))
    if BEYOND_BUDGET in report.dropped:
        logger.warning("llm: llm.budget.pairs leaves rows of llm.replay_table out, which cost nothing; remove the key")


def check_report(report: ReplayTableReport, table: UserScores, catalog: Mapping[str, Item]) -> None:
    """
    Raises:
        LlmError: no row of the table is used.
    """
    if report.used:
        return
    if not report.users_in_train:
        check = (
            "no user_id of the table has a positive row with a history in the train split: write the ids as in "
            "data.interactions (7, 7.0 and 007 are three ids)"
        )
    elif not any(item_id in catalog for item_id in table.item_ids):
        known = f", data.items like {min(catalog)!r}" if catalog else ""
        check = (
            f"no item_id of the table is in data.items: the table has ids like {min(table.item_ids)!r}{known}; write "
            "them the same way"
        )
    else:
        check = (
            "a user needs scores of two items at least that are in data.items, of which one may be a target item of "
            "the train split and no other one an interaction of this user: score items that the user did not interact "
            "with, too"
        )
    raise LlmError(
        f"{report_line(report)}; {check}. A table may also name contexts in place of users: `sllmr plan --contexts "
        "FILE` writes each context_id and its items"
    )

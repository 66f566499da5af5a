"""Which contexts of an earlier score table stay, and which are scored again: Beam steps and the pure choice in them.

A table names users by a hash (scores.ScoreRecord.user_key), which today's rows give as well. A user has a new history
if the user's last positive train row has a later position today than when the table was made. Positions count all
positives of the user, so they do not change when data.window moves on (a table of an earlier version has none: see
ScoreRecord.is_outdated). If a user has a new history, all contexts of the user move to the latest rows that the LLM can
score. Otherwise a context stays as long as its own row is there unchanged; if that row has left the window or differs
today, the context moves to the latest row that is free. A moved context keeps the candidates that the user has not
interacted with since, as far as the slots beside a new target item and its negatives allow, so that the two scores can
be compared.

A context that has not moved is kept without a request if it would send the same requests as before and its score is
young enough. It keeps the table's candidates, although a plan made today would draw others: the pools change with every
purchase, so a new draw for every user would score every user again.
"""

import dataclasses
import glob
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence

import apache_beam as beam

from sllmr.components import scores
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX
from sllmr.components.llm_scorer.config import REPLAY, LlmConfig
from sllmr.components.llm_scorer.contexts.candidates import (
    PositiveRow,
    can_be_scored,
    candidates_of,
    context_id,
    context_of,
    is_record_of,
    stratum,
)
from sllmr.components.llm_scorer.contexts.transforms import (
    ParsePositiveRows,
    ReadItemsOfUsers,
    WithCatalog,
    candidate_pools,
)
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Context, user_key
from sllmr.components.llm_scorer.strategies import ContentDigest
from sllmr.components.scores import ScoreRecord
from sllmr.models import artifact_files, features
from sllmr.models.tf_examples import Example

CONTEXTS = "contexts"
KEPT = "kept"
FATES = "fates"

HISTORY = "history"
PROMPT = "prompt"
AGE = "age"
REASONS = (HISTORY, PROMPT, AGE)
"""Why a context is scored again: the user has later interactions, or the context moved because its row is gone; model,
prompt, titles or settings changed; the score is old.
"""

GONE = "gone"
"""The user has no row left for the context, or it has fewer than two candidates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of one context of the table.

    Attributes:
        previous_id: its id in the table.
        context_id: its id in the new one; empty where it is gone.
        fate: KEPT, a reason to ask again, or GONE.
    """

    previous_id: str
    context_id: str
    fate: str

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


class Replan(beam.PTransform):
    """{"rows": serialized train rows, "records": ScoreRecords} -> {CONTEXTS: Context to ask about,
    KEPT: ScoreRecord, FATES: Fate as a JSON line, one for each record}.
    """

    def __init__(self, catalog_directory: str, config: LlmConfig, not_before: int):
        """
        Args:
            config: resolved, with the table's seed.
            not_before: answers from before this Unix second are not kept.
        """
        super().__init__()
        self._catalog_directory = catalog_directory
        self._config = config
        self._not_before = not_before

    def expand(self, inputs):
        by_user = inputs["records"] | "ByUser" >> beam.Map(_by_user)
        users = by_user | "UserKeys" >> beam.Keys() | "UserSet" >> beam.combiners.ToSet()
        rows = (
            inputs["rows"]
            | "ParsePositiveRows" >> beam.ParDo(ParsePositiveRows(self._config))
            | "OfTableUsers" >> beam.FlatMap(_of_users, beam.pvalue.AsSingleton(users), self._config.seed)
        )
        earlier = (
            inputs["rows"].pipeline
            | "ReadEarlierPositives" >> ReadItemsOfUsers(self._catalog_directory, EARLIER_POSITIVES_PREFIX)
            | "EarlierOfTableUsers"
            >> beam.FlatMap(_earlier_of_users, beam.pvalue.AsSingleton(users), self._config.seed)
        )
        return (
            {"records": by_user, "rows": rows, "earlier": earlier}
            | "JoinRows" >> beam.CoGroupByKey()
            | "ReplanUser"
            >> beam.ParDo(_ReplanUser(self._catalog_directory, self._config, self._not_before)).with_outputs(
                CONTEXTS, KEPT, FATES
            )
        )


class RowsOfOtherUsers(beam.PTransform):
    """{"rows": serialized train rows, "records": ScoreRecords} -> the rows of users whom no record is about."""

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def expand(self, inputs):
        users = inputs["records"] | "ByUser" >> beam.Map(_user_key_of) | "UserSet" >> beam.combiners.ToSet()
        return inputs["rows"] | "OtherUsers" >> beam.Filter(_is_of_others, beam.pvalue.AsSingleton(users), self._seed)


def pair_with_rows(
    records: Sequence[ScoreRecord], rows: Sequence[PositiveRow], last_position: int, seed: int
) -> list[tuple[ScoreRecord, PositiveRow | None]]:
    """Assigns each record of one user to one of today's rows.

    Args:
        records: the user's.
        rows: those of the user that the LLM can score.
        last_position: of the user's last positive train row, whether or not the LLM can score it.

    Returns:
        Each record with its own row if it stays (see above); else with one of the latest rows that no record keeps, its
        own if that is among them; with None if no row is left.
    """
    by_age = sorted(rows, key=lambda row: row.position, reverse=True)
    left = {context_id(row, seed): row for row in by_age}
    stayed = {
        r.context_id: left.pop(r.context_id)
        for r in records
        if r.context_id in left
        and is_record_of(r, left[r.context_id])
        and not r.is_outdated(last_position=last_position, user_positives=left[r.context_id].user_positives)
    }
    left = dict(itertools.islice(left.items(), len(records) - len(stayed)))
    stayed |= {r.context_id: left.pop(r.context_id) for r in records if r.context_id in left}
    # The latest record takes the latest row that is left, and so on.
    movers = sorted((r for r in records if r.context_id not in stayed), key=lambda r: (-r.history_length, r.context_id))
    moved = dict(zip((r.context_id for r in movers), left.values(), strict=False))
    return [(record, (stayed | moved).get(record.context_id)) for record in records]


class _ReplanUser(WithCatalog):
    """A user's records, rows, and positives that no row names -> tagged CONTEXTS, KEPT and FATES."""

    def __init__(self, catalog_directory: str, config: LlmConfig, not_before: int):
        super().__init__(catalog_directory, config)
        self._not_before = not_before

    def setup(self) -> None:
        super().setup()
        self._pools = candidate_pools(self._catalog, self._config)
        self._digest = ContentDigest(self._config)

    def process(self, element: tuple[str, dict[str, list]]):
        _, joined = element
        records = sorted(joined["records"], key=lambda record: record.context_id)
        rows = list(joined["rows"])
        items = {item for row in rows for item in (row.item_id, *row.history_item_ids)}.union(joined["earlier"])
        lag = self._config.history_lag
        askable = [row for row in rows if can_be_scored(row, self._catalog, history_lag=lag)]
        last_position = max((row.position for row in rows), default=0)
        for record, row in pair_with_rows(records, askable, last_position, self._config.seed):
            context = None if row is None else self._context(record, row, items, last_position)
            # One candidate alone can never form a pair.
            if context is None or len(context.candidates) < 2:
                fate = Fate(previous_id=record.context_id, context_id="", fate=GONE)
            else:
                name = self._fate(record, context)
                fate = Fate(previous_id=record.context_id, context_id=context.context_id, fate=name)
                if name == KEPT:
                    yield beam.pvalue.TaggedOutput(KEPT, _as_of_today(record, context))
                else:
                    yield beam.pvalue.TaggedOutput(CONTEXTS, context)
            yield beam.pvalue.TaggedOutput(FATES, fate.to_json())

    def _context(self, record: ScoreRecord, row: PositiveRow, items: Collection[str], last_position: int) -> Context:
        config = self._config
        user_id = row.user_id if config.store_user_ids else ""
        candidates = candidates_of(record, self._catalog, items)
        if context_id(row, config.seed) == record.context_id and is_record_of(record, row):
            return context_of(record, row, candidates, last_position=last_position, seed=config.seed, user_id=user_id)
        others = [candidate for candidate in candidates if candidate.role != scores.TARGET]
        item = self._catalog.get(row.item_id)
        return self._pools.context(
            row,
            name=stratum(row, self._catalog, config.candidates),
            calibration=bool(record.target_item_id) and item is not None and bool(item.title),
            interacted=items,
            size=min(config.candidates.per_context, config.planned_pairs),
            seed=config.seed,
            last_position=last_position,
            user_id=user_id,
            # Negatives come last: they were drawn for another target item.
            carried=sorted(others, key=lambda candidate: candidate.role == scores.NEGATIVE),
        )

    def _fate(self, record: ScoreRecord, context: Context) -> str:
        if context.context_id != record.context_id:
            return HISTORY
        if self._digest.of(context, self._catalog) != record.fingerprint:
            is_outdated = record.is_outdated(last_position=context.last_position, user_positives=context.user_positives)
            return HISTORY if is_outdated else PROMPT
        return KEPT if record.scored_at >= self._not_before else AGE


def _as_of_today(record: ScoreRecord, context: Context) -> ScoreRecord:
    return dataclasses.replace(
        record,
        user_id=context.user_id,
        user_positives=context.user_positives,
        last_position=context.last_position,
    )


def _user_key_of(record: ScoreRecord) -> str:
    return record.user_key


def _by_user(record: ScoreRecord) -> tuple[str, ScoreRecord]:
    return record.user_key, record


def _of_users(row: PositiveRow, users: set[str], seed: int) -> Iterator[tuple[str, PositiveRow]]:
    key = user_key(row.user_id, seed)
    if key in users:
        yield key, row


def _earlier_of_users(earlier: tuple[str, str], users: set[str], seed: int) -> Iterator[tuple[str, str]]:
    user_id, item_id = earlier
    key = user_key(user_id, seed)
    if key in users:
        yield key, item_id


def _is_of_others(row: bytes, users: set[str], seed: int) -> bool:
    columns = Example.FromString(row).features.feature
    return user_key(columns[features.USER_ID].bytes_list.value[0].decode(), seed) not in users


def check_table(directory: str, config: LlmConfig) -> None:
    """Raises LlmError where a table cannot be rescored with this configuration."""
    if config.strategy == REPLAY:
        raise LlmError(f"rescore needs a strategy that asks, got {REPLAY}; set llm.strategy to that of the table")
    if not artifact_files.matches(scores.scores_pattern(directory)):
        raise LlmError(
            f"--scores must be a folder with {scores.SCORES_PREFIX}-*.tfrecord.gz, got {directory}; name the output of "
            "an earlier sllmr score or rescore, or a run's LlmScorer/scores folder"
        )
    for record in scores.read_scores(directory):
        if record.strategy == REPLAY:
            raise LlmError(
                f"--scores must be the table itself, got a replay of it in {directory}; name the folder that was "
                "llm.replay_table then"
            )
        if not record.user_key:
            raise LlmError(
                f"--scores must be a table whose records carry a user_key, got one of an earlier version in "
                f"{directory}; score anew with sllmr score (cached answers are not asked again)"
            )


def read_fates(pattern: str) -> list[Fate]:
    """All fates that Replan wrote."""
    fates = []
    for path in artifact_files.matches(pattern):
        with artifact_files.open(path) as lines:
            fates += [Fate(**json.loads(line)) for line in lines]
    return fates


def copy_failures(table: str, output: str, context_ids: Collection[str]) -> None:
    """Writes the failures of the kept contexts to the new table, so that each candidate of theirs is accounted for."""
    target = os.path.join(output, f"{scores.FAILURES_PREFIX}-kept.jsonl.gz")
    with artifact_files.gzip(target, "wt") as written:
        folder = glob.escape(scores.table_directory(table))
        for path in artifact_files.matches(os.path.join(folder, f"{scores.FAILURES_PREFIX}-*.jsonl.gz")):
            with artifact_files.gzip(path, "rt") as lines:
                written.writelines(line for line in lines if json.loads(line)["context_id"] in context_ids)


def scored_again(table: str, output: str, fates: Iterable[Fate]) -> Iterator[tuple[ScoreRecord, ScoreRecord]]:
    """The records before and after of each context that was scored again."""
    new_ids = {fate.previous_id: fate.context_id for fate in fates if fate.fate not in (KEPT, GONE)}
    wanted = set(new_ids.values())
    after = {r.context_id: r for r in scores.read_scores(output) if r.context_id in wanted}
    for before in scores.read_scores(table):
        record = after.get(new_ids.get(before.context_id, ""))
        if record is not None:
            yield before, record

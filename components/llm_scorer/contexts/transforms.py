"""Beam steps from train rows to scoring contexts with candidates."""

import dataclasses
import glob
import heapq
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from sllmr.components.beam_signatures import remember_signatures
from sllmr.components.catalog import EARLIER_POSITIVES_PREFIX, Item, read_catalog
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.contexts.candidates import (
    CandidatePools,
    PositiveRow,
    RowKey,
    can_be_scored,
    can_calibrate,
    candidates_of,
    choose_calibration,
    choose_contexts,
    context_id,
    context_of,
    is_record_of,
    number_of_contexts,
    stratum,
)
from sllmr.components.llm_scorer.messages import Context
from sllmr.components.llm_scorer.sampling import seeded_fraction
from sllmr.components.llm_scorer.strategies.embedding import vectors_in_file
from sllmr.components.llm_scorer.strategies.item_text import feature_text
from sllmr.components.llm_scorer.strategies.replay import records_to_replay
from sllmr.models import artifact_files, features
from sllmr.models.tf_examples import Example

remember_signatures()  # here, as every scoring command plans with this module

TO_CHOOSE = "to_choose"
TO_DRAW = "to_draw"

_ROWS, _EARLIER = "rows", "earlier"

MAX_CONTEXTS_PER_USER = 20
"""Contexts of one user in one stratum at most: bounds what is kept of a user with very many rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Askable:
    """What the train split holds that the LLM could score: users, and contexts by the length of their history."""

    users: int = 0
    short_history_contexts: int = 0
    long_history_contexts: int = 0


class ContextsToAsk(beam.PTransform):
    """{TO_CHOOSE: serialized train rows, TO_DRAW: the same} -> Context, within the budget of pairs. See candidates.py.

    The rows are passed twice, best from two reads. Choosing contexts then shuffles only keys, and drawing candidates
    only rows of chosen users, so a runner that keeps data between its stages in memory keeps little of each row.
    """

    def __init__(self, catalog_directory: str, config: LlmConfig):
        super().__init__()
        self._catalog_directory = catalog_directory
        self._config = config

    def expand(self, inputs):
        config = self._config
        contexts = number_of_contexts(config.planned_pairs, config.candidates.per_context)
        by_stratum = (
            inputs[TO_CHOOSE]
            | "ParsePositiveRows" >> beam.ParDo(ParsePositiveRows(self._config))
            | "AssignStratum" >> beam.ParDo(_AssignStratum(self._catalog_directory, config))
            | "ByUser" >> beam.GroupByKey()
            | "UsersFirst" >> beam.FlatMap(_by_round)
            | "FirstOfStratum" >> beam.combiners.Top.SmallestPerKey(contexts)
        )
        chosen = (
            inputs[TO_CHOOSE].pipeline
            | "Once" >> beam.Create([contexts])
            | "ChooseContexts" >> beam.FlatMap(_choose_contexts, beam.pvalue.AsDict(by_stratum), config)
        )
        rows = (
            inputs[TO_DRAW]
            | "ParsePositiveRowsAgain" >> beam.ParDo(ParsePositiveRows(self._config))
            | "OfChosenUsers" >> beam.FlatMap(_of_chosen_users, beam.pvalue.AsDict(chosen))
        )
        earlier = (
            inputs[TO_DRAW].pipeline
            | "ReadEarlierPositives" >> ReadItemsOfUsers(self._catalog_directory, EARLIER_POSITIVES_PREFIX)
            | "EarlierOfChosenUsers" >> beam.Filter(_is_of_chosen_user, beam.pvalue.AsDict(chosen))
        )
        return (
            {_ROWS: rows, _EARLIER: earlier}
            | "JoinUser" >> beam.CoGroupByKey()
            | "DrawCandidates" >> beam.ParDo(_DrawCandidates(self._catalog_directory, config))
        )


class CountAskable(beam.PTransform):
    """Serialized train rows -> one Askable: what ContextsToAsk could choose from without a budget."""

    def __init__(self, catalog_directory: str, config: LlmConfig):
        super().__init__()
        self._catalog_directory = catalog_directory
        self._config = config

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return (
            rows
            | "ParsePositiveRows" >> beam.ParDo(ParsePositiveRows(self._config))
            | "CountRows" >> beam.ParDo(_CountRow(self._catalog_directory, self._config))
            | "OfUser" >> beam.CombinePerKey(_sum_pairs)
            | "AddUser" >> beam.MapTuple(_with_user)
            | "OfAllUsers" >> beam.CombineGlobally(_sum_askable)
        )


class ReadItemsOfUsers(beam.PTransform):
    """The files of a prefix beside the catalog -> (user, item); none if a catalog of another source has no such file.

    See NON_POSITIVES_PREFIX and EARLIER_POSITIVES_PREFIX of components.catalog.
    """

    def __init__(self, catalog_directory: str, prefix: str):
        super().__init__()
        self._pattern = os.path.join(catalog_directory, prefix) + "-*"
        self._escaped = os.path.join(glob.escape(catalog_directory), prefix) + "-*"

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        found = artifact_files.matches(self._escaped)
        lines = pbegin | "Read" >> (beam.io.ReadFromText(self._pattern) if found else beam.Create([]))
        return lines | "Decode" >> beam.Map(_decode_pair)


def _decode_pair(line: str) -> tuple[str, str]:
    user_id, item_id = json.loads(line)
    return user_id, item_id


class ParsePositiveRows(beam.DoFn):
    """Serialized row -> PositiveRow where the label is 1."""

    def __init__(self, config: LlmConfig):
        self._about_user = config.prompt_features.user

    def process(self, row: bytes) -> Iterator[PositiveRow]:
        columns = Example.FromString(row).features.feature
        if columns[features.LABEL].int64_list.value[0] != 1:
            return
        history = columns[features.HISTORY_ITEM_IDS].bytes_list.value
        yield PositiveRow(
            user_id=columns[features.USER_ID].bytes_list.value[0].decode(),
            position=columns[features.POSITION].int64_list.value[0],
            history_item_ids=tuple(i.decode() for i in history if i),
            history_length=columns[features.HISTORY_LENGTH].int64_list.value[0],
            item_id=columns[features.ITEM_ID].bytes_list.value[0].decode(),
            user_positives=columns[features.USER_TRAIN_COUNT].int64_list.value[0],
            timestamp=columns[features.TIMESTAMP].int64_list.value[0] if features.TIMESTAMP in columns else 0,
            about_user=tuple(_about(name, columns[name]) for name in self._about_user if _about(name, columns[name])),
        )


def _about(name: str, column: Any) -> str:
    """`name: value` of a declared feature, values separated by commas; empty if it is missing."""
    texts = [text.decode() for text in column.bytes_list.value if text]
    numbers = [number for number in column.float_list.value if not math.isnan(number)]
    return feature_text(name, [*texts, *numbers])


class WithCatalog(beam.DoFn):
    """Reads the catalog once per worker."""

    def __init__(self, catalog_directory: str, config: LlmConfig):
        self._catalog_directory = catalog_directory
        self._config = config
        self._catalog: dict[str, Item] = {}

    def setup(self) -> None:
        self._catalog = read_catalog(self._catalog_directory)


class _AssignStratum(WithCatalog):
    """PositiveRow -> ((stratum, user), its priority and what choosing takes) if the LLM or a table can score it."""

    def setup(self) -> None:
        super().setup()
        self._records = records_to_replay(self._config)

    def process(self, row: PositiveRow):
        if can_be_scored(row, self._catalog, history_lag=self._config.history_lag) and self._is_wanted(row):
            name = stratum(row, self._catalog, self._config.candidates)
            fraction = seeded_fraction(self._config.seed, "context", row.user_id, row.position)
            latest = -row.position if self._config.candidates.contexts == "latest" else 0
            # The position breaks ties, so that equal hashes cannot let the order of rows decide.
            yield (name, row.user_id), (latest, fraction, row.position, can_calibrate(row, self._catalog))

    def _is_wanted(self, row: PositiveRow) -> bool:
        if self._records is None:
            return True
        record = self._records.get(context_id(row, self._config.seed))
        return record is not None and is_record_of(record, row)


class _CountRow(WithCatalog):
    """PositiveRow -> (user, (1, 0)) if its history is short, else (user, (0, 1)); none if no prompt can be made."""

    def process(self, row: PositiveRow) -> Iterator[tuple[str, tuple[int, int]]]:
        if can_be_scored(row, self._catalog, history_lag=self._config.history_lag):
            short = row.history_length <= self._config.candidates.short_history_max
            yield row.user_id, (int(short), int(not short))


def _sum_pairs(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    short = long = 0
    for first, second in pairs:
        short, long = short + first, long + second
    return short, long


def _with_user(_: str, contexts: tuple[int, int]) -> Askable:
    return Askable(users=1, short_history_contexts=contexts[0], long_history_contexts=contexts[1])


def _sum_askable(parts: Iterable[Askable]) -> Askable:
    users = short = long = 0
    for part in parts:
        users, short, long = users + part.users, short + part.short_history_contexts, long + part.long_history_contexts
    return Askable(users=users, short_history_contexts=short, long_history_contexts=long)


def _by_round(element: tuple[tuple[str, str], Iterable[tuple]]) -> Iterator[tuple[str, tuple]]:
    """All users' first contexts rank before any user's second."""
    (name, user_id), prioritized = element
    first = heapq.nsmallest(MAX_CONTEXTS_PER_USER, prioritized)
    for round_number, (_, fraction, position, able) in enumerate(first):
        yield name, (round_number, fraction, user_id, position, able)


def _choose_contexts(
    contexts: int, by_stratum: dict[str, list[tuple]], config: LlmConfig
) -> Iterator[tuple[str, list[tuple[int, str, bool]]]]:
    """Number of contexts within the budget, output of _by_round by stratum -> (user, chosen rows), a row as its
    position, its stratum, and whether it is a calibration context.
    """
    ordered = {name: [RowKey(*ranked[2:]) for ranked in found] for name, found in by_stratum.items()}
    chosen = choose_contexts(ordered, contexts, config.candidates)
    calibration = choose_calibration(chosen, config.candidates, config.seed)
    of_users: dict[str, list[tuple[int, str, bool]]] = {}
    for row, name in chosen:
        of_users.setdefault(row.user_id, []).append((row.position, name, row in calibration))
    yield from of_users.items()


def _of_chosen_users(
    row: PositiveRow, chosen: dict[str, list[tuple[int, str, bool]]]
) -> Iterator[tuple[str, tuple[str, bool, bytes]]]:
    """(user, (stratum, whether it is a calibration context, PositiveRow)); the stratum is empty for a row not chosen.

    A PositiveRow as bytes: a runner may keep all groups in memory, as the objects that they hold.
    """
    if row.user_id in chosen:
        places = {position: (name, calibration) for position, name, calibration in chosen[row.user_id]}
        name, calibration = places.get(row.position, ("", False))
        yield row.user_id, (name, calibration, row.to_json().encode())


def _is_of_chosen_user(earlier: tuple[str, str], chosen: Mapping[str, Any]) -> bool:
    return earlier[0] in chosen


def candidate_pools(catalog: Mapping[str, Item], config: LlmConfig) -> CandidatePools:
    """The pools of a configuration.

    Raises:
        LlmError: the item vectors cannot be read.
    """
    file = config.item_vectors_file if config.candidates.similar_per_context else None
    return CandidatePools(catalog, config.candidates, None if file is None else vectors_in_file(file))


class _DrawCandidates(WithCatalog):
    """A user with all rows, and the positives that no row names -> Contexts of the chosen rows."""

    def setup(self) -> None:
        super().setup()
        self._pools = candidate_pools(self._catalog, self._config)
        self._records = records_to_replay(self._config)
        self._size = min(self._config.candidates.per_context, self._config.planned_pairs)

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Context]:
        _, joined = element
        items: set[str] = set(joined[_EARLIER])
        chosen = []
        last_position = 0
        for name, calibration, encoded in joined[_ROWS]:
            row = PositiveRow.from_json(encoded)
            items.update((row.item_id, *row.history_item_ids))
            last_position = max(last_position, row.position)
            if name:
                chosen.append((row, name, calibration))
        for row, name, calibration in chosen:
            user_id = row.user_id if self._config.store_user_ids else ""
            if self._records is None:
                context = self._pools.context(
                    row,
                    name=name,
                    calibration=calibration,
                    interacted=items,
                    size=self._size,
                    seed=self._config.seed,
                    last_position=last_position,
                    user_id=user_id,
                )
            else:
                record = self._records[context_id(row, self._config.seed)]
                candidates = candidates_of(record, self._catalog, items)[: self._size]
                context = context_of(
                    record, row, candidates, last_position=last_position, seed=self._config.seed, user_id=user_id
                )
                context = dataclasses.replace(
                    context,
                    user_positives=record.user_positives,
                    last_position=record.last_position,
                    is_outdated=record.is_outdated(last_position=last_position, user_positives=row.user_positives),
                )
            # One candidate alone can never form a pair.
            if len(context.candidates) > 1:
                yield context

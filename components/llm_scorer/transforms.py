"""The scorer's Beam steps: train rows to contexts with candidates, and those to scores and failures."""

import dataclasses
import heapq
from collections.abc import Iterable, Iterator, Mapping

import apache_beam as beam
import tensorflow as tf
from apache_beam.ml.inference.base import RunInference

from components.catalog import Item, read_catalog
from components.llm_scorer.candidates import (
    CandidatePools,
    Moment,
    MomentKey,
    can_be_asked,
    can_probe,
    candidates_of,
    choose_moments,
    choose_probes,
    context_id,
    context_of,
    is_moment_of,
    number_of_contexts,
    seeded_fraction,
    stratum,
)
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Context
from components.llm_scorer.forecast import Askable
from components.llm_scorer.handler import AskAhead, LlmHandler
from components.llm_scorer.outcome import Outcome
from components.llm_scorer.strategies.embedding import vectors_in_file
from components.llm_scorer.strategies.replay import records_to_replay
from models import features

TO_CHOOSE = "to_choose"
TO_DRAW = "to_draw"
SCORES = "scores"
FAILURES = "failures"

MAX_CONTEXTS_PER_USER = 20
"""Contexts of one user in one stratum at most: bounds what is kept of a user with very many rows."""


class ContextsToAsk(beam.PTransform):
    """{TO_CHOOSE: serialized train rows, TO_DRAW: the same} -> Context, within the budget of pairs. See candidates.py.

    The rows come twice, best from two reads: choosing then shuffles keys alone, drawing shuffles rows of chosen users
    alone, and a runner that keeps what is between its stages in memory keeps little of each row.
    """

    def __init__(self, catalog_directory: str, config: LlmConfig):
        super().__init__()
        self._catalog_directory = catalog_directory
        self._config = config

    def expand(self, inputs):
        config = self._config
        contexts = number_of_contexts(config.budget.pairs, config.candidates.per_context)
        by_stratum = (
            inputs[TO_CHOOSE]
            | "ParseMoments" >> beam.ParDo(ParseMoments())
            | "AssignStratum" >> beam.ParDo(_AssignStratum(self._catalog_directory, config))
            | "ByUser" >> beam.GroupByKey()
            | "UsersFirst" >> beam.FlatMap(_by_round)
            | "FirstOfStratum" >> beam.combiners.Top.SmallestPerKey(contexts)
        )
        chosen = (
            inputs[TO_CHOOSE].pipeline
            | "Once" >> beam.Create([contexts])
            | "ChooseMoments" >> beam.FlatMap(_choose_moments, beam.pvalue.AsDict(by_stratum), config)
        )
        return (
            inputs[TO_DRAW]
            | "ParseMomentsAgain" >> beam.ParDo(ParseMoments())
            | "OfChosenUsers" >> beam.FlatMap(_of_chosen_users, beam.pvalue.AsDict(chosen))
            | "JoinUser" >> beam.GroupByKey()
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
            | "ParseMoments" >> beam.ParDo(ParseMoments())
            | "CountMoments" >> beam.ParDo(_CountMoment(self._catalog_directory, self._config))
            | "OfUser" >> beam.CombinePerKey(_sum_pairs)
            | "AddUser" >> beam.MapTuple(_with_user)
            | "OfAllUsers" >> beam.CombineGlobally(_sum_askable)
        )


class AskLlm(beam.PTransform):
    """Context -> {SCORES: serialized ScoreRecord, FAILURES: JSON lines}; each candidate ends in exactly one of them."""

    def __init__(self, handler: LlmHandler):
        super().__init__()
        self._handler = handler

    def expand(self, contexts: beam.PCollection):
        return (
            contexts
            | "AskAhead" >> beam.ParDo(AskAhead(self._handler))
            | "RunInference" >> RunInference(self._handler)
            | "Part" >> beam.ParDo(_Part()).with_outputs(SCORES, FAILURES)
        )


class ParseMoments(beam.DoFn):
    """Serialized row -> Moment where the label is 1."""

    def process(self, row: bytes) -> Iterator[Moment]:
        columns = tf.train.Example.FromString(row).features.feature
        if columns[features.LABEL].int64_list.value[0] != 1:
            return
        history = columns[features.HISTORY_ITEM_IDS].bytes_list.value
        yield Moment(
            user_id=columns[features.USER_ID].bytes_list.value[0].decode(),
            position=columns[features.POSITION].int64_list.value[0],
            history_item_ids=tuple(i.decode() for i in history if i),
            history_length=columns[features.HISTORY_LENGTH].int64_list.value[0],
            item_id=columns[features.ITEM_ID].bytes_list.value[0].decode(),
            user_positives=columns[features.USER_TRAIN_COUNT].int64_list.value[0],
        )


class WithCatalog(beam.DoFn):
    """Reads the catalogue once a worker."""

    def __init__(self, catalog_directory: str, config: LlmConfig):
        self._catalog_directory = catalog_directory
        self._config = config
        self._catalog: dict[str, Item] = {}

    def setup(self) -> None:
        self._catalog = read_catalog(self._catalog_directory)


class _AssignStratum(WithCatalog):
    """Moment -> ((stratum, user), its priority and what choosing takes) where it can be asked about, or replayed."""

    def setup(self) -> None:
        super().setup()
        self._records = records_to_replay(self._config)

    def process(self, moment: Moment):
        if can_be_asked(moment, self._catalog, history_lag=self._config.history_lag) and self._is_wanted(moment):
            name = stratum(moment, self._catalog, self._config.candidates)
            fraction = seeded_fraction(self._config.seed, "context", moment.user_id, moment.position)
            latest = -moment.position if self._config.candidates.moments == "latest" else 0
            # The position breaks ties, so that equal hashes cannot let the order of rows decide.
            yield (name, moment.user_id), (latest, fraction, moment.position, can_probe(moment, self._catalog))

    def _is_wanted(self, moment: Moment) -> bool:
        if self._records is None:
            return True
        record = self._records.get(context_id(moment, self._config.seed))
        return record is not None and is_moment_of(record, moment)


class _CountMoment(WithCatalog):
    """Moment -> (user, (1, 0)) where it is cold, (user, (0, 1)) where it is warm; none where it cannot be asked."""

    def process(self, moment: Moment) -> Iterator[tuple[str, tuple[int, int]]]:
        if can_be_asked(moment, self._catalog, history_lag=self._config.history_lag):
            cold = moment.history_length <= self._config.candidates.cold_max_history
            yield moment.user_id, (int(cold), int(not cold))


def _sum_pairs(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    cold = warm = 0
    for first, second in pairs:
        cold, warm = cold + first, warm + second
    return cold, warm


def _with_user(_: str, contexts: tuple[int, int]) -> Askable:
    return Askable(users=1, cold_contexts=contexts[0], warm_contexts=contexts[1])


def _sum_askable(parts: Iterable[Askable]) -> Askable:
    users = cold = warm = 0
    for part in parts:
        users, cold, warm = users + part.users, cold + part.cold_contexts, warm + part.warm_contexts
    return Askable(users=users, cold_contexts=cold, warm_contexts=warm)


def _by_round(element: tuple[tuple[str, str], Iterable[tuple]]) -> Iterator[tuple[str, tuple]]:
    """All users' first contexts rank before any user's second."""
    (name, user_id), prioritised = element
    first = heapq.nsmallest(MAX_CONTEXTS_PER_USER, prioritised)
    for round_number, (_, fraction, position, able) in enumerate(first):
        yield name, (round_number, fraction, user_id, position, able)


def _choose_moments(
    contexts: int, by_stratum: dict[str, list[tuple]], config: LlmConfig
) -> Iterator[tuple[str, list[tuple[int, str, bool]]]]:
    """The budget's number of contexts, and what _by_round made, by stratum -> (user, chosen moments: position, stratum,
    whether it is a probe).
    """
    ordered = {name: [MomentKey(*ranked[2:]) for ranked in found] for name, found in by_stratum.items()}
    chosen = choose_moments(ordered, contexts, config.candidates)
    probes = choose_probes(chosen, config.candidates, config.seed)
    of_users: dict[str, list[tuple[int, str, bool]]] = {}
    for moment, name in chosen:
        of_users.setdefault(moment.user_id, []).append((moment.position, name, moment in probes))
    yield from of_users.items()


def _of_chosen_users(
    moment: Moment, chosen: dict[str, list[tuple[int, str, bool]]]
) -> Iterator[tuple[str, tuple[str, bool, bytes]]]:
    """(user, (stratum, whether it is a probe, Moment)); the stratum is empty where the moment was not chosen.

    A Moment as bytes: a runner may keep all groups in memory, as the objects that they hold.
    """
    if moment.user_id in chosen:
        places = {position: (name, probe) for position, name, probe in chosen[moment.user_id]}
        name, probe = places.get(moment.position, ("", False))
        yield moment.user_id, (name, probe, moment.to_json().encode())


def candidate_pools(catalog: Mapping[str, Item], config: LlmConfig) -> CandidatePools:
    """The pools of a configuration.

    Raises:
        LlmError: llm.embedding_file is needed and cannot be read.
    """
    by_vector = config.candidates.similar_per_context and config.embedding_file is not None
    return CandidatePools(catalog, config.candidates, vectors_in_file(config) if by_vector else None)


class _DrawCandidates(WithCatalog):
    """A user with all moments -> Contexts of the chosen ones."""

    def setup(self) -> None:
        super().setup()
        self._pools = candidate_pools(self._catalog, self._config)
        self._records = records_to_replay(self._config)
        self._size = min(self._config.candidates.per_context, self._config.budget.pairs)

    def process(self, element: tuple[str, Iterable[tuple[str, bool, bytes]]]) -> Iterator[Context]:
        _, found = element
        items: set[str] = set()
        chosen = []
        for name, probe, encoded in found:
            moment = Moment.from_json(encoded)
            items.update((moment.item_id, *moment.history_item_ids))
            if name:
                chosen.append((moment, name, probe))
        for moment, name, probe in chosen:
            user_id = moment.user_id if self._config.store_user_ids else ""
            if self._records is None:
                context = self._pools.context(
                    moment,
                    name=name,
                    probe=probe,
                    chosen_anywhere=items,
                    size=self._size,
                    seed=self._config.seed,
                    user_id=user_id,
                )
            else:
                record = self._records[context_id(moment, self._config.seed)]
                candidates = candidates_of(record, self._catalog, items)[: self._size]
                context = context_of(record, moment, candidates, seed=self._config.seed, user_id=user_id)
                context = dataclasses.replace(context, scored_user_positives=record.user_positives)
            # One candidate alone can never form a pair.
            if len(context.candidates) > 1:
                yield context


class _Part(beam.DoFn):
    """Outcome -> at most one record as SCORES, and lines as FAILURES."""

    def process(self, outcome: Outcome):
        for line in outcome.failures:
            yield beam.pvalue.TaggedOutput(FAILURES, line)
        if outcome.record is not None:
            yield beam.pvalue.TaggedOutput(SCORES, outcome.record)

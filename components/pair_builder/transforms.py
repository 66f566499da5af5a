"""PairBuilder's Beam part."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from sllmr.components.catalog import ItemFeatures, read_catalog
from sllmr.components.pair_builder.config import PairConfig
from sllmr.components.pair_builder.counts import FILE_NAME, PairCounts
from sllmr.components.pair_builder.pairs import (
    pair_values,
    select_pairs,
)
from sllmr.components.scores import ScoreRecord, context_id
from sllmr.models import features
from sllmr.models.declared_features import INTERACTION, USER
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes, pair_features
from sllmr.models.tf_examples import Example, to_example, values_of

COUNTS = "counts"

CONTEXTS = "contexts"
CONTEXTS_WITHOUT_PAIR = "contexts_without_pair"


SCORES, ROWS = "scores", "rows"
"""Keys of the inputs of JoinUsers."""


class JoinUsers(beam.PTransform):
    """{SCORES: serialized ScoreRecords, ROWS: serialized train rows} -> (serialized ScoreRecord with its user_id,
    context_values of its row).

    The score table holds no user ids unless llm.store_user_ids is set, but training needs to know which pairs and rows
    belong to one user.

    Args:
        seed: llm.seed.
        sizes: with the declared features.
    """

    def __init__(self, seed: int, sizes: FeatureSizes):
        super().__init__()
        self._arguments = (seed, sizes)

    def expand(self, inputs: Mapping[str, beam.PCollection]) -> beam.PCollection:
        return (
            {
                SCORES: inputs[SCORES] | "KeyScores" >> beam.Map(lambda s: (ScoreRecord.parse(s).context_id, s)),
                ROWS: inputs[ROWS] | "KeyRows" >> beam.FlatMap(user_of_context, *self._arguments),
            }
            | "Join" >> beam.CoGroupByKey()
            | "AddUser" >> beam.FlatMapTuple(_with_user)
        )


def user_of_context(row: bytes, seed: int, sizes: FeatureSizes) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Yields (context id, (user id, context_values)) for a positive train row, and nothing for any other row."""
    example = Example.FromString(row)
    columns = example.features.feature
    if columns[features.LABEL].int64_list.value[0] == 1:
        user_id = columns[features.USER_ID].bytes_list.value[0].decode()
        context = context_id(user_id, columns[features.POSITION].int64_list.value[0], seed)
        yield context, (user_id, context_values(example, sizes))


def context_values(row: Any, sizes: FeatureSizes) -> dict[str, Any]:
    """The time of a row and its declared features of user and interaction, by name; empty without declared features."""
    if not sizes.declared:
        return {}
    names = {features.TIMESTAMP, *(f.name for f in sizes.of_tables(USER, INTERACTION))}
    return values_of(row, [f for f in features.row_features(sizes) if f.name in names])


def _with_user(context: str, joined: Mapping[str, Iterable]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    user_id, values = next(iter(joined[ROWS]), (None, {}))
    for serialized in joined[SCORES]:
        if user_id is None:
            raise UserError(
                f"every score must be of a positive train row, got scores of the context {context}, which no row has; "
                "score again with the same interactions and llm.seed: cached responses cost nothing"
            )
        yield dataclasses.replace(ScoreRecord.parse(serialized), user_id=user_id).serialize(), values


class BuildPairs(beam.DoFn):
    """Output of JoinUsers -> serialized tf.Examples of `pair_features`, and a Counter per context, tagged COUNTS."""

    def __init__(self, config: PairConfig, sizes: FeatureSizes, catalog_directory: str):
        self._config = config
        self._sizes = sizes
        self._catalog_directory = catalog_directory

    def setup(self) -> None:
        self._catalog = ItemFeatures(read_catalog(self._catalog_directory).values(), self._sizes)
        self._features = pair_features(self._sizes)

    def process(self, element: tuple[bytes, dict[str, Any]]) -> Iterator[Any]:
        record, context = ScoreRecord.parse(element[0]), element[1]
        selection = select_pairs(record, self._config)
        counts = selection.counts | Counter({CONTEXTS: 1, CONTEXTS_WITHOUT_PAIR: int(not selection.pairs)})
        yield beam.pvalue.TaggedOutput(COUNTS, counts)
        for pair in selection.pairs:
            values = pair_values(record, pair, self._catalog, context)
            yield to_example(values, self._features).SerializeToString(deterministic=True)


class WriteCounts(beam.PTransform):
    """Counters -> their sum as a PairCounts in a directory."""

    def __init__(self, directory: str):
        super().__init__()
        self._directory = directory

    def expand(self, counts: beam.PCollection) -> Any:
        return (
            counts
            | "Sum" >> beam.CombineGlobally(_sum)
            | "Encode" >> beam.Map(_to_json)
            | "Write" >> beam.io.WriteToText(os.path.join(self._directory, FILE_NAME), shard_name_template="")
        )


def _sum(counters: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _to_json(counts: Mapping[str, int]) -> str:
    return PairCounts.model_validate(counts).model_dump_json()

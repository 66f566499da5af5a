"""PairBuilder's Beam part."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from components.catalog import ItemFeatures, read_catalog
from components.pair_builder.config import PairConfig
from components.pair_builder.pairs import CANDIDATE_PAIRS, DROPPED, LABELLED, PAIRS, pair_values, select_pairs
from components.scores import ScoreRecord
from models.features import FeatureSizes, pair_features, to_example

COUNTS = "counts"
COUNTS_FILE = "pair_counts.json"
"""Beside the pairs' split: what became of each two candidates of a context; see pairs.py."""

CONTEXTS = "contexts"
CONTEXTS_WITHOUT_PAIR = "contexts_without_pair"


class BuildPairs(beam.DoFn):
    """Serialized ScoreRecord -> serialized tf.Examples of `pair_features`, and one Counter tagged COUNTS."""

    def __init__(self, config: PairConfig, sizes: FeatureSizes, catalog_directory: str):
        self._config = config
        self._sizes = sizes
        self._catalog_directory = catalog_directory

    def setup(self) -> None:
        self._catalog = ItemFeatures(read_catalog(self._catalog_directory).values(), self._sizes)
        self._features = pair_features(self._sizes)

    def process(self, element: bytes) -> Iterator[Any]:
        record = ScoreRecord.parse(element)
        selection = select_pairs(record, self._config)
        counts = selection.counts | Counter({CONTEXTS: 1, CONTEXTS_WITHOUT_PAIR: int(not selection.pairs)})
        yield beam.pvalue.TaggedOutput(COUNTS, counts)
        for pair in selection.pairs:
            values = pair_values(record, pair, self._catalog)
            yield to_example(values, self._features).SerializeToString(deterministic=True)


class WriteCounts(beam.PTransform):
    """Counters -> their sum as COUNTS_FILE in a directory."""

    def __init__(self, directory: str):
        super().__init__()
        self._directory = directory

    def expand(self, counts: beam.PCollection) -> Any:
        return (
            counts
            | "Sum" >> beam.CombineGlobally(_sum)
            | "Encode" >> beam.Map(_to_json)
            | "Write" >> beam.io.WriteToText(os.path.join(self._directory, COUNTS_FILE), shard_name_template="")
        )


def _sum(counters: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _to_json(counts: Mapping[str, int]) -> str:
    # Beam's coder has made a plain dict of the Counter, which misses what it never counted.
    names = (CONTEXTS, CONTEXTS_WITHOUT_PAIR, CANDIDATE_PAIRS, PAIRS, LABELLED, *DROPPED)
    return json.dumps({name: counts.get(name, 0) for name in names})

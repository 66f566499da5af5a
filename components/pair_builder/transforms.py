"""PairBuilder's Beam part."""

from collections.abc import Iterator

import apache_beam as beam

from components.catalog import ItemFeatures, read_catalog
from components.pair_builder.config import PairConfig
from components.pair_builder.pairs import pair_values, select_pairs
from components.scores import ScoreRecord
from models.features import FeatureSizes, pair_features, to_example

COUNTER_NAMESPACE = "pair_builder"


class BuildPairs(beam.DoFn):
    """Serialized ScoreRecord -> serialized tf.Examples of `pair_features`; contexts without a pair are counted."""

    def __init__(self, config: PairConfig, sizes: FeatureSizes, catalog_directory: str):
        self._config = config
        self._sizes = sizes
        self._catalog_directory = catalog_directory
        self._contexts = beam.metrics.Metrics.counter(COUNTER_NAMESPACE, "contexts")
        self._without_pair = beam.metrics.Metrics.counter(COUNTER_NAMESPACE, "contexts_without_pair")
        self._pairs = beam.metrics.Metrics.counter(COUNTER_NAMESPACE, "pairs")
        self._probes = beam.metrics.Metrics.counter(COUNTER_NAMESPACE, "labelled_pairs")

    def setup(self) -> None:
        self._catalog = ItemFeatures(read_catalog(self._catalog_directory).values(), self._sizes)
        self._features = pair_features(self._sizes)

    def process(self, element: bytes) -> Iterator[bytes]:
        record = ScoreRecord.parse(element)
        pairs = select_pairs(record, self._config)
        self._contexts.inc()
        self._pairs.inc(len(pairs))
        self._probes.inc(sum(pair.probe_label >= 0 for pair in pairs))
        if not pairs:
            self._without_pair.inc()
        for pair in pairs:
            values = pair_values(record, pair, self._catalog)
            yield to_example(values, self._features).SerializeToString(deterministic=True)

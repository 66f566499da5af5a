"""Raw values -> indices inside a served model."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from sllmr.models import features
from sllmr.models.declared_features import NUMERIC, TrainNumbers
from sllmr.models.declared_indices import bucket_of, declared_indices, hash_of, standardized_by
from sllmr.models.features import FeatureSizes
from sllmr.models.serving.line_table import line_table

Vocabularies = Mapping[str, Sequence[bytes]]
"""By key of models.features.INDEXED and name of a declared feature: the known values, number n for index n + 1."""


class IndexLookup(tf.Module):
    """Computes the indices that models.preprocessing computes, from one table for each vocabulary.

    Transform's own graph is not served: its tables' names contain the folder in which it was made, and it holds a
    vocabulary once for each feature that reads it.

    Args:
        vocabularies: those of the features that the model reads.
        directory: where the vocabularies are written; it must exist until the model is saved.
        sizes: with the declared features.
        numbers: statistics of the numeric declared features, by name.
    """

    def __init__(
        self,
        vocabularies: Vocabularies,
        directory: str,
        sizes: FeatureSizes | None = None,
        numbers: Mapping[str, TrainNumbers] | None = None,
    ):
        super().__init__(name="index_lookup")
        self._sizes = sizes or FeatureSizes()
        self._values = {f.name: f.fixed_size or len(vocabularies[f.name]) for f in self._sizes.declared}
        self._numbers = dict(numbers or {})
        self._tables = {
            name: line_table(values, directory, name, default_value=len(values))
            for name, values in vocabularies.items()
        }

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw features of any shape -> transformed features of the same shape: int64 indices, and float32 standardized
        numbers. Leaves out those whose raw feature is not given."""
        built_in = {
            index: tf.where(tf.equal(raw[name], ""), tf.constant(0, tf.int64), table.lookup(raw[name]) + 1)
            for vocabulary, table in self._tables.items()
            for name, index in features.INDEXED.get(vocabulary, {}).items()
            if name in raw
        }
        return built_in | self._declared(raw)

    def _declared(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        known_number, standardize = {}, {}
        for f in self._sizes.declared:
            if f.has_vocabulary:
                known_number[f.name] = self._tables[f.name].lookup
            elif f.kind != NUMERIC:
                known_number[f.name] = hash_of(self._values[f.name])
            elif f.is_standardized:
                numbers = self._numbers[f.name]
                standardize[f.name] = standardized_by(tf.constant(numbers.mean), tf.constant(numbers.deviation))
            else:
                known_number[f.name] = bucket_of(tf.constant(self._numbers[f.name].boundaries, tf.float32))
        return declared_indices(raw, self._sizes, known_number, self._values, standardize)

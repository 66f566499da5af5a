"""LeakageGuard's Beam part. What is held in memory at once: one user's rows, the train counts, the catalog."""

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsSingleton

from sllmr.components.catalog import read_catalog
from sllmr.components.leakage_guard import checks
from sllmr.components.leakage_guard.checks import TRAIN, Leak, SeenPair, SeenRow
from sllmr.components.leakage_guard.report import FILE_NAME, MOST_NAMED, LeakageReport, LeaksOfKind
from sllmr.components.scores import ScoreRecord, context_id
from sllmr.models import features
from sllmr.models.tf_examples import Example

PAIRS, SCORES = "pairs", "scores"
"""Beside the names of splits, keys of what FindLeaks takes; either may be absent."""


class FindLeaks(beam.PTransform):
    """{split: serialized rows, PAIRS: serialized pairs, SCORES: serialized ScoreRecords} -> one LeakageReport.

    Args:
        catalog_directory: of the ItemCatalog.
        vocabularies: the values of those that Transform wrote, by name: a key of models.features.INDEXED or a declared
            feature.
        sizes: L, C and the declared features.
        seed: llm.seed, which the ids of scoring contexts depend on.
    """

    def __init__(
        self,
        catalog_directory: str,
        vocabularies: Mapping[str, Sequence[bytes]],
        sizes: features.FeatureSizes,
        seed: int,
    ):
        super().__init__()
        self._catalog_directory = catalog_directory
        self._vocabularies = vocabularies
        columns = {name: tuple(group) for name, group in features.INDEXED.items()}
        columns |= {f.name: (f.name, f.history_name) if f.history else (f.name,) for f in sizes.declared}
        self._columns = {name: columns[name] for name in vocabularies}
        self._seed = seed

    def expand(self, inputs: Any) -> beam.PCollection:
        splits = [name for name in inputs if name not in (PAIRS, SCORES)]
        pipeline = inputs[TRAIN].pipeline
        rows = [inputs[split] | f"Parse_{split}" >> beam.Map(parse_row, split) for split in splits] | (
            "AllRows" >> beam.Flatten()
        )
        counts = AsSingleton(
            rows
            | "TrainPositives" >> beam.FlatMap(_train_positive)
            | "CountByItem" >> beam.combiners.Count.PerElement()
            | "TrainCounts" >> beam.combiners.ToDict()
        )
        of_users = {"rows": rows}
        if PAIRS in inputs:
            of_users[PAIRS] = inputs[PAIRS] | "ParsePairs" >> beam.Map(parse_pair)
        leaks = [
            of_users | "ByUser" >> beam.CoGroupByKey() | "LeaksOfUsers" >> beam.FlatMap(_leaks_of_user, counts),
            pipeline
            | "Catalog" >> beam.Create([self._catalog_directory])
            | "LeaksOfCatalog" >> beam.FlatMap(_leaks_of_catalog, counts),
        ]
        checked = [
            rows | "CountRows" >> beam.combiners.Count.Globally() | "NameRows" >> beam.Map(lambda n: ("rows", n)),
            pipeline | "Sizes" >> beam.Create(list(_sizes(self._catalog_directory, self._vocabularies).items())),
        ]
        seen = inputs[TRAIN] | "SeenValues" >> beam.CombineGlobally(_SeenValues(self._columns))
        leaks.append(
            pipeline
            | "Vocabularies" >> beam.Create([(name, list(values)) for name, values in self._vocabularies.items()])
            | "LeaksOfVocabularies" >> beam.FlatMap(_leaks_of_vocabulary, AsSingleton(seen))
        )
        for name in (PAIRS, SCORES):
            if name in inputs:
                number = inputs[name] | f"Count_{name}" >> beam.combiners.Count.Globally()
                checked.append(number | f"Name_{name}" >> beam.Map(lambda n, name=name: (name, n)))
        if SCORES in inputs:
            joined = {
                SCORES: inputs[SCORES] | "ParseScores" >> beam.Map(_parse_scores),
                "rows": rows | "ContextOfRow" >> beam.FlatMap(_with_context_id, self._seed),
            }
            leaks.append(
                joined | "ByContext" >> beam.CoGroupByKey() | "LeaksOfScores" >> beam.FlatMap(_leaks_of_scores)
            )
        found = leaks | "AllLeaks" >> beam.Flatten() | "ByKind" >> beam.Map(_by_kind)
        return (
            pipeline
            | "Start" >> beam.Create([None])
            | "Report"
            >> beam.Map(
                _report,
                AsDict(checked | "AllCounts" >> beam.Flatten()),
                AsDict(found | "CountByKind" >> beam.combiners.Count.PerKey()),
                AsDict(found | "FirstOfKind" >> beam.combiners.Top.SmallestPerKey(MOST_NAMED)),
            )
        )


class WriteLeakageReport(beam.DoFn):
    """Writes a LeakageReport to a directory."""

    def __init__(self, directory: str):
        self._directory = directory

    def process(self, report: LeakageReport) -> None:
        """Writes leakage.json."""
        os.makedirs(self._directory, exist_ok=True)
        with open(os.path.join(self._directory, FILE_NAME), "w", encoding="utf-8") as file:
            file.write(json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


def parse_row(serialized: bytes, split: str) -> tuple[str, SeenRow]:
    """The user, and the row, of a serialized tf.Example of models.features.row_features."""
    columns = _Columns(serialized)
    row = SeenRow(
        split=split,
        item_id=columns.text(features.ITEM_ID),
        label=columns.number(features.LABEL),
        position=columns.number(features.POSITION),
        history=columns.texts(features.HISTORY_ITEM_IDS),
        history_length=columns.number(features.HISTORY_LENGTH),
        user_train_count=columns.number(features.USER_TRAIN_COUNT),
        item_train_count=columns.number(features.ITEM_TRAIN_COUNT),
    )
    return columns.text(features.USER_ID), row


def parse_pair(serialized: bytes) -> tuple[str, SeenPair]:
    """The user, and the pair, of a serialized tf.Example of models.features.pair_features."""
    columns = _Columns(serialized)
    preferred, other = features.PREFERRED, features.OTHER
    pair = SeenPair(
        history=columns.texts(features.HISTORY_ITEM_IDS),
        history_length=columns.number(features.HISTORY_LENGTH),
        item_ids=(columns.text(preferred + features.ITEM_ID), columns.text(other + features.ITEM_ID)),
        item_train_counts=(
            columns.number(preferred + features.ITEM_TRAIN_COUNT),
            columns.number(other + features.ITEM_TRAIN_COUNT),
        ),
        calibration_label=columns.number(features.CALIBRATION_LABEL),
    )
    return columns.text(features.USER_ID), pair


def _parse_scores(serialized: bytes) -> tuple[str, tuple[tuple[str, ...], str]]:
    record = ScoreRecord.parse(serialized)
    return record.context_id, (record.history_item_ids, record.target_item_id)


class _Columns:
    """The values of a serialized tf.Example."""

    def __init__(self, serialized: bytes):
        self._features = Example.FromString(serialized).features.feature

    def text(self, name: str) -> str:
        return self._features[name].bytes_list.value[0].decode()

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(value.decode() for value in self._features[name].bytes_list.value if value)

    def number(self, name: str) -> int:
        return self._features[name].int64_list.value[0]


def _train_positive(row: tuple[str, Any]) -> Iterator[str]:
    if row[1].split == TRAIN and row[1].label:
        yield row[1].item_id


def _with_context_id(row: tuple[str, Any], seed: int) -> Iterator[tuple[str, tuple[str, tuple]]]:
    user_id, seen = row
    if seen.label:
        yield context_id(user_id, seen.position, seed), (user_id, tuple(seen))


class _SeenValues(beam.CombineFn):
    """Serialized rows -> by vocabulary the set of their values. A row is parsed once, and no value travels alone.

    Args:
        columns: by vocabulary, the raw columns whose values it holds.
    """

    def __init__(self, columns: Mapping[str, Sequence[str]]):
        self._columns = columns

    def create_accumulator(self) -> dict[str, set[bytes]]:
        return {name: set() for name in self._columns}

    def add_input(self, seen: dict[str, set[bytes]], serialized: bytes) -> dict[str, set[bytes]]:
        row = Example.FromString(serialized).features.feature
        for name, columns in self._columns.items():
            for column in columns:
                seen[name].update(row[column].bytes_list.value)
        return seen

    def merge_accumulators(self, accumulators: Iterable[dict[str, set[bytes]]]) -> dict[str, set[bytes]]:
        merged = self.create_accumulator()
        for seen in accumulators:
            for name, values in seen.items():
                merged[name] |= values
        return merged

    def extract_output(self, seen: dict[str, set[bytes]]) -> dict[str, set[bytes]]:
        return seen


def _leaks_of_user(user: tuple[str, Any], train_counts: Mapping[str, int]) -> Iterator[Leak]:
    user_id, joined = user
    rows = [SeenRow(*row) for row in joined["rows"]]
    pairs = [SeenPair(*pair) for pair in joined.get(PAIRS, ())]
    return checks.leaks_of_user(user_id, rows, pairs, train_counts)


def _leaks_of_scores(context: tuple[str, Any]) -> Iterator[Leak]:
    name, joined = context
    rows = [(user_id, SeenRow(*row)) for user_id, row in joined["rows"]]
    return checks.leaks_of_scores(name, list(joined[SCORES]), rows)


def _leaks_of_catalog(directory: str, train_counts: Mapping[str, int]) -> Iterator[Leak]:
    items = read_catalog(directory).values()
    return checks.leaks_of_catalog(((item.item_id, item.train_count, item.is_tail) for item in items), train_counts)


def _leaks_of_vocabulary(
    vocabulary: tuple[str, Sequence[bytes]], seen: Mapping[str, Collection[bytes]]
) -> Iterator[Leak]:
    name, values = vocabulary
    in_train = {value.decode() for value in seen[name]}
    return checks.leaks_of_vocabulary(name, (value.decode() for value in values), in_train)


def _by_kind(leak: Leak) -> tuple[str, str]:
    return leak.kind, leak.text


def _sizes(catalog_directory: str, vocabularies: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
    return {
        "catalog_items": len(read_catalog(catalog_directory)),
        "vocabulary_values": sum(map(len, vocabularies.values())),
    }


def _report(
    _: None, checked: Mapping[str, int], counts: Mapping[Any, int], first: Mapping[Any, Sequence[str]]
) -> LeakageReport:
    leaks = {kind: LeaksOfKind(count=counts[kind], named=list(first[kind])) for kind in sorted(counts)}
    return LeakageReport(checked=dict(checked), leaks=leaks)

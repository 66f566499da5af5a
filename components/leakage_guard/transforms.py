"""LeakageGuard's Beam part. In memory at once: one user's rows, 1,000 rows, the train counts, the catalog."""

import collections
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import tensorflow as tf
from apache_beam.pvalue import AsDict, AsSingleton, TaggedOutput

from sllmr.components.catalog import read_catalog
from sllmr.components.leakage_guard import checks
from sllmr.components.leakage_guard.checks import TRAIN, Leak, SeenPair, SeenRow
from sllmr.components.leakage_guard.report import FILE_NAME, MOST_NAMED, LeakageReport, LeaksOfKind
from sllmr.components.scores import ScoreRecord, context_id
from sllmr.models import artifact_files, features
from sllmr.models.tf_examples import Example

PAIRS, SCORES = "pairs", "scores"
"""Keys of the inputs of FindLeaks, beside the names of the splits; either may be absent."""

_SEEN = "seen"
_ROWS_AT_ONCE = 1000
_NUMBERS = (
    features.LABEL,
    features.POSITION,
    features.HISTORY_LENGTH,
    features.USER_TRAIN_COUNT,
    features.ITEM_TRAIN_COUNT,
)


class FindLeaks(beam.PTransform):
    """{split: serialized rows, PAIRS: serialized pairs, SCORES: serialized ScoreRecords} -> one LeakageReport.

    Args:
        catalog_directory: of the ItemCatalog.
        vocabularies: values of each vocabulary that Transform wrote, by its name: a key of models.features.INDEXED or a
            declared feature.
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
        parsed = [
            inputs[split]
            | f"Batch_{split}" >> beam.BatchElements(min_batch_size=_ROWS_AT_ONCE, max_batch_size=_ROWS_AT_ONCE)
            | f"Parse_{split}"
            >> beam.ParDo(ParseRows(split, self._columns if split == TRAIN else {})).with_outputs(_SEEN, main="rows")
            for split in splits
        ]
        rows = [part["rows"] for part in parsed] | "AllRows" >> beam.Flatten()
        seen = (
            [part[_SEEN] for part in parsed]
            | "AllSeen" >> beam.Flatten()
            | "MergeSeen" >> beam.CombineGlobally(_MergeSeen(self._columns))
        )
        counts = AsSingleton(seen | "TrainCounts" >> beam.Map(_train_counts))
        of_users = rows
        if PAIRS in inputs:
            pairs = inputs[PAIRS] | "ParsePairs" >> beam.Map(_tagged_pair)
            of_users = (rows, pairs) | "RowsAndPairs" >> beam.Flatten()
        leaks = [
            of_users | "ByUser" >> beam.GroupByKey() | "LeaksOfUsers" >> beam.FlatMap(_leaks_of_user, counts),
            pipeline
            | "Catalog" >> beam.Create([self._catalog_directory])
            | "LeaksOfCatalog" >> beam.FlatMap(_leaks_of_catalog, counts),
        ]
        checked = [
            seen | "NameRows" >> beam.Map(_number_of_rows),
            pipeline | "Sizes" >> beam.Create(list(_sizes(self._catalog_directory, self._vocabularies).items())),
        ]
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
        artifact_files.make_folder(self._directory)
        with artifact_files.open(os.path.join(self._directory, FILE_NAME), "w") as file:
            file.write(json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")


class _Seen(NamedTuple):
    """Summary of some rows: their number, and of train rows alone positives by item and values by vocabulary."""

    rows: int
    train_counts: dict[str, int]
    values: dict[str, set[bytes]]


class ParseRows(beam.DoFn):
    """Turns batches of serialized rows into (user, fields of SeenRow), and one _Seen for each batch, tagged _SEEN.

    Args:
        split: whose rows they are.
        columns: by vocabulary, the raw columns whose values it holds; empty unless the split is train.
    """

    def __init__(self, split: str, columns: Mapping[str, Sequence[str]]):
        self._split = split
        self._columns = columns
        texts = {features.USER_ID, features.ITEM_ID, features.HISTORY_ITEM_IDS}
        texts.update(name for group in columns.values() for name in group)
        self._spec = {name: tf.io.RaggedFeature(tf.string) for name in sorted(texts)}
        self._spec |= {name: tf.io.FixedLenFeature((), tf.int64) for name in _NUMBERS}

    def process(self, serialized: Sequence[bytes]) -> Iterator[Any]:
        """Parses one batch at once in TensorFlow."""
        parsed = tf.io.parse_example(serialized, self._spec)
        users, items, history = (
            parsed[name].to_list() for name in (features.USER_ID, features.ITEM_ID, features.HISTORY_ITEM_IDS)
        )
        numbers = zip(*(parsed[name].numpy().tolist() for name in _NUMBERS), strict=True)
        train_counts = collections.Counter[str]()
        for (user,), (item,), texts, (label, *of_row) in zip(users, items, history, numbers, strict=True):
            position, history_length, user_train_count, item_train_count = of_row
            item_id = item.decode()
            # A plain tuple, which Beam's coder for primitives takes without pickling.
            yield (
                user.decode(),
                (
                    self._split,
                    item_id,
                    label,
                    position,
                    tuple([text.decode() for text in texts if text]),
                    history_length,
                    user_train_count,
                    item_train_count,
                ),
            )
            if label and self._split == TRAIN:
                train_counts[item_id] += 1
        values = {
            name: set(tf.unique(tf.concat([parsed[column].flat_values for column in group], axis=0))[0].numpy())
            for name, group in self._columns.items()
        }
        yield TaggedOutput(_SEEN, _Seen(len(serialized), train_counts, values))


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


def _tagged_pair(serialized: bytes) -> tuple[str, tuple]:
    user_id, pair = parse_pair(serialized)
    return user_id, (PAIRS, *pair)


def _train_counts(seen: _Seen) -> dict[str, int]:
    return seen.train_counts


def _number_of_rows(seen: _Seen) -> tuple[str, int]:
    return "rows", seen.rows


def _with_context_id(row: tuple[str, Any], seed: int) -> Iterator[tuple[str, tuple[str, tuple]]]:
    user_id, fields = row
    seen = SeenRow(*fields)
    if seen.label:
        yield context_id(user_id, seen.position, seed), (user_id, fields)


class _MergeSeen(beam.CombineFn):
    """Sums _Seen; `columns` as in ParseRows."""

    def __init__(self, columns: Mapping[str, Sequence[str]]):
        self._columns = columns

    def create_accumulator(self) -> _Seen:
        return _Seen(0, collections.Counter(), {name: set() for name in self._columns})

    def add_input(self, accumulator: _Seen, seen: _Seen) -> _Seen:
        accumulator.train_counts.update(seen.train_counts)
        for name, values in seen.values.items():
            accumulator.values[name].update(values)
        return accumulator._replace(rows=accumulator.rows + seen.rows)

    def merge_accumulators(self, accumulators: Iterable[_Seen]) -> _Seen:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged = self.add_input(merged, accumulator)
        return merged

    def extract_output(self, accumulator: _Seen) -> _Seen:
        return accumulator


def _leaks_of_user(user: tuple[str, Iterable[tuple]], train_counts: Mapping[str, int]) -> Iterator[Leak]:
    user_id, seen = user
    rows, pairs = [], []
    for first, *further in seen:
        if first == PAIRS:
            pairs.append(SeenPair(*further))
        else:
            rows.append(SeenRow(first, *further))
    return checks.leaks_of_user(user_id, rows, pairs, train_counts)


def _leaks_of_scores(context: tuple[str, Any]) -> Iterator[Leak]:
    name, joined = context
    rows = [(user_id, SeenRow(*row)) for user_id, row in joined["rows"]]
    return checks.leaks_of_scores(name, list(joined[SCORES]), rows)


def _leaks_of_catalog(directory: str, train_counts: Mapping[str, int]) -> Iterator[Leak]:
    items = read_catalog(directory).values()
    return checks.leaks_of_catalog(((item.item_id, item.train_count, item.is_tail) for item in items), train_counts)


def _leaks_of_vocabulary(vocabulary: tuple[str, Sequence[bytes]], seen: _Seen) -> Iterator[Leak]:
    name, values = vocabulary
    in_train = {value.decode() for value in seen.values[name]}
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

"""TFRecords -> training batches."""

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from sllmr.models import features
from sllmr.models.errors import UserError
from sllmr.models.features import OTHER, PREFERRED, Feature, FeatureSizes, Role
from sllmr.models.parsing import parsing_spec
from sllmr.models.ranking import PAIRS, ROWS

_ROWS_AT_ONCE = 4096
_BLOCK = 128
_PARALLEL = 4
_AHEAD = 2
_HASHES = 2**62

# At the end of an epoch, tf.data's tuner thread sometimes does not wake up (TensorFlow 2.21), and the next epoch waits
# for it, for seconds. So parallelism is fixed, at every source that is read more than once.
_UNTUNED = tf.data.Options()
_UNTUNED.autotune.enabled = False

Features = Mapping[str, tf.Tensor]
Transform = Callable[[Features], Features]
"""Raw columns -> transformed columns; leaves out those whose raw columns are not given."""


def read_rows(
    patterns: Sequence[str],
    columns: Sequence[Feature],
    *,
    batch_size: int,
    shuffle_buffer: int | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Batches of transformed rows.

    Args:
        patterns: globs of gzipped TFRecords.
        columns: models.features.transformed_features.
        batch_size: rows a batch; the last one may be smaller.
        shuffle_buffer: rows to shuffle from, anew in each epoch; None keeps the order of the files.
        seed: of the shuffling.

    Raises:
        UserError: no file matches.
    """
    rows = records(patterns, "rows")
    if shuffle_buffer is not None:
        rows = rows.shuffle(shuffle_buffer, seed=seed)
    spec = parsing_spec(columns)
    return (
        rows.batch(batch_size)
        .map(lambda serialized: narrow(tf.io.parse_example(serialized, spec)), _PARALLEL)
        .prefetch(_AHEAD)
    )


def load_pairs(patterns: Sequence[str], sizes: FeatureSizes, transform: Transform) -> dict[str, tf.Tensor]:
    """All preference pairs, transformed once and kept in memory: about 0.6 kB a pair at L = 20, C = 4.

    Beam writes pairs as answers come in. Training depends on the order of pairs, so a hash of each pair sorts them.

    Args:
        patterns: globs of gzipped TFRecords of models.features.pair_features, raw strings.
        sizes: L, C and the declared features.
        transform: the transform graph.

    Returns:
        By name, [pairs] + shape, int64 as int32: the context's transformed features with USER_HASH; each item's with
        PREFERRED or OTHER before the name, along with what pair_features adds to an item; CALIBRATION_LABEL.

    Raises:
        UserError: no file matches, or there is no pair in them.
    """
    spec = parsing_spec(features.pair_features(sizes))

    # Plain Python throughout; AutoGraph would warn that it cannot convert the code of the table of features.
    @tf.autograph.experimental.do_not_convert
    def load(serialized: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        pairs = narrow(transform_pairs(tf.io.parse_example(serialized, spec), sizes, transform))
        return tf.strings.to_hash_bucket_fast(serialized, _HASHES), pairs

    loaded = list(records(patterns, "pairs").batch(_ROWS_AT_ONCE).map(load, _PARALLEL))
    if not loaded:
        raise UserError(
            f"training with llm_weight above 0 needs preference pairs, got none in {list(patterns)}; "
            "score more candidates, lower the pair builder's least margin, or set llm_weight to 0"
        )
    hashes, batches = zip(*loaded, strict=True)
    order = tf.argsort(tf.concat(hashes, axis=0), stable=True)
    return {name: tf.gather(tf.concat([batch[name] for batch in batches], axis=0), order) for name in batches[0]}


def transform_pairs(pairs: Features, sizes: FeatureSizes, transform: Transform) -> dict[str, tf.Tensor]:
    """Transforms a batch of raw pairs: both sides go through `transform` as rows without label."""
    columns = features.row_features(sizes)
    context = [f.name for f in columns if f.role is Role.CONTEXT]
    item = [f.name for f in columns if f.role is Role.ITEM]
    both = {name: tf.concat([pairs[name], pairs[name]], axis=0) for name in context}
    both |= {name: tf.concat([pairs[PREFERRED + name], pairs[OTHER + name]], axis=0) for name in item}
    transformed = transform(both)

    of_the_item = (features.LLM_SCORE, features.LLM_DISAGREEMENT, features.TEXT_WORDS)
    verdict = [prefix + name for prefix in (PREFERRED, OTHER) for name in of_the_item]
    result = {name: pairs[name] for name in (*verdict, features.CALIBRATION_LABEL)}
    for f in features.transformed_features(sizes, use_user_id=True):
        if f.role is Role.ROW or f.name not in transformed:
            continue
        preferred, other = tf.split(transformed[f.name], 2)
        if f.role is Role.CONTEXT:
            result[f.name] = preferred
        else:
            result[PREFERRED + f.name], result[OTHER + f.name] = preferred, other
    return result


def load_rows(
    patterns: Sequence[str], columns: Sequence[Feature], transform: Transform | None = None
) -> dict[str, tf.Tensor]:
    """All rows, in the order of the files, kept in memory: about 0.5 kB a row at L = 20, C = 4.

    Args:
        patterns: globs of gzipped TFRecords.
        columns: what the files hold: transformed_features, or row_features with a transform.
        transform: the transform graph, for raw rows.

    Returns:
        [rows] + shape each, by name.

    Raises:
        UserError: no file matches, or there is no row in them.
    """
    spec = parsing_spec(columns)
    parsed = records(patterns, "rows").batch(_ROWS_AT_ONCE).map(lambda s: tf.io.parse_example(s, spec))
    batches = list(parsed.map(lambda raw: narrow(transform(raw) if transform else raw), _PARALLEL))
    if not batches:
        raise UserError(f"training needs rows, got none in {list(patterns)}; check the split of the data")
    return {name: tf.concat([batch[name] for batch in batches], axis=0) for name in batches[0]}


def row_batches(
    rows: Features, *, batch_size: int, seed: int | None = None, shuffle_buffer: int | None = None
) -> tf.data.Dataset:
    """Batches of rows in memory, in the order in which read_rows would read them from their files.

    Args:
        rows: of load_rows.
        batch_size: rows a batch; the last one may be smaller.
        seed: of the shuffling, which differs in each epoch; None keeps the order of the rows.
        shuffle_buffer: as of read_rows; None shuffles from all rows.
    """
    number = len(rows[features.LABEL])
    order = tf.data.Dataset.range(number).with_options(_UNTUNED)
    if seed is not None:
        order = order.shuffle(shuffle_buffer or number, seed=seed)
    return order.batch(batch_size).map(_gather(rows)).prefetch(_AHEAD)


def pair_batches(pairs: Features, *, pairs_per_batch: int, seed: int) -> tf.data.Dataset:
    """Endless shuffled batches of `pairs_per_batch` pairs, however few pairs there are."""
    number = len(pairs[features.CALIBRATION_LABEL])
    order = tf.data.Dataset.range(number).with_options(_UNTUNED).shuffle(number, seed=seed).repeat()
    return order.batch(pairs_per_batch, drop_remainder=True).map(_gather(pairs))


def _gather(columns: Features) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    return lambda chosen: {name: tf.gather(values, chosen) for name, values in columns.items()}


def training_batches(rows: tf.data.Dataset, pairs: tf.data.Dataset | None) -> tf.data.Dataset:
    """The batches that RankingModel trains on, ROWS with PAIRS; an epoch ends with the rows."""
    batches = {ROWS: rows} if pairs is None else {ROWS: rows, PAIRS: pairs}
    return tf.data.Dataset.zip(batches).prefetch(_AHEAD)


def replica_slices(batches: tf.data.Dataset, replicas: int) -> tf.data.Dataset:
    """Splits each of training_batches into `replicas` elements in a row: even slices of its rows and of its pairs.

    The slices of a small batch may be empty. `tf.distribute` would cut the pairs at the same numbers as the rows.
    """

    def part(values: tf.Tensor, replica: tf.Tensor) -> tf.Tensor:
        number = tf.shape(values, tf.int64)[0]
        return values[number * replica // replicas : number * (replica + 1) // replicas]

    def split(batch: Features) -> tf.data.Dataset:
        return tf.data.Dataset.range(replicas).map(
            lambda replica: tf.nest.map_structure(lambda values: part(values, replica), batch)
        )

    return batches.flat_map(split).prefetch(_AHEAD * replicas)


def records(patterns: Sequence[str], what: str) -> tf.data.Dataset:
    """Serialized examples of gzipped TFRecords, always in the same order.

    Raises:
        UserError: no file matches; the message calls them files of `what`.
    """
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    if not files:
        raise UserError(f"training needs files of {what}, got none that match {list(patterns)}")
    # In blocks: passing records on one by one costs the parallel interleave more time than reading them.
    blocks = tf.data.Dataset.from_tensor_slices(files).interleave(
        lambda file: tf.data.TFRecordDataset(file, compression_type="GZIP", buffer_size=1 << 20).batch(_BLOCK),
        cycle_length=min(_PARALLEL, len(files)),
        num_parallel_calls=min(_PARALLEL, len(files)),
        deterministic=True,
    )
    return blocks.unbatch().with_options(_UNTUNED)


def narrow(batch: Features) -> dict[str, tf.Tensor]:
    """int64 as int32, for rows and pairs alike: indices and counts fit, and the pairs take half the memory."""
    return {n: tf.cast(v, tf.int32) if v.dtype == tf.int64 else v for n, v in batch.items()}

"""Messages and files against TensorFlow's own."""

import gzip

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models.features import FeatureSizes, pair_features
from sllmr.models.tf_examples import Example, read_tfrecords, to_example


def any_values(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    values = {}
    for f in pair_features(FeatureSizes(history=3, categories=2)):
        size = int(np.prod(f.shape))
        values[f.name] = {
            "string": lambda n: [f"Ω{v}".encode() for v in rng.integers(0, 99, n)],
            "int64": lambda n: rng.integers(-(2**63), 2**63 - 1, n).tolist(),
            "float32": lambda n: rng.normal(size=n).astype(np.float32).tolist(),
        }[f.dtype](size)
    return values


@pytest.mark.parametrize("seed", range(3))
def test_a_row_serializes_to_the_bytes_of_tf_train_example(seed):
    features = pair_features(FeatureSizes(history=3, categories=2))
    values = any_values(seed)
    oracle = tf.train.Example()
    for f in features:
        target = oracle.features.feature[f.name]
        lists = {"string": target.bytes_list, "int64": target.int64_list, "float32": target.float_list}
        lists[f.dtype].value.extend(values[f.name])

    ours = to_example(values, features)

    serialized = oracle.SerializeToString(deterministic=True)
    assert ours.SerializeToString(deterministic=True) == serialized
    parsed = Example.FromString(serialized).features.feature
    for f in features:
        assert getattr(parsed[f.name], parsed[f.name].WhichOneof("kind")).value == values[f.name]


def test_an_empty_list_keeps_its_kind_as_tf_train_example_does():
    ours, oracle = Example(), tf.train.Example()
    for example in (ours, oracle):
        example.features.feature["scores"].float_list.value.extend([])
        example.features.feature["ids"].bytes_list.SetInParent()
    assert ours.SerializeToString(deterministic=True) == oracle.SerializeToString(deterministic=True)


def test_a_value_of_another_length_than_its_shape_is_refused():
    features = pair_features(FeatureSizes(history=3, categories=2))
    with pytest.raises(ValueError, match=r"history_item_ids must have 3 elements \(shape \(3,\)\), got 1"):
        to_example({**any_values(0), "history_item_ids": [b"a"]}, features)


RECORDS = [b"", b"a" * 5, bytes(range(256)) * 500]


def write(path: str, records: list[bytes]) -> str:
    with tf.io.TFRecordWriter(path, "GZIP") as writer:
        for record in records:
            writer.write(record)
    return path


def test_records_that_tensorflow_writes_are_read(tmp_path):
    assert list(read_tfrecords(write(str(tmp_path / "r.gz"), RECORDS))) == RECORDS
    assert list(read_tfrecords(write(str(tmp_path / "none.gz"), []))) == []


@pytest.mark.parametrize("damage", ["cut gzip", "flipped bit", "cut record", "other file", "other gzip"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path = tmp_path / "r.gz"
    write(str(path), RECORDS)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut gzip": whole[:-20],
            "flipped bit": whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:],
            "cut record": gzip.compress(gzip.decompress(whole)[:-7]),
            "other file": b"user,item\n",
            "other gzip": gzip.compress(b"user,item,rating,timestamp\n1,2,3,4\n"),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"r\.gz must be a complete gzipped TFRecord file"):
        list(read_tfrecords(str(path)))

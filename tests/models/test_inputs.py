import itertools

import numpy as np
import pytest
import tensorflow as tf

from sllmr.models import features, inputs, ranking
from sllmr.models.errors import UserError
from sllmr.models.features import OTHER, PREFERRED
from sllmr.models.ranking import PAIRS, ROWS
from tests.models import market

COLUMNS = features.transformed_features(market.SIZES, use_user_id=False)


@pytest.fixture
def layer(transform_output):
    return transform_output.transform_features_layer()


def write_rows(directory, layer, number: int) -> dict[str, np.ndarray]:
    """Transformed rows in two files; returns them."""
    raw = layer(market.parse(market.rows(number, seed=4), features.row_features(market.SIZES)))
    values = [{n: t.numpy()[row].tolist() for n, t in raw.items()} for row in range(number)]
    half = number // 2
    for name, part in (("a", values[:half]), ("b", values[half:])):
        market.write_records(directory / f"rows-{name}.gz", market.serialize(part, COLUMNS))
    return {n: t.numpy() for n, t in raw.items()}


def write_pairs(directory, number: int) -> list[dict]:
    made = market.pairs(number)
    records = market.serialize(made, features.pair_features(market.SIZES))
    market.write_records(directory / "pairs.gz", records)
    return made


def read(directory, **changes) -> list[dict]:
    arguments = {"batch_size": 8} | changes
    return list(inputs.read_rows([str(directory / "rows-*")], COLUMNS, **arguments).as_numpy_iterator())


def fingerprints(batches: list[dict]) -> list[bytes]:
    return [
        b"|".join(np.ascontiguousarray(batch[name][row]).tobytes() for name in sorted(batch))
        for batch in batches
        for row in range(len(batch[features.LABEL]))
    ]


def test_each_row_is_read_once_with_its_values_and_shapes(tmp_path, layer):
    written = write_rows(tmp_path, layer, 20)

    batches = read(tmp_path)

    assert [len(b[features.LABEL]) for b in batches] == [8, 8, 4]
    assert batches[0][features.HISTORY_CATEGORY_INDICES].shape == (8, 4, 2)
    expected = fingerprints([{n: v.astype(np.int32) for n, v in written.items()}])
    assert sorted(fingerprints(batches)) == sorted(expected)


def test_shuffling_changes_the_order_with_the_seed_and_with_the_pass_but_not_the_rows(tmp_path, layer):
    write_rows(tmp_path, layer, 20)
    dataset = inputs.read_rows([str(tmp_path / "rows-*")], COLUMNS, batch_size=20, shuffle_buffer=100, seed=1)
    passes = [fingerprints(list(dataset.as_numpy_iterator())) for _ in range(2)]
    again = fingerprints(read(tmp_path, batch_size=20, shuffle_buffer=100, seed=1))
    other = fingerprints(read(tmp_path, batch_size=20, shuffle_buffer=100, seed=2))

    assert passes[0] == again
    assert passes[0] != passes[1]
    assert passes[0] != other
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(other)


@pytest.mark.slow
def test_rows_in_memory_are_the_rows_of_the_files_raw_or_transformed(tmp_path, layer):
    written = write_rows(tmp_path, layer, 20)
    raw = features.row_features(market.SIZES)
    market.write_records(tmp_path / "raw.gz", market.serialize(market.rows(20, seed=4), raw))

    loaded = inputs.load_rows([str(tmp_path / "rows-*")], COLUMNS)
    transformed = inputs.load_rows([str(tmp_path / "raw.gz")], raw, layer)

    for name, values in written.items():
        np.testing.assert_array_equal(transformed[name], values)
    assert sorted(fingerprints([loaded])) == sorted(fingerprints([transformed]))


@pytest.mark.parametrize("shuffle_buffer", [1, 7, 20, 1000])
def test_rows_come_from_memory_in_the_order_in_which_they_come_from_files(tmp_path, layer, shuffle_buffer):
    write_rows(tmp_path, layer, 20)
    patterns = [str(tmp_path / "rows-*")]
    loaded = inputs.load_rows(patterns, COLUMNS)
    how = {"batch_size": 8, "shuffle_buffer": shuffle_buffer, "seed": 3}

    tf.random.set_seed(5)
    from_files = inputs.read_rows(patterns, COLUMNS, **how)
    from_memory = inputs.row_batches(loaded, **how)

    for _ in range(2):  # passes differ from each other
        for one, other in zip(from_files, from_memory, strict=True):
            assert one.keys() == other.keys()
            for name, values in one.items():
                np.testing.assert_array_equal(values, other[name])


def test_batches_from_memory_hold_each_row_once_and_shuffle_with_seed_and_pass():
    rows = {features.LABEL: tf.range(10), features.HISTORY_ITEM_INDICES: tf.reshape(tf.range(40), [10, 4])}

    def passes(seed: int | None) -> list[list[int]]:
        dataset = inputs.row_batches(rows, batch_size=4, seed=seed)
        read = [list(dataset.as_numpy_iterator()) for _ in range(2)]
        for batch in read[0]:
            np.testing.assert_array_equal(batch[features.HISTORY_ITEM_INDICES][:, 0], 4 * batch[features.LABEL])
        return [[label for batch in one for label in batch[features.LABEL].tolist()] for one in read]

    assert passes(None) == [list(range(10))] * 2
    first, second = passes(1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert passes(1)[0] == first != passes(2)[0]


def test_no_rows_are_refused(tmp_path, layer):
    market.write_records(tmp_path / "rows-empty.gz", [])
    with pytest.raises(UserError, match=r"training needs rows, got none"):
        inputs.load_rows([str(tmp_path / "rows-*")], COLUMNS)


@pytest.mark.slow
def test_each_side_of_a_pair_is_what_the_transform_makes_of_it_as_a_row(tmp_path, layer, caplog):
    made = write_pairs(tmp_path, 10)
    pairs = inputs.load_pairs([str(tmp_path / "pairs.gz")], market.SIZES, layer)
    assert not [text for text in caplog.messages if "AutoGraph" in text]

    names = (features.ITEM_INDEX, features.ITEM_CATEGORY_INDICES, features.IS_TAIL)
    expected = {features.CALIBRATION_LABEL: np.array([pair[features.CALIBRATION_LABEL] for pair in made])}
    for prefix in (PREFERRED, OTHER):
        rows = []
        for pair in made:
            side = {name.removeprefix(prefix): v for name, v in pair.items() if name.startswith(prefix)}
            context = {name: v for name, v in pair.items() if not name.startswith((PREFERRED, OTHER))}
            rows.append(market.row_values("u", ["item1"], "item0", 1) | context | side)
        of_side = layer(market.parse(rows, features.row_features(market.SIZES)))
        expected |= {prefix + name: of_side[name].numpy() for name in names}
        expected[features.HISTORY_ITEM_INDICES] = of_side[features.HISTORY_ITEM_INDICES].numpy()
    assert whole_pairs(pairs, expected) == whole_pairs(expected, expected)
    assert sorted(pairs[features.CALIBRATION_LABEL].numpy().tolist()) == [-1] * 5 + [1] * 5
    assert not any(name.endswith(features.LABEL) and name != features.CALIBRATION_LABEL for name in pairs)


def test_rows_and_pairs_of_a_user_have_one_number_and_others_have_another(tmp_path, layer):
    made = write_pairs(tmp_path, 20)
    pairs = inputs.load_pairs([str(tmp_path / "pairs.gz")], market.SIZES, layer)
    users = sorted({pair[features.USER_ID] for pair in made})
    rows = [market.row_values(user, ["item1"], "item0", 1) for user in users]
    of_rows = layer(market.parse(rows, features.row_features(market.SIZES)))[features.USER_HASH].numpy().tolist()

    assert sorted(set(pairs[features.USER_HASH].numpy().tolist())) == sorted(of_rows)
    assert len(set(of_rows)) == len(users) == 5
    assert features.USER_HASH not in ranking.input_names(use_user_id=True)


def whole_pairs(pairs, names) -> list[tuple]:
    """Each pair's columns, in an order of their own."""
    columns = [np.asarray(pairs[name]).tolist() for name in sorted(names)]
    return sorted(zip(*columns, strict=True), key=str)


def test_the_order_of_pairs_does_not_depend_on_how_they_were_written(tmp_path, layer):
    (tmp_path / "again").mkdir()
    records = market.serialize(market.pairs(40), features.pair_features(market.SIZES))
    market.write_records(tmp_path / "pairs.gz", records)
    market.write_records(tmp_path / "again" / "pairs-0.gz", records[:15:-1])
    market.write_records(tmp_path / "again" / "pairs-1.gz", records[:16])

    once = inputs.load_pairs([str(tmp_path / "pairs.gz")], market.SIZES, layer)
    again = inputs.load_pairs([str(tmp_path / "again" / "pairs-*")], market.SIZES, layer)

    assert once.keys() == again.keys()
    for name, values in once.items():
        np.testing.assert_array_equal(values, again[name])


def test_few_pairs_fill_every_batch_and_each_is_seen_equally_often():
    pairs = {features.CALIBRATION_LABEL: tf.range(5), PREFERRED + features.LLM_SCORE: tf.range(5.0)}
    batches = inputs.pair_batches(pairs, pairs_per_batch=8, seed=1).take(5).as_numpy_iterator()

    seen = [int(v) for batch in batches for v in batch[features.CALIBRATION_LABEL]]

    assert len(seen) == 40
    assert all(seen.count(pair) == 8 for pair in range(5))
    assert sorted(seen[:5]) == [0, 1, 2, 3, 4]


def test_a_pass_of_training_ends_with_the_rows():
    rows = tf.data.Dataset.from_tensor_slices({"x": tf.range(10)}).batch(4)
    pairs = inputs.pair_batches({features.CALIBRATION_LABEL: tf.range(3)}, pairs_per_batch=2, seed=1)

    batches = list(inputs.training_batches(rows, pairs))

    assert [len(b[ROWS]["x"]) for b in batches] == [4, 4, 2]
    assert all(len(b[PAIRS][features.CALIBRATION_LABEL]) == 2 for b in batches)


def test_nothing_that_is_read_again_starts_the_tuner_that_can_hold_up_the_end_of_a_pass(tmp_path, layer):
    write_rows(tmp_path, layer, 20)
    columns = {features.LABEL: tf.range(4), features.CALIBRATION_LABEL: tf.range(4)}
    pairs = inputs.pair_batches(columns, pairs_per_batch=2, seed=1)
    from_memory = inputs.row_batches(columns, batch_size=2, seed=1)
    from_files = inputs.read_rows([str(tmp_path / "*")], COLUMNS, batch_size=2)
    for batches in (from_memory, from_files, inputs.training_batches(from_memory, pairs)):
        assert batches.options().autotune.enabled is False


def test_without_pairs_a_batch_holds_rows_alone():
    rows = tf.data.Dataset.from_tensor_slices({"x": tf.range(10)}).batch(4)

    assert list(next(iter(inputs.training_batches(rows, None)))) == [ROWS]


@pytest.mark.parametrize("what", ["rows", "pairs"])
def test_no_file_is_an_error_that_names_the_pattern(tmp_path, what, layer):
    pattern = str(tmp_path / "none-*")
    read = {
        "rows": lambda: inputs.read_rows([pattern], COLUMNS, batch_size=4),
        "pairs": lambda: inputs.load_pairs([pattern], market.SIZES, layer),
    }
    with pytest.raises(UserError, match=rf"needs files of {what}, got none that match .*none-"):
        read[what]()


def test_an_empty_pairs_file_is_an_error_that_says_what_to_do(tmp_path, layer):
    write_pairs(tmp_path, 0)
    with pytest.raises(UserError, match=r"needs preference pairs, got none .* set llm_weight to 0"):
        inputs.load_pairs([str(tmp_path / "pairs.gz")], market.SIZES, layer)


def test_pair_batches_repeat_with_the_seed():
    pairs = {features.CALIBRATION_LABEL: tf.range(50)}

    def order(seed: int) -> list[list[int]]:
        batches = inputs.pair_batches(pairs, pairs_per_batch=10, seed=seed).as_numpy_iterator()
        return [b[features.CALIBRATION_LABEL].tolist() for b in itertools.islice(batches, 8)]

    assert order(1) == order(1)
    assert order(1) != order(2)

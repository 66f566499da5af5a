import collections
import datetime
import itertools
import json

import apache_beam as beam
import pytest
import tensorflow as tf
from apache_beam.testing.test_pipeline import TestPipeline as BeamPipeline
from apache_beam.testing.util import assert_that, equal_to

from sllmr.components.catalog import read_catalog
from sllmr.components.interactions_example_gen import rows, transforms
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import FILE_NAME
from sllmr.components.interactions_example_gen.transforms import PrepareInteractions, WriteCatalog, WriteReport
from sllmr.models import features
from sllmr.models.parsing import parsing_spec
from tests.components.interactions_example_gen import market

pytestmark = pytest.mark.slow

Prepared = collections.namedtuple("Prepared", ["splits", "catalog", "report"])


def prepare(config, directory):
    """Runs the transform; rows come back in the order of the files."""
    with BeamPipeline() as pipeline:
        output = pipeline | PrepareInteractions(config)
        for split in rows.SPLITS:
            output[split] | f"Write_{split}" >> beam.io.WriteToTFRecord(str(directory / split))
        output["catalog"] | beam.ParDo(WriteCatalog(str(directory)))
        output["report"] | beam.ParDo(WriteReport(str(directory)))
    splits = {}
    for split in rows.SPLITS:
        files = sorted(map(str, directory.glob(f"{split}-*")))
        splits[split] = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    return Prepared(splits, read_catalog(str(directory)), json.loads((directory / FILE_NAME).read_text()))


def prepare_market(directory, chosen, **settings):
    directory.mkdir()
    extra = settings.pop("extra_rows", ())
    config = DataConfig(**market.write_tables(directory, chosen, extra), **settings)
    return prepare(config, directory)


def parsed(serialized):
    spec = parsing_spec(features.row_features(features.FeatureSizes()))
    return tf.io.parse_example(tf.constant(serialized), spec)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_market(tmp_path_factory.mktemp("market") / "run", market.interactions())


def test_the_splits_hold_the_rows_of_the_paper_s_protocol(prepared):
    chosen = market.interactions()
    total = sum(map(len, chosen.values()))
    assert len(prepared.splits["train"]) == 2 * (total - 3 * len(chosen))
    assert len(prepared.splits["valid"]) == len(prepared.splits["test"]) == 2 * len(chosen)
    test = parsed(prepared.splits["test"])
    positives = {
        user.decode(): item.decode()
        for user, item, label in zip(
            test[features.USER_ID].numpy(),
            test[features.ITEM_ID].numpy(),
            test[features.LABEL].numpy(),
            strict=True,
        )
        if label
    }
    assert positives == {user: items[-1] for user, items in chosen.items()}


def test_popularity_and_tail_are_counted_on_train_positives(prepared):
    expected = collections.Counter(item for items in market.interactions().values() for item in items[1:-2])
    assert {i: item.train_count for i, item in prepared.catalog.items() if item.train_count} == expected
    tail = [item for item in prepared.catalog.values() if item.is_tail and item.train_count]
    assert len(tail) == int(0.2 * len(expected))
    train = parsed(prepared.splits["train"])
    ids = [item.decode() for item in train[features.ITEM_ID].numpy()]
    assert train[features.ITEM_TRAIN_COUNT].numpy().tolist() == [expected[i] for i in ids]
    assert train[features.IS_TAIL].numpy().tolist() == [prepared.catalog[i].is_tail for i in ids]


def test_rows_of_one_user_do_not_lie_together(prepared):
    users = parsed(prepared.splits["train"])[features.USER_ID].numpy().tolist()
    neighbours = sum(a == b for a, b in itertools.pairwise(users))
    # 30 users in random order meet about once in 30 rows; in user order nearly always.
    assert neighbours < len(users) / 10


def test_the_report_counts_what_was_read_and_written(prepared):
    chosen = market.interactions()
    report = prepared.report
    assert (report["users"], report["items"]) == (market.USERS, market.ITEMS)
    assert report["interactions_table"]["read"] == sum(map(len, chosen.values()))
    assert report["interactions_table"]["left_out"]["first_positives"] == market.USERS
    for split in rows.SPLITS:
        assert report["splits"][split]["rows"] == len(prepared.splits[split])
        assert report["splits"][split]["positives"] == len(prepared.splits[split]) // 2
    assert report["cold"]["test_users"] == sum(len(items) == 5 for items in chosen.values())
    short = sum(sum(1 for position in range(2, len(i) - 1) if position - 1 <= 3) for i in chosen.values())
    assert report["paper"]["train_rows_with_history_of_at_most_3"] == 2 * short
    assert not any(user in json.dumps(report) for user in chosen)


def train_side(prepared):
    """All that training may see."""
    return sorted(prepared.splits["train"]), prepared.catalog


def test_train_rows_and_catalogue_do_not_depend_on_validation_and_test(prepared, tmp_path):
    other = prepare_market(tmp_path / "run", market.with_other_future(market.interactions()))
    assert sorted(other.splits["test"]) != sorted(prepared.splits["test"])
    assert train_side(other) == train_side(prepared)


def test_global_date_holds_back_the_latest_interactions(tmp_path):
    split = {"strategy": "global_date", "valid_fraction": 0.2, "test_fraction": 0.2}
    prepared = prepare_market(tmp_path / "run", market.interactions(), split=split)
    report = prepared.report
    assert report["splits"]["train"]["last"] < report["split"]["valid_from"] <= report["splits"]["valid"]["first"]
    assert report["splits"]["valid"]["last"] < report["split"]["test_from"] <= report["splits"]["test"]["first"]
    times = sorted(position for items in market.interactions().values() for position in range(len(items)))
    valid_day = next(day for day in range(10) if sum(time < day for time in times) >= round(0.6 * len(times)))
    train = parsed(prepared.splits["train"])
    assert train[features.POSITION].numpy().max() == valid_day


def test_bad_rows_are_counted_and_the_rest_is_used(prepared, tmp_path):
    chosen = market.interactions()
    user, items = next(iter(chosen.items()))
    bad = [
        f"{user},ghost,1000000000",
        f"{user},{items[0]},1000000000",
        f"{user},{items[0]},never",
        f"{user},{items[0]}",
    ]
    other = prepare_market(tmp_path / "run", chosen, extra_rows=bad)
    table = other.report["interactions_table"]
    first = 2 + sum(map(len, chosen.values()))
    assert table["dropped"] == {
        "bad_timestamp": 1,
        "duplicate_interaction": 1,
        "unknown_item": 1,
        "wrong_number_of_fields": 1,
    }
    path = tmp_path / "run" / "interactions.csv"
    assert table["examples"]["unknown_item"] == [
        f"{path}:{first}: item_id must be in the items table, got 'ghost'; add it or remove the row (the ids"
        " there look like 'i00')"
    ]
    assert table["examples"]["duplicate_interaction"][0].startswith(f"{path}:{first + 1}: ")
    assert table["examples"]["bad_timestamp"][0].startswith(f"{path}:{first + 2}: ")
    assert other.splits == prepared.splits
    assert user not in json.dumps(other.report)


def test_labels_of_zero_become_the_negatives(tmp_path):
    table = ["user_id,item_id,timestamp,label"]
    for user in ("a", "b"):
        table += [f"{user},i0{n},{10**9 + n},1" for n in range(5)] + [f"{user},i1{n},{10**9 + n},0" for n in range(5)]
    settings = market.write_tables(tmp_path, {})
    (tmp_path / "interactions.csv").write_text("\n".join(table) + "\n")
    prepared = prepare(DataConfig(**settings), tmp_path)
    assert prepared.report["negatives"]["kind"] == "observed"
    train = parsed(prepared.splits["train"])
    made = zip(train[features.ITEM_ID].numpy().tolist(), train[features.LABEL].numpy().tolist(), strict=True)
    assert collections.Counter(made) == {(b"i01", 1): 2, (b"i02", 1): 2, (b"i11", 0): 2, (b"i12", 0): 2}


def test_read_interactions_yields_known_items_with_their_place(tmp_path):
    config = DataConfig(**market.write_tables(tmp_path, {"u": ["i01", "i02"]}))
    with BeamPipeline() as pipeline:
        output = (
            pipeline
            | beam.Create([config.interactions])
            | beam.ParDo(transforms.ReadInteractions(config), frozenset({"i01"})).with_outputs(
                transforms.TALLY, main="events"
            )
        )
        dropped = output[transforms.TALLY] | beam.Map(lambda tally: tally.dropped_counts("interactions"))
        event = ("u", ("i01", 1_000_000_000_000, 0.0, 1, config.interactions, 2, 0, 1.0, ()))
        assert_that(output["events"], equal_to([event]), label="events")
        assert_that(dropped, equal_to([{"unknown_item": 1}]), label="dropped")


def test_a_window_cuts_the_tables_at_its_end_and_says_what_it_left_out(tmp_path):
    """Of users with 5 to 9 interactions, one a day from day 0 on, the days 2 to 5 make rows."""
    chosen = market.interactions()
    until = datetime.datetime.fromtimestamp(1_000_000_000 + 6 * 86_400, datetime.UTC).isoformat()
    found = prepare_market(
        tmp_path / "run", chosen, split={"strategy": "global_date"}, window={"days": 4, "until": until}
    )

    positives = collections.Counter()
    for split in rows.SPLITS:
        positives[split] = int(sum(parsed(found.splits[split])[features.LABEL].numpy()))
    days = {"train": (2, 3), "valid": (4,), "test": (5,)}
    for split, of_split in days.items():
        assert positives[split] == sum(len(items) > day for items in chosen.values() for day in of_split)
    left_out = found.report["interactions_table"]["left_out"]
    assert left_out["after_window"] == sum(max(0, len(items) - 6) for items in chosen.values())
    assert left_out["before_window"] == 2 * len(chosen)
    assert left_out["first_positives"] == 0

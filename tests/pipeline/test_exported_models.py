"""evaluate, compare, predict and top on SavedModels whose scores are known."""

import csv
import io
import pathlib

import pytest
import tensorflow as tf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from sllmr.components.catalog import Item
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.data_report import FILE_NAME as REPORT_FILE
from sllmr.components.interactions_example_gen.tables import DataError
from sllmr.components.model_info import FILE_NAME, make_model_info, read_model_info, write_model_info
from sllmr.models import features, signatures
from sllmr.models.errors import UserError
from sllmr.pipeline import offline, recommend
from sllmr.pipeline.config import Config
from tests.components.data_reports import data_report
from tests.models import market

REPORT = data_report(
    ("2024-01-01T00:00:00+00:00", "2024-02-01T00:00:00+00:00"),
    ("2024-02-02T00:00:00+00:00", "2024-02-09T00:00:00+00:00"),
    ("2024-02-10T00:00:00+00:00", "2024-02-20T00:00:00+00:00"),
)
ROWS = market.rows(80, seed=3)


def save_model(directory: pathlib.Path, sign: float) -> pathlib.Path:
    """Scores an item by its number times `sign`; of the history only its length matters."""

    def logits(ids: tf.Tensor) -> tf.Tensor:
        return sign * tf.strings.to_number(tf.strings.regex_replace(ids, "item", "")) / 10

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {features.ITEM_ID: tf.io.FixedLenFeature((), tf.string)}
        values = logits(tf.io.parse_example(examples, spec)[features.ITEM_ID])
        return {signatures.LOGITS: values, signatures.SCORES: tf.sigmoid(values)}

    names = (features.HISTORY_ITEM_IDS, signatures.CANDIDATE_ITEM_IDS)

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.string, name=name) for name in names}])
    def rank(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        length = tf.cast(tf.shape(columns[features.HISTORY_ITEM_IDS])[1], tf.float32)
        return {signatures.SCORES: tf.sigmoid(logits(columns[signatures.CANDIDATE_ITEM_IDS]) - length)}

    functions = {signatures.SERVING_DEFAULT: score, signatures.RANK: rank}
    tf.saved_model.save(tf.Module(), str(directory), signatures=functions)
    (directory / REPORT_FILE).write_text(REPORT.model_dump_json())
    info = make_model_info(str(directory), backbone="dcnv2", sizes=market.SIZES, use_user_id=False, seed=1)
    write_model_info(info, str(directory))
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    directory = tmp_path_factory.mktemp("models")
    return save_model(directory / "up", 1.0), save_model(directory / "down", -1.0)


@pytest.fixture
def run_folder(tmp_path) -> pathlib.Path:
    """The folder that holds Split-* of a run's examples."""
    (tmp_path / "gen" / "report" / "1").mkdir(parents=True)
    (tmp_path / "gen" / "report" / "1" / REPORT_FILE).write_text(REPORT.model_dump_json())
    for split in ("train", "test"):
        records = market.serialize(ROWS, features.row_features(market.SIZES))
        market.write_records(tmp_path / "gen" / "examples" / "1" / f"Split-{split}" / "part-0.gz", records)
    return tmp_path / "gen" / "examples" / "1"


def shown(command, *arguments, **keywords) -> str:
    terminal = io.StringIO()
    command(*arguments, **keywords, console=Console(file=terminal, width=200))
    return terminal.getvalue()


def test_evaluate_prints_the_metrics_of_every_slice(models, run_folder):
    text = shown(offline.evaluate, models[0], run_folder / "Split-test", None)
    lines = [line.split() for line in text.splitlines()]
    labels = [row[features.LABEL] for row in ROWS]
    auc = roc_auc_score(labels, [int(row[features.ITEM_ID][4:]) for row in ROWS])
    popularity = roc_auc_score(labels, [row[features.ITEM_TRAIN_COUNT] for row in ROWS])
    [overall] = [line for line in lines if line[:2] == ["overall", "auc"]]
    assert overall[2] == f"{auc:.4f}"
    assert overall[-2:] == [f"{popularity:.4f}", "5"]
    assert {line[0] for line in lines if line[1:2] == ["log_loss"]} >= {"overall", "cold", "warm", "tail", "head"}


def test_compare_prints_the_paired_difference_and_who_is_better(models, run_folder):
    text = shown(offline.compare, models, run_folder / "Split-test", None)
    labels = [row[features.LABEL] for row in ROWS]
    auc = roc_auc_score(labels, [int(row[features.ITEM_ID][4:]) for row in ROWS])
    [overall] = [line.split() for line in text.splitlines() if line.split()[:2] == ["overall", "auc"]]
    assert overall[2:5] == [f"{auc:.4f}", f"{1 - auc:.4f}", f"{2 * auc - 1:+.4f}"]
    low, high = float(overall[5]), float(overall[7])
    answer = "A is better" if low > 0 else "B is better" if high < 0 else "do not tell A and B apart"
    assert answer in text


def test_rows_that_a_model_was_trained_on_are_refused(models, run_folder):
    with pytest.raises(UserError, match=r"got the split train of the data of .*name its Split-test"):
        offline.evaluate(models[0], run_folder / "Split-train", None, Console())


@pytest.mark.parametrize(("first", "allowed"), [("2024-02-08", False), ("2024-02-09", False), ("2024-02-10", True)])
def test_other_rows_must_begin_after_the_last_row_that_training_saw(models, run_folder, tmp_path, first, allowed):
    rows = tmp_path / "later.gz"
    (run_folder / "Split-test" / "part-0.gz").rename(rows)
    if allowed:
        assert "overall" in shown(offline.compare, models, rows, first)
        return
    with pytest.raises(UserError, match=rf"got rows from {first}, where .* until 2024-02-09"):
        offline.compare(models, rows, first, Console())


def test_rows_without_a_date_and_folders_without_rows_are_refused(models, run_folder, tmp_path):
    rows = tmp_path / "later.gz"
    (run_folder / "Split-test" / "part-0.gz").rename(rows)
    with pytest.raises(UserError, match="add --rows-from DATE"):
        offline.evaluate(models[0], rows, None, Console())
    with pytest.raises(UserError, match="--rows-from must be an ISO 8601 date or time, got 'soon'"):
        offline.evaluate(models[0], rows, "soon", Console())
    with pytest.raises(UserError, match="--rows must name a gzip TFRecord file"):
        offline.evaluate(models[0], tmp_path / "none", None, Console())


LATER = [
    *(("u0", 3, 1), ("u0", 9, 0), ("u1", 7, 1), ("u1", 2, 0)),
    *(("u2", 1, 1), ("u2", 8, 0), ("u3", 11, 1), ("u3", 4, 0)),
]
"""User, number of the item, label of interactions after the training of the models."""


@pytest.fixture
def shop(tmp_path) -> Config:
    """A configuration, and later.csv with earlier positives of each user and LATER, from 2024-02-10 on."""
    earlier = [f"{user},item{n},2024-01-0{n + 1},1" for n, user in enumerate(["u0", "u1", "u2", "u3", "u0"])]
    later = [f"{user},item{item},2024-02-1{n},{label}" for n, (user, item, label) in enumerate(LATER)]
    (tmp_path / "later.csv").write_text("\n".join(["user_id,item_id,timestamp,label", *earlier, *later]) + "\n")
    (tmp_path / "only_earlier.csv").write_text("\n".join(["user_id,item_id,timestamp,label", *earlier]) + "\n")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"item{n},T{n}\n" for n in range(12)))
    data = {"interactions": str(tmp_path / "none.csv"), "items": str(tmp_path / "items.csv")}
    return Config.model_validate({"name": "shop", "data": data})


@pytest.mark.slow
def test_a_table_of_interactions_is_evaluated_from_the_end_of_the_training_on(models, shop, tmp_path):
    text = shown(offline.evaluate, models[0], tmp_path / "later.csv", None, config=shop)

    auc = roc_auc_score([label for *_, label in LATER], [item for _, item, _ in LATER])
    [overall] = [line.split() for line in text.splitlines() if line.split()[:2] == ["overall", "auc"]]
    assert overall[2] == f"{auc:.4f}"
    assert overall[-1] == "4"
    # The window of a schedule is of its runs: it ends among these rows, and begins behind the training.
    data = shop.data.model_dump(include={"interactions", "items"}) | {"split": {"strategy": "global_date"}}
    with_and_without = [
        Config.model_validate({"name": "shop", "data": {**data, "window": window}})
        for window in (None, {"days": 3, "until": "2024-02-14"})
    ]
    dated, scheduled = (
        shown(offline.evaluate, models[0], tmp_path / "later.csv", None, config=config) for config in with_and_without
    )
    assert dated == scheduled
    compared = shown(offline.compare, models, tmp_path / "later.csv", None, config=shop)
    [overall] = [line.split() for line in compared.splitlines() if line.split()[:2] == ["overall", "auc"]]
    assert overall[2:5] == [f"{auc:.4f}", f"{1 - auc:.4f}", f"{2 * auc - 1:+.4f}"]


@pytest.mark.slow
def test_a_tables_rows_within_the_training_are_refused_and_a_table_needs_a_configuration(models, shop, tmp_path):
    later = tmp_path / "later.csv"
    with pytest.raises(UserError, match=r"got rows from 2024-01-\d\dT.*, where .* was trained on interactions until"):
        offline.evaluate(models[0], later, "2023-12-01", Console(), shop)
    with pytest.raises(UserError, match=r"got 0 positives in 0 rows of .*add later interactions"):
        offline.evaluate(models[0], tmp_path / "only_earlier.csv", None, Console(), shop)
    with pytest.raises(UserError, match=r"is a table of interactions.*add --config FILE"):
        offline.evaluate(models[0], later, None, Console())


def test_a_folder_that_is_no_model_of_ours_is_refused(models, tmp_path):
    with pytest.raises(UserError, match=r"which has no saved_model\.pb"):
        read_model_info(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "saved_model.pb").write_bytes((models[0] / "saved_model.pb").read_bytes())
    with pytest.raises(UserError, match="a model must say when it was trained"):
        read_model_info(other)
    assert read_model_info(models[0]).trained_until == "2024-02-09T00:00:00+00:00"
    assert (models[0] / FILE_NAME).is_file()


@pytest.fixture
def config(tmp_path) -> pathlib.Path:
    """Two tables: anna had item11, item10 and last item2; ben item3; carl gave item4 a low rating."""
    (tmp_path / "interactions.csv").write_text(
        "user_id,item_id,timestamp,rating\nanna,item10,1700000002,5\nanna,item11,1700000001,5\n"
        "anna,item2,1700000003,4\nben,item3,1700000001,5\ncarl,item4,1700000001,1\nanna,item9,1700000004,2\n"
    )
    items = "".join(f"item{n},Title {n},parity{n % 2}\n" for n in range(12))
    (tmp_path / "items.csv").write_text("item_id,title,categories\n" + items)
    file = tmp_path / "shop.yaml"
    file.write_text("data: {interactions: interactions.csv, items: items.csv, min_rating: 4}\n")
    return file


def test_top_shows_the_history_latest_first_and_the_best_items_that_are_not_in_it(models, config):
    text = shown(recommend.top, config, models[0], "anna", 3)
    history, best = text.split("Top 3")
    assert [line.strip() for line in history.splitlines()] == [
        "History of anna, latest first (3 items)",
        "Title 2 (parity0) [item2]",
        "Title 10 (parity0) [item10]",
        "Title 11 (parity1) [item11]",
    ]
    assert [line.split("[")[1] for line in best.strip().splitlines()] == ["item9]", "item8]", "item7]"]


def test_a_user_without_a_positive_is_named(models, config):
    with pytest.raises(UserError, match=r"--user must have a positive in data\.interactions, got 'carl'"):
        recommend.top(config, models[0], "carl", 3, Console())


def test_a_table_without_a_usable_row_is_named(models, config):
    table = config.parent / "interactions.csv"
    table.write_text("user_id,item_id,timestamp,rating\nanna,item10,yesterday,5\n")
    with pytest.raises(
        DataError, match=r"no row of data\.interactions can be used; the first: .*interactions\.csv row"
    ):
        recommend.top(config, models[0], "anna", 3, Console())


def test_predict_writes_the_best_items_of_all_users_or_of_those_that_are_named(models, config, tmp_path):
    def predicted(**keywords) -> list[list[str]]:
        options = {"users": None, "candidates": None, "n": 2} | keywords
        shown(recommend.predict, config, models[1], tmp_path / "out.csv", **options)
        with open(tmp_path / "out.csv", newline="") as file:
            return [row[:3] for row in csv.reader(file)]

    header = ["user_id", "item_id", "rank"]
    assert predicted() == [
        header,
        ["anna", "item0", "1"],
        ["anna", "item1", "2"],
        ["ben", "item0", "1"],
        ["ben", "item1", "2"],
    ]
    (tmp_path / "users.txt").write_text("ben\nnobody\n")
    (tmp_path / "candidates.txt").write_text("item3\nitem8\nitem5\n")
    assert predicted(users=tmp_path / "users.txt", candidates=tmp_path / "candidates.txt") == [
        header,
        ["ben", "item5", "1"],
        ["ben", "item8", "2"],
        ["nobody", "item3", "1"],
        ["nobody", "item5", "2"],
    ]
    (tmp_path / "candidates.txt").write_text("item99\n")
    with pytest.raises(UserError, match="got 'item99' and 0 more"):
        predicted(candidates=tmp_path / "candidates.txt")


def test_a_prediction_that_fails_midway_leaves_the_earlier_file(models, config, tmp_path, monkeypatch):
    options = {"users": None, "candidates": None, "n": 2}
    shown(recommend.predict, config, models[1], tmp_path / "out.csv", **options)
    earlier = (tmp_path / "out.csv").read_bytes()

    rank_one = recommend.Ranker.top

    def fails_for_ben(self, user, *arguments):
        if user == "ben":
            raise RuntimeError("the disk is full")
        return rank_one(self, user, *arguments)

    monkeypatch.setattr(recommend.Ranker, "top", fails_for_ben)
    with pytest.raises(RuntimeError, match="disk is full"):
        shown(recommend.predict, config, models[0], tmp_path / "out.csv", **options)
    assert (tmp_path / "out.csv").read_bytes() == earlier


@pytest.mark.parametrize(("repeats", "expected"), [("keep", ["a", "b", "a"]), ("first_only", ["b", "a"])])
def test_histories_follow_the_policy_on_repeats(tmp_path, repeats, expected):
    path = tmp_path / "interactions.csv"
    path.write_text("user_id,item_id,timestamp\nu,a,1000000001\nu,b,1000000002\nu,a,1000000003\n")
    data = DataConfig(interactions=str(path), items="unused.csv", repeats=repeats)
    known = {item_id: Item(item_id=item_id) for item_id in "ab"}
    assert recommend.read_histories(data, known, None) == {"u": expected}

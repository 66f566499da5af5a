"""How a table is cut into windows, and that no window reads what comes after it."""

import csv
import datetime
import pathlib

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.rows import SPLITS
from sllmr.components.interactions_example_gen.tables import DataError
from sllmr.components.interactions_example_gen.transforms import PrepareInteractions
from sllmr.pipeline.backtest.windows import ending, plan_windows, read_times
from sllmr.pipeline.config import ConfigError, load_config

ROOT = pathlib.Path(__file__).parents[3]
FIRST = datetime.date(2026, 1, 10)
UTC = datetime.UTC


def milliseconds(day: datetime.date, hour: int = 12) -> int:
    return int(datetime.datetime.combine(day, datetime.time(hour), UTC).timestamp() * 1000)


def days(count: int, hour: int = 12) -> np.ndarray:
    """One interaction a day from FIRST on."""
    return np.array([milliseconds(FIRST + datetime.timedelta(days=n), hour) for n in range(count)])


def config(directory: pathlib.Path = pathlib.Path(), **window) -> DataConfig:
    return DataConfig.model_validate(
        {
            "interactions": str(directory / "interactions.csv"),
            "items": str(directory / "items.csv"),
            "min_rating": 4,
            "split": {"strategy": "global_date"},
            "window": {"days": 20, "valid_days": 2, "test_days": 3, **window},
        }
    )


def test_windows_step_by_their_test_days_and_the_last_one_holds_the_newest_interaction():
    found = plan_windows(config(until="2100-01-01"), days(40), 5)

    end = FIRST + datetime.timedelta(days=40)  # the day after the newest
    for period in reversed(found):
        edges = {"until": 0, "test_from": 3, "valid_from": 5, "train_from": 20}
        for name, before in edges.items():
            assert getattr(period, name) == (end - datetime.timedelta(days=before)).isoformat()
        end -= datetime.timedelta(days=3)
    assert [period.number for period in found] == [1, 2, 3, 4, 5]
    tests = [(period.test_from, period.until) for period in found]
    assert [start for start, _ in tests[1:]] == [stop for _, stop in tests[:-1]]  # side by side, none twice


def test_the_end_of_the_configured_window_within_the_table_ends_the_last_window():
    until = FIRST + datetime.timedelta(days=33)
    assert plan_windows(config(until=until.isoformat()), days(40), 2)[-1].until == until.isoformat()
    at_noon = plan_windows(config(until="2026-02-10T12:00:00"), days(40), 2)
    assert at_noon[-1].until == "2026-02-10T12:00:00+00:00"
    assert at_noon[0].until == "2026-02-07T12:00:00+00:00"


def test_a_table_that_just_fits_is_taken_and_one_day_less_names_the_number_that_fits():
    assert len(plan_windows(config(until="2100-01-01"), days(32), 5)) == 5  # 20 + 4 x 3
    with pytest.raises(DataError, match=r"need 32 days of interactions \(20 \+ 4 x 3\), got 31 .*set --windows 4, or"):
        plan_windows(config(until="2100-01-01"), days(31), 5)
    with pytest.raises(DataError, match=r"got 20 .*2026-01-30; lower data.window.days"):
        plan_windows(config(until="2100-01-01"), days(20), 2)


def test_a_last_window_without_a_train_day_of_the_first_is_refused():
    assert len(plan_windows(config(until="2100-01-01"), days(60), 5)) == 5  # 12 days later, of 15 train days
    with pytest.raises(
        ConfigError, match=r"got 15 train days and a last window 15 days later; raise data\.window\.days "
    ):
        plan_windows(config(until="2100-01-01"), days(60), 6)
    assert len(plan_windows(config(until="2100-01-01", days=21), days(60), 6)) == 6  # the number that it named


@pytest.mark.parametrize(
    ("part", "gap"), [("test", range(34, 37)), ("validation", range(32, 34)), ("train", range(17, 32))]
)
def test_a_part_without_interactions_is_refused(part, gap):
    times = np.delete(days(40), list(gap))  # of the first of two windows, which ends after day 36
    with pytest.raises(DataError, match=f"got none in the {part} days of window 1, 2026-"):
        plan_windows(config(until="2100-01-01"), times, 2)


def test_a_configuration_without_a_window_and_a_table_without_rows_are_refused():
    with pytest.raises(ConfigError, match=r"needs data.window, got none; set data: \{split"):
        plan_windows(config().model_copy(update={"window": None}), days(40), 2)
    with pytest.raises(DataError, match="got none in"):
        plan_windows(config(), days(0), 2)


def test_six_windows_of_the_committed_configuration_fit_movielens():
    first, last = datetime.date(1997, 9, 20), datetime.date(1998, 4, 22)
    times = [milliseconds(first + datetime.timedelta(days=n)) for n in range((last - first).days + 1)]
    data = load_config(ROOT / "configs" / "movielens-backtest.yaml").data
    found = plan_windows(data, np.array(times), 6)
    assert (found[0].train_from, found[-1].until) == ("1997-09-25", "1998-04-23")


def write(directory: pathlib.Path, rows: list[tuple[str, str, int]]) -> None:
    for name, header, lines in (
        ("interactions", ("user_id", "item_id", "timestamp", "rating"), [(u, i, t // 1000, 5) for u, i, t in rows]),
        ("items", ("item_id", "title"), [(f"i{n}", f"Title {n}") for n in range(60)]),
    ):
        with open(directory / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *lines])


def shop_rows(last_day: int) -> list[tuple[str, str, int]]:
    """Four users who have an item a day, up to a day."""
    return [
        (f"u{user}", f"i{(user * 5 + day * 7) % 60}", milliseconds(FIRST + datetime.timedelta(days=day), user + 1))
        for day in range(last_day)
        for user in range(4)
    ]


def test_times_are_of_the_rows_that_make_examples(tmp_path):
    rows = shop_rows(3)
    write(tmp_path, rows)
    with open(tmp_path / "interactions.csv", "a") as file:
        file.write("u1,i1,not a time,5\nu1,i2,1999999999,1\n")  # malformed; rated too low
    assert sorted(read_times(config(tmp_path)).tolist()) == sorted(time for _, _, time in rows)
    lower = config(tmp_path).model_copy(update={"min_rating": 1.0})
    assert read_times(lower).max() == 1_999_999_999_000


def encoded(value: bytes | list) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


def emitted(data: DataConfig, directory: pathlib.Path) -> dict[str, list[bytes]]:
    """Every row of every split, and the catalog with its train counts; written to a new folder on the way."""
    with beam.Pipeline() as pipeline:
        output = pipeline | PrepareInteractions(data)
        for name in (*SPLITS, "catalog"):
            _ = (
                output[name]
                | f"Encode_{name}" >> beam.Map(encoded)
                | f"Write_{name}" >> beam.io.WriteToTFRecord(str(directory / name))
            )
    files = {name: sorted(directory.glob(f"{name}-*")) for name in (*SPLITS, "catalog")}
    return {
        name: sorted(row for path in paths for row in tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
        for name, paths in files.items()
    }


@pytest.mark.slow
def test_no_window_sees_a_row_of_a_later_one(tmp_path):
    """The rows, histories and counts of a window are the same if the table ends with the window."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write(whole, shop_rows(30))
    periods = plan_windows(config(whole, until="2100-01-01"), read_times(config(whole)), 3)
    first = periods[0]
    end = milliseconds(datetime.date.fromisoformat(first.until), 0)
    write(cut, [row for row in shop_rows(30) if row[2] < end])

    seen = emitted(ending(config(whole), first.until), tmp_path / "a")
    assert seen == emitted(ending(config(cut), first.until), tmp_path / "b")
    # The same comparison finds the leak of windows that do not end before later rows.
    assert seen != emitted(ending(config(whole), periods[1].until), tmp_path / "c")
    assert len(seen["test"]) == 4 * 3 * 2  # users, days, and a negative for each positive
    assert len(seen["train"]) > 50

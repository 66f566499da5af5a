import datetime

import pydantic
import pytest
import yaml

from sllmr.components.interactions_example_gen.config import DataConfig, SplitConfig


def test_only_the_two_tables_have_no_default():
    assert [name for name, field in DataConfig.model_fields.items() if field.is_required()] == [
        "interactions",
        "items",
    ]


def test_a_round_trip_through_json_keeps_every_setting():
    config = DataConfig(
        interactions="a.csv",
        items="b.parquet",
        columns={"label": "clicked", "order": ""},
        item_columns={"text": ["description", "colour"]},
        split={"strategy": "global_date", "valid_from": "2024-01-01", "test_from": "2024-02-01T12:00:00Z"},
        min_rating=3.5,
    )
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"valid_fraction": 0.5, "test_fraction": 0.5},
            "must be below 1 to leave rows for training, got 0.5",
        ),
        ({"strategy": "global_date", "valid_from": "2024-01-01"}, "must be set together"),
        (
            {"valid_from": "2024-01-01", "test_from": "2024-02-01"},
            "need strategy global_date, got 'leave_last_two'",
        ),
        (
            {"strategy": "global_date", "valid_from": "2024-02-01", "test_from": "2024-01-01"},
            "valid_from must lie before test_from",
        ),
        (
            {"strategy": "global_date", "valid_from": "yesterday", "test_from": "2024-01-01"},
            "must be an ISO 8601 date or date-time, got 'yesterday'",
        ),
    ],
)
def test_a_split_that_cannot_work_is_refused(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        SplitConfig(**settings)


def test_an_unknown_key_is_refused():
    with pytest.raises(pydantic.ValidationError, match="Extra inputs are not permitted"):
        DataConfig(interactions="a.csv", items="b.csv", interaction="a.csv")


def test_cold_start_follows_the_split_unless_set():
    tables = {"interactions": "a.csv", "items": "b.csv"}
    assert DataConfig(**tables).cold_by == "user_train_positives"
    assert DataConfig(**tables, split={"strategy": "global_date"}).cold_by == "history_length"
    assert DataConfig(**tables, cold={"by": "history_length"}).cold_by == "history_length"


def test_unquoted_dates_of_yaml_are_read_as_they_are_written():
    text = "{strategy: global_date, valid_from: 2024-03-03, test_from: 2024-03-05 12:00:00}"
    split = SplitConfig.model_validate(yaml.safe_load(text))
    assert (split.valid_from, split.test_from) == ("2024-03-03", "2024-03-05T12:00:00")


WINDOW = {"interactions": "a.csv", "items": "b.csv", "split": {"strategy": "global_date"}}


def test_a_window_ends_today_at_0_utc_unless_a_date_is_set():
    before = datetime.datetime.now(datetime.UTC).date()
    window = DataConfig.model_validate({**WINDOW, "window": {"days": 7}}).window
    assert before.isoformat() <= window.until <= datetime.datetime.now(datetime.UTC).date().isoformat()

    fixed = DataConfig.model_validate({**WINDOW, "window": {"days": 7, "test_days": 2, "until": "1970-01-11"}})
    assert [bound // 86_400_000 for bound in fixed.window.bounds] == [3, 7, 8, 10]
    assert DataConfig.model_validate_json(fixed.model_dump_json()) == fixed


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"window": {"days": 3, "valid_days": 2}}, r"must be below window.days .* got 2 \+ 1 of 3; raise window.days"),
        ({"window": {"days": 7, "until": "tomorrow"}}, "must be an ISO 8601 date"),
        ({"window": {"days": 7}, "split": {}}, r"window needs split.strategy global_date .* got 'leave_last_two'"),
        (
            {
                "window": {"days": 7},
                "split": {"strategy": "global_date", "valid_from": "2024-01-01", "test_from": "2024-01-02"},
            },
            "window needs split.strategy global_date without dates of its own",
        ),
    ],
)
def test_a_window_that_cannot_be_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        DataConfig.model_validate({**WINDOW, **changes})

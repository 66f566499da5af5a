"""Which model a warm start takes its weights from: never one that has seen a row that is held out today."""

import pathlib

from tfx.types import standard_artifacts

from sllmr.components.artifacts import DataReport
from sllmr.components.interactions_example_gen.data_report import FILE_NAME as REPORT_FILE
from sllmr.components.model_info import ModelInfo, Period, write_model_info
from sllmr.models.features import FeatureSizes
from sllmr.pipeline.blessed_models import BLESSINGS
from sllmr.pipeline.warm_start import BASE_MODEL, REPORT, WarmStartStrategy
from tests.components.data_reports import data_report

TODAY = data_report(("2024-03-01", "2024-03-08"), ("2024-03-09", "2024-03-09"), ("2024-03-10", "2024-03-10"))


def model(directory: pathlib.Path, number: int, train_until: str, valid_until: str, test_until: str):
    artifact = standard_artifacts.Model()
    artifact.id, artifact.uri = number, str(directory / str(number))
    served = directory / str(number) / "Format-Serving"
    served.mkdir(parents=True)
    (served / "saved_model.pb").write_bytes(b"")
    spans = {"train": train_until, "valid": valid_until, "test": test_until}
    info = ModelInfo(
        backbone="dcnv2",
        sizes=FeatureSizes(),
        use_user_id=False,
        seed=1,
        data_hash="0" * 16,
        splits={name: Period(first="2024-01-01", last=last) for name, last in spans.items()},
        versions={},
    )
    write_model_info(info, str(served))
    return artifact


def blessing(number: int, of: int, blessed: bool = True):
    artifact = standard_artifacts.ModelBlessing()
    artifact.id = number
    artifact.set_int_custom_property("current_model_id", of)
    artifact.set_int_custom_property("blessed", int(blessed))
    return artifact


def resolved(directory: pathlib.Path, models: list, blessings: list) -> list[int]:
    report = DataReport()
    report.uri = str(directory / "report")
    (directory / "report").mkdir(exist_ok=True)
    (directory / "report" / REPORT_FILE).write_text(TODAY.model_dump_json())
    given = {REPORT: [report], BASE_MODEL: models, BLESSINGS: blessings}
    return [m.id for m in WarmStartStrategy().resolve_artifacts(None, given)[BASE_MODEL]]


def test_the_first_run_starts_cold(tmp_path):
    assert resolved(tmp_path, [], []) == []


def test_the_model_that_was_blessed_last_is_taken(tmp_path):
    models = [
        model(tmp_path, 1, "2024-03-05", "2024-03-06", "2024-03-07"),
        model(tmp_path, 2, "2024-03-06", "2024-03-07", "2024-03-08"),
        model(tmp_path, 3, "2024-03-07", "2024-03-08", "2024-03-09"),
    ]
    assert resolved(tmp_path, models, [blessing(11, 1), blessing(12, 2), blessing(13, 3, blessed=False)]) == [2]
    assert resolved(tmp_path, models[:1], [blessing(11, 1), blessing(12, 2)]) == [1]  # the files of 2 are gone


def test_a_model_that_trained_or_chose_its_epoch_on_a_row_that_is_held_out_today_is_left_out(tmp_path):
    earlier = model(tmp_path, 1, "2024-03-07", "2024-03-08", "2024-03-09")
    chose_on_validation = model(tmp_path, 2, "2024-03-08", "2024-03-09", "2024-03-10")  # today's own, in a rerun
    trained_on_test = model(tmp_path, 3, "2024-03-10", "2024-03-10", "2024-03-11")
    blessings = [blessing(11, 1), blessing(12, 2), blessing(13, 3)]

    assert resolved(tmp_path, [earlier, chose_on_validation, trained_on_test], blessings) == [1]
    assert resolved(tmp_path, [chose_on_validation, trained_on_test], blessings) == []


def test_a_model_that_does_not_say_when_it_was_trained_is_left_out(tmp_path):
    silent = model(tmp_path, 1, "2024-03-07", "2024-03-08", "2024-03-09")
    (tmp_path / "1" / "Format-Serving" / "assets.extra" / "model.json").unlink()

    assert resolved(tmp_path, [silent], [blessing(11, 1)]) == []

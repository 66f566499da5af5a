"""Which model a warm start takes its weights from: never one that has seen a row that is held out today, and never one
of another arm.
"""

import pathlib

from tfx.types import standard_artifacts

from sllmr.components.artifacts import DataReport
from sllmr.components.interactions_example_gen.data_report import FILE_NAME as REPORT_FILE
from sllmr.components.llm_comparison.executor import WITH_LLM_ID, WITHOUT_LLM_ID
from sllmr.components.model_info import ModelInfo, Period, write_model_info
from sllmr.models.features import FeatureSizes
from sllmr.pipeline.blessed_models import BLESSINGS
from sllmr.pipeline.warm_start import (
    BASE_MODEL,
    BASE_MODEL_WITH_VECTOR_PAIRS,
    BASE_MODEL_WITHOUT_PAIRS,
    REPORT,
    WarmStartOfArmsStrategy,
    WarmStartStrategy,
)
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


def report(directory: pathlib.Path) -> DataReport:
    report = DataReport()
    report.uri = str(directory / "report")
    (directory / "report").mkdir(exist_ok=True)
    (directory / "report" / REPORT_FILE).write_text(TODAY.model_dump_json())
    return report


def resolved(directory: pathlib.Path, models: list, blessings: list) -> list[int]:
    given = {REPORT: [report(directory)], BASE_MODEL: models, BLESSINGS: blessings}
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


class Days:
    """The models of a schedule whose last days were 7 and 8 March, when today's validation day is the 9th.

    A day leaves the models with pairs, without, and with pairs of vectors, and what the two comparisons chose: of the
    first day 10, 11, 12, 13, and 14, of the second 20 to 24, of a run of today 30 to 34.
    """

    def __init__(self, directory: pathlib.Path, days: int) -> None:
        self.directory = directory
        self.models: list = []
        self.chosen_beside: list = []
        for day in range(1, days + 1):
            arms = [self._model(10 * day + arm, day) for arm in range(3)]
            chosen, beside = (self._model(10 * day + number, day) for number in (3, 4))
            self.name(chosen, arms[0], arms[1])
            self.name(beside, arms[2], arms[1])
            self.models += [*arms, chosen, beside]
            self.chosen_beside.append(beside)

    def _model(self, number: int, day: int):
        return model(self.directory, number, *(f"2024-03-0{5 + day + n}" for n in range(2)), "2024-03-10")

    @staticmethod
    def name(chosen, with_llm, without_llm) -> None:
        chosen.set_int_custom_property(WITH_LLM_ID, with_llm.id)
        chosen.set_int_custom_property(WITHOUT_LLM_ID, without_llm.id)

    def without(self, *gone: int) -> "Days":
        self.models = [m for m in self.models if m.id not in gone]
        self.chosen_beside = [m for m in self.chosen_beside if m.id not in gone]
        return self

    def starts(self, *blessed: int, blocked: tuple[int, ...] = ()) -> tuple[list[int], list[int], list[int]]:
        """Of the arms with pairs, without, and with pairs of vectors."""
        blessings = [blessing(100 + of, of, blessed=of in blessed) for of in sorted((*blessed, *blocked))]
        given = {
            REPORT: [report(self.directory)],
            BASE_MODEL: self.models,
            BASE_MODEL_WITHOUT_PAIRS: self.models,
            BASE_MODEL_WITH_VECTOR_PAIRS: self.chosen_beside[::-1],
            BLESSINGS: blessings[::-1],
        }
        found = WarmStartOfArmsStrategy().resolve_artifacts(None, given)
        arms = (BASE_MODEL, BASE_MODEL_WITHOUT_PAIRS, BASE_MODEL_WITH_VECTOR_PAIRS)
        return tuple([m.id for m in found[arm]] for arm in arms)


COLD = ([], [], [])


def test_each_arm_starts_from_its_own_model_of_the_last_blessed_run_whichever_of_them_was_chosen(tmp_path):
    assert Days(tmp_path, 2).starts(13, 23) == ([20], [21], [22])


def test_every_arm_of_the_first_run_starts_cold(tmp_path):
    assert Days(tmp_path, 0).starts() == COLD


def test_a_rerun_of_today_starts_from_what_the_run_before_it_started_from(tmp_path):
    assert Days(tmp_path, 3).starts(13, 23, 33) == ([20], [21], [22])


def test_a_run_whose_model_was_blocked_is_the_start_of_no_arm(tmp_path):
    days = Days(tmp_path, 2)
    assert days.starts(13, blocked=(23,)) == ([10], [11], [12])
    assert days.starts(blocked=(13, 23)) == COLD


def test_if_the_model_of_one_arm_is_gone_both_start_from_an_earlier_run_or_cold(tmp_path):
    days = Days(tmp_path, 2).without(21)
    assert days.starts(13, 23) == ([10], [11], [12])
    assert days.without(10).starts(13, 23) == COLD


def test_a_model_that_was_deleted_to_be_excluded_takes_its_run_with_it(tmp_path):
    assert Days(tmp_path, 2).without(23).starts(13, 23) == ([10], [11], [12])


def test_a_blessed_model_that_no_comparison_chose_is_no_arms_start(tmp_path):
    """Of a run without train.compare, or of an earlier version, whose models may have the LLM in either arm."""
    days = Days(tmp_path, 2)
    assert days.starts(13, 20) == ([10], [11], [12])
    assert days.starts(20) == COLD


def test_without_a_model_of_its_own_the_arm_with_pairs_of_vectors_starts_from_the_one_without_pairs(tmp_path):
    days = Days(tmp_path, 2)
    assert days.without(24).starts(13, 23) == ([20], [21], [21])


def test_a_repeated_training_with_pairs_replaces_the_first_beside_the_same_model_without(tmp_path):
    """As after a change of the gate: TrainerWithoutPairs and the arm with vectors come from the cache."""
    days = Days(tmp_path, 2)
    again, chosen = (model(tmp_path, number, "2024-03-07", "2024-03-08", "2024-03-10") for number in (25, 26))
    days.name(chosen, again, days.models[6])
    days.models += [again, chosen]
    assert days.starts(13, 23, 26) == ([25], [21], [22])

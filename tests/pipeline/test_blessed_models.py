"""Which models a new one is compared with."""

from tfx.types import standard_artifacts

from sllmr.pipeline.blessed_models import (
    BLESSINGS,
    CANDIDATE,
    FIRST_BLESSED,
    LAST_BLESSED,
    BlessedModelsStrategy,
)


def resolved(candidate: int, blessings: list[tuple[int, bool]], gone: tuple[int, ...] = ()) -> tuple[list, list]:
    """Ids of the last and the first blessed model, given (model, blessed) in the order of evaluation."""
    models = {}
    for number in {candidate, *(number for number, _ in blessings)} - set(gone):
        models[number] = standard_artifacts.Model()
        models[number].id = number
    artifacts = []
    for order, (number, blessed) in enumerate(blessings):
        blessing = standard_artifacts.ModelBlessing()
        blessing.id = 100 + order
        blessing.set_int_custom_property("current_model_id", number)
        blessing.set_int_custom_property("blessed", int(blessed))
        artifacts.append(blessing)
    result = BlessedModelsStrategy().resolve_artifacts(
        None,
        {
            CANDIDATE: [models[candidate]],
            LAST_BLESSED: list(models.values()),
            FIRST_BLESSED: list(models.values()),
            BLESSINGS: artifacts[::-1],
        },
    )
    return tuple([model.id for model in result[key]] for key in (LAST_BLESSED, FIRST_BLESSED))


def test_the_first_model_is_compared_with_none():
    assert resolved(1, []) == ([], [])


def test_a_new_model_is_compared_with_the_last_and_the_first_blessed_one():
    assert resolved(5, [(1, False), (2, True), (3, True), (4, False)]) == ([3], [2])


def test_a_rerun_finds_what_the_run_before_it_found():
    assert resolved(1, [(1, True)]) == resolved(1, [])
    assert resolved(3, [(1, True), (2, True), (3, True)]) == resolved(3, [(1, True), (2, True)]) == ([2], [1])


def test_the_order_is_that_of_the_blessings_so_that_a_model_that_came_back_is_the_last():
    assert resolved(3, [(1, True), (2, True), (1, True)]) == ([1], [1])


def test_a_model_whose_files_are_gone_is_left_out():
    assert resolved(4, [(1, True), (2, True), (3, True)], gone=(1, 3)) == ([2], [2])

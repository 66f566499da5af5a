"""Finds the models that a warm start takes its weights from: each arm of a comparison starts from its own.

If both arms started from the last blessed model, the arm without pairs would start from weights that the LLM trained,
and the comparison would measure what the pairs of one day add, not whether the LLM helps.
"""

from collections.abc import Mapping

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from sllmr.components.interactions_example_gen.config import iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.llm_comparison.executor import MODEL, WITH_LLM_ID, WITHOUT_LLM_ID
from sllmr.components.model_info import read_model_info
from sllmr.models.errors import UserError
from sllmr.pipeline.blessed_models import BLESSINGS, blessed_ids

REPORT = "report"
BASE_MODEL = "base_model"
BASE_MODEL_WITHOUT_PAIRS = "base_model_without_pairs"
BASE_MODEL_WITH_VECTOR_PAIRS = "base_model_with_vector_pairs"
"""Keys of the Resolver's channels, beside BLESSINGS; the base models are what it resolves, BASE_MODEL for the model
with pairs, or for the only one."""


class WarmStartStrategy(resolver.ResolverStrategy):
    """Resolves the model that was blessed last among those whose training ended before today's held-out rows begin.

    For a run that compares nothing. A model that trained on a validation or test row of today would be measured on what
    it knows. A rerun on the same data finds the same model as the run before it, because that run's own model has
    seen today's validation rows.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        models = {model.id: model for model in input_dict[BASE_MODEL]}
        time = _held_out_from(input_dict[REPORT])
        found = [
            models[model_id]
            for model_id in blessed_ids(input_dict[BLESSINGS])
            if model_id in models and trained_before(models[model_id], time)
        ]
        return {**input_dict, BASE_MODEL: found[-1:]}


class WarmStartOfArmsStrategy(resolver.ResolverStrategy):
    """Resolves each arm's own model of the last run whose chosen model was blessed, by WarmStartStrategy's date rule.

    Both models come from one earlier comparison, whichever of them it chose and the Evaluator blessed. So both arms
    have had the same number of trainings on the same rows, and only the pairs of the runs behind them set them apart.
    If one of the two is gone, an earlier run is taken, or both arms start cold. Neither arm starts from a run whose
    model was blocked: what blocked it may be in both models.

    The model with pairs that vectors score starts from its own model, too, if it was compared with the same model
    without pairs. Else, as on the first day with train.compare_vectors, it starts from that model itself: as many
    trainings, and no LLM in them.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        models = {model.id: model for model in input_dict[BASE_MODEL]}
        time = _held_out_from(input_dict[REPORT])
        blessed = [models[model_id] for model_id in blessed_ids(input_dict[BLESSINGS]) if model_id in models]
        pairs = [both for chosen in blessed if (both := _compared(chosen, models, time))]
        if not pairs:
            nothing = (BASE_MODEL, BASE_MODEL_WITHOUT_PAIRS, BASE_MODEL_WITH_VECTOR_PAIRS)
            return {**input_dict, **{arm: [] for arm in nothing}}
        with_pairs, without_pairs = pairs[-1]
        chosen_beside = sorted(input_dict[BASE_MODEL_WITH_VECTOR_PAIRS], key=lambda model: model.id)
        beside = [both for chosen in chosen_beside if (both := _compared(chosen, models, time))]
        with_vector_pairs = [of_vectors for of_vectors, without in beside if without.id == without_pairs.id]
        return {
            **input_dict,
            BASE_MODEL: [with_pairs],
            BASE_MODEL_WITHOUT_PAIRS: [without_pairs],
            BASE_MODEL_WITH_VECTOR_PAIRS: (with_vector_pairs or [without_pairs])[-1:],
        }


def _compared(
    chosen: types.Artifact, models: Mapping[int, types.Artifact], time: int
) -> tuple[types.Artifact, types.Artifact] | None:
    """The models with and without pairs behind the model that a comparison chose.

    None if one of them is gone or was not trained before `time`, or if `chosen` does not name them: no comparison, or
    one of an earlier version, chose it.
    """
    if not (chosen.has_custom_property(WITH_LLM_ID) and chosen.has_custom_property(WITHOUT_LLM_ID)):
        return None
    with_pairs = models.get(chosen.get_int_custom_property(WITH_LLM_ID))
    without_pairs = models.get(chosen.get_int_custom_property(WITHOUT_LLM_ID))
    if with_pairs is None or without_pairs is None:
        return None
    if not (trained_before(with_pairs, time) and trained_before(without_pairs, time)):
        return None
    return with_pairs, without_pairs


def _held_out_from(reports: list[types.Artifact]) -> int:
    """Where the validation and test rows begin, in Unix milliseconds."""
    (report,) = reports
    splits = read_report(report.uri).splits
    return min(iso_to_milliseconds(start) for name in ("valid", "test") if (start := splits[name].first))


def trained_before(model: types.Artifact, time: int) -> bool:
    """Whether all train and validation rows of a model lie before a Unix millisecond; False if it does not say."""
    try:
        until = read_model_info(path_utils.serving_model_path(model.uri)).trained_until
    except UserError:
        return False
    return until is not None and iso_to_milliseconds(until) < time


def warm_start_model(report: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of the model to start from in a run of one arm; `report` is that of the rows to train on."""
    return resolver.Resolver(
        strategy_class=WarmStartStrategy,
        **{
            REPORT: report,
            BASE_MODEL: types.Channel(type=standard_artifacts.Model),
            BLESSINGS: types.Channel(type=standard_artifacts.ModelBlessing),
        },
    ).with_id("WarmStart")


def warm_start_of_arms(report: types.BaseChannel, vector_comparison: str) -> resolver.Resolver:
    """A Resolver of the model to start from by arm; `vector_comparison` is the id of the step that compares vectors."""
    return resolver.Resolver(
        strategy_class=WarmStartOfArmsStrategy,
        **{
            REPORT: report,
            BASE_MODEL: types.Channel(type=standard_artifacts.Model),
            BASE_MODEL_WITHOUT_PAIRS: types.Channel(type=standard_artifacts.Model),
            # By its producer: the Evaluator never sees what that step chooses, so no blessing leads to it.
            BASE_MODEL_WITH_VECTOR_PAIRS: types.Channel(
                type=standard_artifacts.Model, producer_component_id=vector_comparison, output_key=MODEL
            ),
            BLESSINGS: types.Channel(type=standard_artifacts.ModelBlessing),
        },
    ).with_id("WarmStart")

"""Finds the model that a warm start takes its weights from."""

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from sllmr.components.interactions_example_gen.config import iso_to_milliseconds
from sllmr.components.interactions_example_gen.data_report import read_report
from sllmr.components.model_info import read_model_info
from sllmr.models.errors import UserError
from sllmr.pipeline.blessed_models import BLESSINGS, blessed_ids

REPORT = "report"
BASE_MODEL = "base_model"
"""Keys of the Resolver's channels, beside BLESSINGS; BASE_MODEL is what it resolves."""


class WarmStartStrategy(resolver.ResolverStrategy):
    """Resolves the model that was blessed last among those whose training ended before today's held-out rows begin.

    A model that trained on a validation or test row of today would be measured on what it knows. A rerun on the same
    data finds the model that the run before it found: that run's own model has seen today's validation rows.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        models = {model.id: model for model in input_dict[BASE_MODEL]}
        (report,) = input_dict[REPORT]
        splits = read_report(report.uri).splits
        starts = [iso_to_milliseconds(start) for name in ("valid", "test") if (start := splits[name].first)]
        found = [
            models[model_id]
            for model_id in blessed_ids(input_dict[BLESSINGS])
            if model_id in models and trained_before(models[model_id], min(starts))
        ]
        return {**input_dict, BASE_MODEL: found[-1:]}


def trained_before(model: types.Artifact, time: int) -> bool:
    """Whether all train and validation rows of a model lie before a Unix millisecond; not if it does not tell."""
    try:
        until = read_model_info(path_utils.serving_model_path(model.uri)).trained_until
    except UserError:
        return False
    return until is not None and iso_to_milliseconds(until) < time


def warm_start_model(report: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of the model to start from; `report` is that of the rows to train on."""
    return resolver.Resolver(
        strategy_class=WarmStartStrategy,
        **{
            REPORT: report,
            BASE_MODEL: types.Channel(type=standard_artifacts.Model),
            BLESSINGS: types.Channel(type=standard_artifacts.ModelBlessing),
        },
    ).with_id("WarmStart")

"""Finds the models that a new one is compared with: the last blessed one and the first blessed one."""

from collections.abc import Sequence

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts

CANDIDATE = "candidate"
LAST_BLESSED = "last_blessed"
FIRST_BLESSED = "first_blessed"
BLESSINGS = "blessings"
"""Keys of the Resolver's channels; LAST_BLESSED and FIRST_BLESSED are what it resolves."""


class BlessedModelsStrategy(resolver.ResolverStrategy):
    """Resolves the models that were blessed last and first, in the order of their blessings.

    The candidate itself is left out: it may be there already if TFX took it from its cache. So a rerun that changes
    nothing gives the Evaluator the inputs that it had, and TFX takes its result from the cache as well.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        candidates = {model.id for model in input_dict[CANDIDATE]}
        models = {model.id: model for model in input_dict[LAST_BLESSED] if model.id not in candidates}
        blessed = [models[model_id] for model_id in blessed_ids(input_dict[BLESSINGS]) if model_id in models]
        return {**input_dict, LAST_BLESSED: blessed[-1:], FIRST_BLESSED: blessed[:1]}


def blessed_ids(blessings: Sequence[types.Artifact]) -> list[int]:
    """Ids of the blessed models, in the order of their blessings; a model may stand there more than once."""
    return [
        blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY)
        for blessing in sorted(blessings, key=lambda blessing: blessing.id)
        if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY) == constants.BLESSED_VALUE
    ]


def blessed_models(candidate: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of the two models that `candidate` is compared with."""
    return resolver.Resolver(
        strategy_class=BlessedModelsStrategy,
        **{
            CANDIDATE: candidate,
            LAST_BLESSED: types.Channel(type=standard_artifacts.Model),
            FIRST_BLESSED: types.Channel(type=standard_artifacts.Model),
            BLESSINGS: types.Channel(type=standard_artifacts.ModelBlessing),
        },
    ).with_id("Resolver")

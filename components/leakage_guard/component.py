"""LeakageGuard: checks everything that training reads against the held-out rows."""

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec, standard_artifacts

from sllmr.components.artifacts import ItemCatalog, LeakageReport, LlmScores
from sllmr.components.leakage_guard.executor import Executor
from sllmr.models.features import FeatureSizes


class LeakageGuardSpec(component_spec.ComponentSpec):
    """Inputs, outputs and execution properties."""

    PARAMETERS: ClassVar = {
        "use_user_id": component_spec.ExecutionParameter(type=int),
        "sizes": component_spec.ExecutionParameter(type=str),
        "seed": component_spec.ExecutionParameter(type=int),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "catalog": component_spec.ChannelParameter(type=ItemCatalog),
        "transform_graph": component_spec.ChannelParameter(type=standard_artifacts.TransformGraph),
        "scores": component_spec.ChannelParameter(type=LlmScores, optional=True),
        "pairs": component_spec.ChannelParameter(type=standard_artifacts.Examples, optional=True),
    }
    OUTPUTS: ClassVar = {"report": component_spec.ChannelParameter(type=LeakageReport)}


class LeakageGuard(base_beam_component.BaseBeamComponent):
    """Stops the run if a validation or test interaction reached train rows, histories, counts, vocabularies, scores or
    pairs.

    It compares the outputs of the earlier steps and runs none of their code: the positive rows of all splits give each
    user's positives by position, and the guard counts again what the steps counted.

    Outputs: `report`, leakage.json.
    """

    SPEC_CLASS = LeakageGuardSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        examples: types.BaseChannel,
        catalog: types.BaseChannel,
        transform_graph: types.BaseChannel,
        use_user_id: bool,
        sizes: FeatureSizes,
        seed: int,
        code_fingerprint: str,
        scores: types.BaseChannel | None = None,
        pairs: types.BaseChannel | None = None,
    ):
        """
        Args:
            examples: rows of all splits, of InteractionsExampleGen.
            catalog: of InteractionsExampleGen.
            transform_graph: of Transform, with the vocabularies.
            use_user_id: whether the users have a vocabulary.
            sizes: of the rows, with the declared features, which may have vocabularies, too.
            seed: llm.seed, which the ids of scoring contexts depend on.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.
            scores: of LlmScorer; None before it ran.
            pairs: of PairBuilder; None likewise.
        """
        super().__init__(
            LeakageGuardSpec(
                examples=examples,
                catalog=catalog,
                transform_graph=transform_graph,
                scores=scores,
                pairs=pairs,
                use_user_id=int(use_user_id),
                sizes=sizes.model_dump_json(),
                seed=seed,
                code_fingerprint=code_fingerprint,
                report=types.Channel(type=LeakageReport),
            )
        )

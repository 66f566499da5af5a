"""LlmScorer: queries the LLM about some users and items of the train split, once, offline."""

import dataclasses
import json

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel, component_spec, standard_artifacts

from sllmr.components.artifacts import ItemCatalog, ItemVectors, LlmScores
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.executor import LAST_SCORES, Executor
from sllmr.components.llm_scorer.strategies import create_strategy
from sllmr.components.pair_yield import PairYield


class LlmScorerSpec(types.ComponentSpec):
    """Inputs, output and properties of LlmScorer."""

    PARAMETERS = {  # noqa: RUF012  the form that TFX's base class declares
        "config": component_spec.ExecutionParameter(type=str),
        "cache_directory": component_spec.ExecutionParameter(type=str),
        "store_url": component_spec.ExecutionParameter(type=str),
        "pair_yield": component_spec.ExecutionParameter(type=str),
        "prompt_version": component_spec.ExecutionParameter(type=str),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "catalog": component_spec.ChannelParameter(type=ItemCatalog),
        "item_vectors": component_spec.ChannelParameter(type=ItemVectors, optional=True),
        LAST_SCORES: component_spec.ChannelParameter(type=LlmScores, optional=True),
    }
    OUTPUTS = {  # noqa: RUF012
        "scores": component_spec.ChannelParameter(type=LlmScores),
    }


class LlmScorer(base_beam_component.BaseBeamComponent):
    """TFX component: reads train rows and catalog, writes the score table."""

    SPEC_CLASS = LlmScorerSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        examples: channel.BaseChannel,
        catalog: channel.BaseChannel,
        config: LlmConfig,
        cache_directory: str,
        code_fingerprint: str,
        pair_yield: PairYield,
        item_vectors: channel.BaseChannel | None = None,
        store_url: str | None = None,
        last_scores: channel.BaseChannel | None = None,
    ):
        """
        Args:
            examples: rows; only their train split is read.
            catalog: ItemCatalog.
            config: the LLM, how it is queried, and the budget.
            pair_yield: preference pairs of a context; counts only if config.budget.pairs is None.
            cache_directory: absolute; keeps answers between runs, so it lies outside the pipeline's root.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.
            item_vectors: of ItemEmbedder, for strategy `embedding` and for candidates near a history; None: none.
            store_url: of the database that keeps answers and counters; None: cache_directory does.
            last_scores: a table to bring up to date, with llm.rescore; None, or empty: everything is scored.

        Raises:
            ValueError: the prompt file does not fit the strategy.
        """
        super().__init__(
            LlmScorerSpec(
                examples=examples,
                catalog=catalog,
                item_vectors=item_vectors,
                last_scores=last_scores,
                config=config.model_dump_json(),
                cache_directory=cache_directory,
                store_url=store_url or "",
                # Empty if budget.pairs is set: TFX's cache key must not change if the same scores make other pairs.
                pair_yield=json.dumps(dataclasses.asdict(pair_yield)) if config.budget.pairs is None else "",
                # Part of TFX's cache key: an edited prompt makes new requests.
                prompt_version=create_strategy(config.resolve()).prompt_version,
                code_fingerprint=code_fingerprint,
                scores=types.Channel(type=LlmScores),
            )
        )

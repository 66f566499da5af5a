"""Finds the score table that LlmScorer brings up to date."""

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.dsl.components.common import resolver

from sllmr.components.artifacts import LlmScores
from sllmr.components.llm_scorer.executor import EXAMPLES_ID

EXAMPLES = "examples"
LAST = "last"
"""Keys of the Resolver's channels; LAST is what it resolves."""


class LastScoresStrategy(resolver.ResolverStrategy):
    """Resolves the last score table that was made of other rows than today's.

    So a rerun on the same data gives LlmScorer the inputs that it had, and TFX takes its result from the cache.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        current = {rows.id for rows in input_dict[EXAMPLES]}
        earlier = [
            table
            for table in sorted(input_dict[LAST], key=lambda table: table.id)
            if table.has_custom_property(EXAMPLES_ID) and table.get_int_custom_property(EXAMPLES_ID) not in current
        ]
        return {**input_dict, LAST: earlier[-1:]}


def last_scores(examples: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of the table of the last run; `examples` are the rows of this one."""
    return resolver.Resolver(
        strategy_class=LastScoresStrategy,
        **{EXAMPLES: examples, LAST: types.Channel(type=LlmScores)},
    ).with_id("LastScores")

"""Finds the score table that LlmScorer brings up to date."""

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.dsl.components.common import resolver

from sllmr.components.artifacts import LlmScores
from sllmr.components.examples import TRAIN_UNTIL
from sllmr.components.llm_scorer.executor import EXAMPLES_ID

EXAMPLES = "examples"
LAST = "last"
"""Keys of the Resolver's channels; LAST is what it resolves."""


class LastScoresStrategy(resolver.ResolverStrategy):
    """Resolves the latest score table whose train rows were written before today's and end no later.

    The candidates of a table with later train rows depend on interactions that today's rows hold out: its popularity
    counts them, and it leaves out their items for their users. Of the tables whose train rows end last, the newest is
    taken. Rows that were not written before today's do not count, so that a rerun on the same data gives LlmScorer the
    same inputs, and TFX takes its result from the cache.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        (rows,) = input_dict[EXAMPLES]
        earlier = [
            table
            for table in input_dict[LAST]
            if all(artifact.has_custom_property(TRAIN_UNTIL) for artifact in (rows, table))
            and table.get_int_custom_property(TRAIN_UNTIL) <= rows.get_int_custom_property(TRAIN_UNTIL)
            and table.get_int_custom_property(EXAMPLES_ID) < rows.id
        ]
        earlier.sort(key=lambda table: (table.get_int_custom_property(TRAIN_UNTIL), table.id))
        return {**input_dict, LAST: earlier[-1:]}


def last_scores(examples: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of the table of the last run; `examples` are the rows of this one."""
    return resolver.Resolver(
        strategy_class=LastScoresStrategy,
        **{EXAMPLES: examples, LAST: types.Channel(type=LlmScores)},
    ).with_id("LastScores")

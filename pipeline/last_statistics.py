"""Finds the statistics of the last run that got past ExampleValidator."""

from ml_metadata.metadata_store import MetadataStore
from tfx import types
from tfx.dsl.components.common import resolver
from tfx.types import standard_artifacts

from sllmr.components.example_validator.executor import STATISTICS_ID

CURRENT = "current"
LAST = "last"
ANOMALIES = "anomalies"
"""Keys of the Resolver's channels; LAST is what it resolves."""


class LastStatisticsStrategy(resolver.ResolverStrategy):
    """Resolves the statistics that ExampleValidator let pass last, other than the current ones.

    So a rerun on the same data gives ExampleValidator the same inputs, and TFX takes its result from the cache.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """See base class."""
        current = {statistics.id for statistics in input_dict[CURRENT]}
        known = {statistics.id: statistics for statistics in input_dict[LAST]}
        passed = [
            anomalies.get_int_custom_property(STATISTICS_ID)
            for anomalies in sorted(input_dict[ANOMALIES], key=lambda anomalies: anomalies.id)
        ]
        earlier = [known[number] for number in passed if number in known and number not in current]
        return {**input_dict, LAST: earlier[-1:]}


def last_statistics(current: types.BaseChannel) -> resolver.Resolver:
    """A Resolver of what `current` is compared with."""
    return resolver.Resolver(
        strategy_class=LastStatisticsStrategy,
        **{
            CURRENT: current,
            LAST: types.Channel(type=standard_artifacts.ExampleStatistics),
            ANOMALIES: types.Channel(type=standard_artifacts.ExampleAnomalies),
        },
    ).with_id("LastStatistics")

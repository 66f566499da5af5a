"""What every use case of the scorer works with."""

import dataclasses
from collections.abc import Callable

import apache_beam as beam

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.pairs_from_data import with_pairs
from sllmr.components.pair_yield import PairYield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workspace:
    """Configuration and folders of a scoring job, and how to make its Beam pipelines.

    Attributes:
        config: as read from `llm`.
        catalog_directory: of the ItemCatalog.
        cache_directory: keeps the bundled model's weights between runs, outside TFX's executions; every worker must
            reach it, as it must the other directories.
        store_url: of the database that keeps responses, counters and batches between runs; None: cache_directory does.
        work_directory: for the plan and the local server's log.
        output_directory: of the LlmScores, laid out as components/scores.py says.
        make_pipeline: a fresh Beam pipeline with the runner's options.
        retry_failed: whether requests whose earlier responses gave no score are queried again.
        held_out_rows: reads the serialized rows of the validation and test splits. Only a replayed table of scores by
            user needs them, and only to leave their items out: see contexts/scored_users.py.
        item_vectors_file: of ItemEmbedder; None: similar candidates are of the same category.
        pair_yield: preference pairs of a context, which decide how many pairs are scored; needed only if budget.pairs
            is None.
    """

    config: LlmConfig
    catalog_directory: str
    cache_directory: str
    work_directory: str
    output_directory: str
    make_pipeline: Callable[[], beam.Pipeline]
    store_url: str | None = None
    retry_failed: bool = True
    held_out_rows: beam.PTransform | None = None
    item_vectors_file: str | None = None
    pair_yield: PairYield | None = None

    @property
    def store(self) -> str:
        """What keeps responses, counters and batches: a folder, or the URL of a database."""
        return self.store_url or self.cache_directory

    def resolved(self, train_rows: beam.PTransform) -> LlmConfig:
        """The configuration with item vectors and the number of pairs; no default is left that depends on another."""
        return with_pairs(
            self.config.with_item_vectors(self.item_vectors_file).resolve(),
            train_rows,
            pair_yield=self.pair_yield,
            catalog_directory=self.catalog_directory,
            work_directory=self.work_directory,
            make_pipeline=self.make_pipeline,
        )

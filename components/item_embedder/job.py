"""One embedding run from the catalog to the file of vectors. Beam, but no TFX."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator

import apache_beam as beam
import numpy as np
from pydantic import BaseModel, ConfigDict

from sllmr.components.catalog import Item, read_catalog
from sllmr.components.item_embedder.config import MIN_ITEMS_WITH_VECTOR, EmbeddingEndpoint, ItemVectorsConfig
from sllmr.components.item_embedder.endpoint import EndpointEmbedder
from sllmr.components.item_embedder.item_text import item_text
from sllmr.components.item_embedder.transforms import (
    BATCH_SIZE,
    COUNTS,
    Counts,
    EmbedTexts,
    sum_counts,
    to_vectors,
)
from sllmr.components.item_embedder.weights import MODEL
from sllmr.components.llm_scorer.cost.estimate import Estimate
from sllmr.models import artifact_files
from sllmr.models.errors import UserError
from sllmr.models.item_vectors import VECTORS_FILE, ItemVectors, read_item_vectors

REPORT_FILE = "item_vectors.json"
"""In the artifact: an EmbeddingReport."""


class EmbeddingReport(BaseModel):
    """What ItemEmbedder did.

    Attributes:
        schema_version: of this file.
        source: item_vectors.source.
        model: whose vectors they are: the model's name, or the file's.
        items: in the catalog.
        items_with_vector: of these.
        dimensions: of a vector.
        texts_embedded: distinct texts that a model read in this run.
        texts_cached: distinct texts whose vectors were in the cache.
        corrupt_cache_entries: entries of the cache that were damaged; their texts were embedded again.
        cost_usd: of the requests of this run; None without requests, or if the price is unknown.
        seconds: of the run.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    source: str
    model: str
    items: int
    items_with_vector: int
    dimensions: int
    texts_embedded: int = 0
    texts_cached: int = 0
    corrupt_cache_entries: int = 0
    cost_usd: float | None = None
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingJob:
    """Writes the vectors of a catalog's items.

    Attributes:
        config: the source; not `none`.
        catalog_directory: of the ItemCatalog.
        cache_directory: keeps vectors and the bundled model's weights between runs, outside TFX's executions; every
            worker must reach it.
        store_url: of the database that keeps an endpoint's responses; None: cache_directory does.
        work_directory: for what the workers write for the driver.
        output_directory: gets VECTORS_FILE and REPORT_FILE.
        make_pipeline: a fresh Beam pipeline with the runner's options.
        min_items_with_vector: fraction of the items.
    """

    config: ItemVectorsConfig
    catalog_directory: str
    cache_directory: str
    work_directory: str
    output_directory: str
    make_pipeline: Callable[[], beam.Pipeline]
    store_url: str | None = None
    min_items_with_vector: float = MIN_ITEMS_WITH_VECTOR

    def run(self) -> EmbeddingReport:
        """Embeds the texts that are not in the cache, and writes one file for the whole catalog.

        Raises:
            UserError: fewer than min_items_with_vector of the items have a vector; the file does not hold vectors; the
                endpoint's vectors differ in length.
            FetchError: the bundled model cannot be fetched.
            LlmError: the endpoint refuses, the budget runs out, or too many texts got no vector.
        """
        started = time.monotonic()
        artifact_files.make_folder(self.output_directory)
        path = os.path.join(self.output_directory, VECTORS_FILE)
        counts, cost_usd = Counts(), None
        if self.config.file is not None:
            model = os.path.basename(self.config.file)
            _write(path, *_of_catalog(read_item_vectors(self.config.file), read_catalog(self.catalog_directory)))
        elif self.config.endpoint is not None:
            model = self.config.endpoint.model
            counts, cost_usd = self._request(self.config.endpoint, path)
        else:
            model = MODEL
            counts = self._embed(path)
        vectors = read_item_vectors(path)
        report = EmbeddingReport(
            source=self.config.source,
            model=model,
            items=len(read_catalog(self.catalog_directory)),
            items_with_vector=len(vectors.row),
            dimensions=vectors.vectors.shape[1],
            texts_embedded=counts.embedded,
            texts_cached=counts.cached,
            corrupt_cache_entries=counts.corrupt_cache_entries,
            cost_usd=cost_usd,
            seconds=round(time.monotonic() - started, 3),
        )
        with artifact_files.open(os.path.join(self.output_directory, REPORT_FILE), "w") as file:
            file.write(report.model_dump_json(indent=2))
        _check(report, self.config, self.min_items_with_vector)
        return report

    def estimate(self) -> Estimate | None:
        """What `run` would request from the endpoint; None where the vectors come from elsewhere."""
        if self.config.endpoint is None:
            return None
        return self._embedder(self.config.endpoint).estimate(sorted(set(self._texts().values())))

    def _embedder(self, endpoint: EmbeddingEndpoint) -> EndpointEmbedder:
        return EndpointEmbedder(endpoint, self.cache_directory, self.store_url, self.work_directory)

    def _texts(self) -> dict[str, str]:
        return dict(_texts(self.catalog_directory))

    def _request(self, endpoint: EmbeddingEndpoint, path: str) -> tuple[Counts, float | None]:
        texts = self._texts()
        embedded = self._embedder(endpoint).embed(sorted(set(texts.values())))
        known = {item_id: embedded.vectors[text] for item_id, text in texts.items() if text in embedded.vectors}
        shapes = {vector.shape for vector in known.values()}
        if len(shapes) > 1:
            raise UserError(
                f"an endpoint's vectors must have one length, got {sorted(shape[0] for shape in shapes)} from "
                f"{endpoint.model}; set item_vectors.endpoint.model_id to tell the models apart, and run again"
            )
        _write_all([(item_id, vector.tobytes()) for item_id, vector in known.items()], path)
        counts = Counts(
            embedded=embedded.sent, cached=embedded.cached, corrupt_cache_entries=embedded.corrupt_cache_entries
        )
        return counts, embedded.cost_usd

    def _embed(self, path: str) -> Counts:
        counts_file = os.path.join(self.work_directory, "counts.json")
        with self.make_pipeline() as pipeline:
            embedded = (
                pipeline
                | "Once" >> beam.Create([self.catalog_directory])
                | "ReadTexts" >> beam.FlatMap(_texts)
                | "Spread" >> beam.Reshuffle()
                | "Batch" >> beam.BatchElements(min_batch_size=BATCH_SIZE, max_batch_size=BATCH_SIZE)
                | "EmbedTexts" >> beam.ParDo(EmbedTexts(self.cache_directory)).with_outputs(COUNTS, main="vectors")
            )
            _ = embedded["vectors"] | "Gather" >> beam.combiners.ToList() | "Write" >> beam.Map(_write_all, path)
            _ = (
                embedded[COUNTS]
                | "Sum" >> beam.CombineGlobally(sum_counts)
                | "Encode" >> beam.Map(json.dumps)
                | "WriteCounts" >> beam.io.WriteToText(counts_file, shard_name_template="")
            )
        with artifact_files.open(counts_file) as file:
            return Counts(*json.load(file))


def _texts(catalog_directory: str) -> Iterator[tuple[str, str]]:
    for item in read_catalog(catalog_directory).values():
        if text := item_text(item):
            yield item.item_id, text


def _write_all(pairs: list[tuple[str, bytes]], path: str) -> None:
    _write(path, *to_vectors(pairs))


def _write(path: str, item_ids: np.ndarray, vectors: np.ndarray) -> None:
    with artifact_files.whole(path) as file:
        np.savez(file, item_id=item_ids, vector=vectors)


def _of_catalog(vectors: ItemVectors, catalog: dict[str, Item]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and vectors of the catalog's items that a file holds, not normalized: readers scale them to length 1."""
    item_ids = sorted(item_id for item_id in catalog if item_id in vectors.row)
    return np.array(item_ids, dtype=np.str_), vectors.vectors[[vectors.row[item_id] for item_id in item_ids]]


def _check(report: EmbeddingReport, config: ItemVectorsConfig, least: float) -> None:
    if report.items_with_vector >= least * report.items:
        return
    fix = (
        "write titles into data.items"
        if config.file is None
        else f"write one vector for each item_id of data.items into {config.file}"
    )
    raise UserError(
        f"item_vectors: at least {least:.0%} of the items must have a vector, got "
        f"{report.items_with_vector} of {report.items} from source {report.source}; {fix}, or set item_vectors.source: "
        "none"
    )

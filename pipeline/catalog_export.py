"""Writes a pushed model with another catalog as its next version."""

import functools
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import apache_beam as beam
import numpy as np

from sllmr.components.catalog import Item, values_of_items, write_catalog
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.files import table_paths
from sllmr.components.interactions_example_gen.tables import BadRow, read_items
from sllmr.components.item_embedder.config import MIN_ITEMS_WITH_VECTOR
from sllmr.components.item_embedder.item_text import item_text
from sllmr.components.item_embedder.job import EmbeddingJob, EmbeddingReport
from sllmr.models.declared_features import ITEM
from sllmr.models.errors import UserError
from sllmr.models.features import FeatureSizes
from sllmr.models.item_vectors import VECTORS_FILE, read_item_vectors
from sllmr.models.serving.catalog_swap import Swapped, has_item_vectors, served_sizes, swap_catalog, trained_item_ids
from sllmr.pipeline.code_version import code_version
from sllmr.pipeline.config import Config
from sllmr.pipeline.page import environment
from sllmr.pipeline.served_versions import model_card, new_version

_ITEMS_OF_THE_TRAINING = 32
"""Number of trained items whose vectors are compared with those that the model holds."""


class CatalogExport(NamedTuple):
    """A version with another catalog.

    Attributes:
        version: its folder.
        items: that it knows.
        swapped: how many of them are new.
        embedding: what ItemEmbedder did; None where no item needed a vector.
    """

    version: pathlib.Path
    items: int
    swapped: Swapped
    embedding: EmbeddingReport | None


def export_with_catalog(config: Config, catalog: str, model: pathlib.Path) -> CatalogExport:
    """Writes the newest version of a served model with other items, as a version of its own.

    If the model reads vectors, ItemEmbedder makes those of items that the training did not see; texts that the cache
    knows are not embedded again.

    Args:
        config: of the run that trained the model: how tables of items are read, and where vectors come from.
        catalog: the table of items.
        model: folder of the versions.

    Raises:
        UserError: there is no version, the table breaks a rule, or new items get no vectors like the training's.
        FetchError, LlmError: see EmbeddingJob.
    """
    with new_version(model) as (newest, hidden):
        items = _items(catalog, config.data)
        columns = values_of_items(items, _served_sizes(newest, config), at=round(1000 * time.time()))
        vectors: dict[bytes, np.ndarray] = {}
        embedding = None
        if has_item_vectors(str(newest)):
            vectors, embedding = _embed(items, frozenset(trained_item_ids(str(newest))), config)
        swapped = swap_catalog(str(newest), str(hidden), columns, vectors)
        version = hidden.with_name(hidden.name.removeprefix("."))
        made = CatalogExport(version, len(items), swapped, embedding)
        # Written before the version appears: without its card, nothing would say where a version comes from.
        model_card(version).write_text(_card(made, newest, catalog), encoding="utf-8")
    return made


def _card(made: CatalogExport, source: pathlib.Path, catalog: str) -> str:
    """The model card: what the version is, and the card of the one that its weights are from."""
    card = model_card(source)
    return (
        environment()
        .get_template("catalog_card.md.j2")
        .render(
            name=source.parent.name,
            version=made.version.name,
            source=source.name,
            catalog=pathlib.Path(catalog).name,
            made=made,
            date=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            code=code_version(),
            source_card=card.read_text(encoding="utf-8").strip() if card.is_file() else "",
        )
    )


def _served_sizes(model: pathlib.Path, config: Config) -> FeatureSizes:
    sizes = served_sizes(str(model))
    if sizes.of_tables(ITEM) != config.data.feature_sizes.of_tables(ITEM):
        raise UserError(
            "data.features.item must be that of the training, got "
            f"{sorted(config.data.features.item)} where the model of {model} has "
            f"{sorted(f.name for f in sizes.of_tables(ITEM))}; give the configuration of the run that trained it"
        )
    return sizes


def _items(catalog: str, config: DataConfig) -> list[Item]:
    items: list[Item] = []
    for item in read_items(table_paths(catalog, "--catalog"), config):
        if isinstance(item, BadRow):
            raise UserError(str(item))
        items.append(item)
    if not items:
        raise UserError(f"--catalog must hold items, got none in {catalog}; name the table of items")
    return items


def _embed(
    items: Sequence[Item], known: frozenset[bytes], config: Config
) -> tuple[dict[bytes, np.ndarray], EmbeddingReport | None]:
    """Vectors by id, of the new items and of some that the training saw; items that cannot be embedded are absent."""
    source = config.item_vectors
    with_text = [item for item in items if source.file is not None or item_text(item)]
    new = [item for item in with_text if item.item_id.encode() not in known]
    if not new:
        return {}, None
    if source.source == "none":
        raise UserError(
            f"item_vectors.source must be that of the training, as {len(new)} items of --catalog are new and the model "
            "reads vectors, got none; give the configuration of the run that trained it"
        )
    of_training = [item for item in with_text if item.item_id.encode() in known][:_ITEMS_OF_THE_TRAINING]
    with tempfile.TemporaryDirectory(prefix="sllmr-vectors-") as directory:
        work = pathlib.Path(directory)
        write_catalog(str(work / "catalog"), [*new, *of_training])
        report = EmbeddingJob(
            config=source,
            catalog_directory=str(work / "catalog"),
            cache_directory=config.cache_dir,
            store_url=config.store,
            work_directory=str(work),
            output_directory=str(work),
            make_pipeline=functools.partial(beam.Pipeline, argv=list(config.beam.pipeline_args)),
            min_items_with_vector=0.0,  # here: of the new items alone
        ).run()
        vectors = read_item_vectors(str(work / VECTORS_FILE)).by_id(item.item_id for item in (*new, *of_training))
    found = sum(item.item_id.encode() in vectors for item in new)
    if found < MIN_ITEMS_WITH_VECTOR * len(new):
        fix = f"write one for each into {source.file}" if source.file else "write titles into it"
        raise UserError(
            f"at least {MIN_ITEMS_WITH_VECTOR:.0%} of the new items of --catalog must have a vector, got {found} of "
            f"{len(new)} from source {source.source}; {fix}, and run again"
        )
    return vectors, report

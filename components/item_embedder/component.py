"""ItemEmbedder: the catalog's texts to vectors."""

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import component_spec
from tfx.utils import io_utils

from sllmr.components.artifacts import ItemCatalog, ItemVectors
from sllmr.components.item_embedder.config import ItemVectorsConfig
from sllmr.components.item_embedder.executor import Executor


class ItemEmbedderSpec(component_spec.ComponentSpec):
    """Input, output and properties of ItemEmbedder."""

    PARAMETERS: ClassVar = {
        "config": component_spec.ExecutionParameter(type=str),
        "cache_directory": component_spec.ExecutionParameter(type=str),
        "store_url": component_spec.ExecutionParameter(type=str),
        "file_fingerprint": component_spec.ExecutionParameter(type=str),
        "code_fingerprint": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {"catalog": component_spec.ChannelParameter(type=ItemCatalog)}
    OUTPUTS: ClassVar = {"item_vectors": component_spec.ChannelParameter(type=ItemVectors)}


class ItemEmbedder(base_beam_component.BaseBeamComponent):
    """Writes one vector for each item with a text as an ItemVectors artifact."""

    SPEC_CLASS = ItemEmbedderSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        *,
        catalog: types.BaseChannel,
        config: ItemVectorsConfig,
        cache_directory: str,
        code_fingerprint: str,
        store_url: str | None = None,
    ):
        """
        Args:
            catalog: ItemCatalog of InteractionsExampleGen.
            config: where the vectors come from; its source is not `none`.
            cache_directory: absolute; keeps vectors between runs, so it lies outside the pipeline's root.
            code_fingerprint: fingerprint of the sources; part of TFX's cache key and of nothing else.
            store_url: of the database that keeps an endpoint's responses; None: cache_directory does.
        """
        super().__init__(
            ItemEmbedderSpec(
                catalog=catalog,
                config=config.model_dump_json(),
                cache_directory=cache_directory,
                store_url=store_url or "",
                # Part of TFX's cache key: a file that was written anew is read anew.
                file_fingerprint=io_utils.generate_fingerprint("file", config.file) if config.file else "",
                code_fingerprint=code_fingerprint,
                item_vectors=types.Channel(type=ItemVectors),
            )
        )

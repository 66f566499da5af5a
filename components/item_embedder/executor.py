"""Unpacks TFX's artifacts for the embedding job."""

from typing import Any

from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact, artifact_utils

from sllmr.components.item_embedder.config import ItemVectorsConfig
from sllmr.components.item_embedder.job import EmbeddingJob


class Executor(base_beam_executor.BaseBeamExecutor):
    """See component.ItemEmbedder."""

    def Do(
        self,
        input_dict: dict[str, list[artifact.Artifact]],
        output_dict: dict[str, list[artifact.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        self._log_startup(input_dict, output_dict, exec_properties)
        EmbeddingJob(
            config=ItemVectorsConfig.model_validate_json(exec_properties["config"]),
            catalog_directory=artifact_utils.get_single_uri(input_dict["catalog"]),
            cache_directory=exec_properties["cache_directory"],
            store_url=exec_properties["store_url"] or None,
            work_directory=self._get_tmp_dir(),
            output_directory=artifact_utils.get_single_uri(output_dict["item_vectors"]),
            make_pipeline=self._make_beam_pipeline,
        ).run()

"""Unpacks TFX's artifacts for the scoring job."""

from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components import examples
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.job import ScoringJob

TRAIN_SPLIT = "train"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Runs ScoringJob on the train split, the only one that the LLM may see."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, object],
    ) -> None:
        rows = artifact_utils.get_single_instance(input_dict["examples"])
        catalog = artifact_utils.get_single_instance(input_dict["catalog"])
        scores = artifact_utils.get_single_instance(output_dict["scores"])
        job = ScoringJob(
            config=LlmConfig.model_validate_json(str(exec_properties["config"])),
            catalog_directory=catalog.uri,
            cache_directory=str(exec_properties["cache_directory"]),
            work_directory=self._get_tmp_dir(),
            output_directory=scores.uri,
            make_pipeline=self._make_beam_pipeline,
        )
        job.run(examples.read_split(rows, TRAIN_SPLIT))

"""Unpacks TFX's artifacts for the comparison."""

import json
import os
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from sllmr.components.llm_comparison.scoring import score_rows
from sllmr.components.llm_comparison.verdict import FILE_NAME, ScoredRows, compare

WITH_LLM = "with_llm"
WITHOUT_LLM = "without_llm"
EXAMPLES = "examples"
MODEL = "model"
COMPARISON = "comparison"
SLICES = "slices"
BY_FEATURES = "by_features"
MIN_USERS = "min_users"

WITH_LLM_ID = "with_llm_id"
WITHOUT_LLM_ID = "without_llm_id"
"""Custom properties of the chosen model: the ids of the two models that were compared, by which pipeline.warm_start
finds the models of one run."""


class Executor(base_executor.BaseExecutor):
    """Chooses by the validation split, reports on the test split, and copies the model that it chose."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        models = {name: artifact_utils.get_single_instance(input_dict[name]) for name in (WITH_LLM, WITHOUT_LLM)}
        directories = {name: path_utils.serving_model_path(model.uri) for name, model in models.items()}
        slices = json.loads(exec_properties[SLICES])
        by_features = json.loads(exec_properties.get(BY_FEATURES) or "[]")
        min_users = exec_properties.get(MIN_USERS) or 1

        def scored(split: str) -> ScoredRows:
            uri = artifact_utils.get_split_uri(input_dict[EXAMPLES], split)
            files = fileio.glob(os.path.join(uri, "*"))
            both = directories[WITH_LLM], directories[WITHOUT_LLM]
            return score_rows(*both, files, slices, by_features, min_users)

        found = compare(valid=scored("valid"), test=scored("test"))
        chosen = models[WITH_LLM if found.choice.with_llm else WITHOUT_LLM]
        target = artifact_utils.get_single_instance(output_dict[MODEL])
        io_utils.copy_dir(chosen.uri, target.uri)
        target.set_int_custom_property(WITH_LLM_ID, models[WITH_LLM].id)
        target.set_int_custom_property(WITHOUT_LLM_ID, models[WITHOUT_LLM].id)
        comparison = artifact_utils.get_single_instance(output_dict[COMPARISON])
        io_utils.write_string_file(os.path.join(comparison.uri, FILE_NAME), found.model_dump_json(indent=2))

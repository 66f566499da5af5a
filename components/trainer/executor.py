"""Executor of the Trainer: TFX's generic one, extended to pass the catalog, pairs and item vectors to run_fn."""

import os
from typing import Any

from tfx import types
from tfx.components.trainer import executor as tfx_executor
from tfx.components.trainer import fn_args_utils
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, json_utils, path_utils

from sllmr.components.model_info import make_model_info, write_model_info
from sllmr.components.trainer.config import TrainerConfig
from sllmr.models.item_vectors import VECTORS_FILE

PAIRS_KEY = "pairs"
CATALOG_KEY = "catalog"
ITEM_VECTORS_KEY = "item_vectors"
REPORT_KEY = "report"
"""Inputs of the component."""

CONFIG = "config"
PAIRS_PATTERNS = "pairs_patterns"
CATALOG_DIRECTORY = "catalog_directory"
ITEM_VECTORS_FILE = "item_vectors_file"
"""Keys of custom_config: the JSON of a TrainerConfig; globs of the pairs' files, if there are pairs; where the catalog
is; the file of item vectors, if there are any."""

_SPLIT = "train"


class Executor(tfx_executor.GenericExecutor):
    """Adds the locations of the catalog, pairs and item vectors to custom_config, which cannot hold a channel.

    `_GetFnArgs` is private to TFX, whose version is pinned.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Trains and exports by run_fn, then adds to the export a record of what it was trained on."""
        super().Do(input_dict, output_dict, exec_properties)
        config = TrainerConfig.model_validate_json(json_utils.loads(exec_properties["custom_config"])[CONFIG])
        info = make_model_info(
            artifact_utils.get_single_uri(input_dict[REPORT_KEY]),
            backbone=config.model.backbone,
            sizes=config.sizes,
            use_user_id=config.model.use_user_id,
            seed=config.train.seed,
            positive_rate=config.positive_rate,
        )
        model = artifact_utils.get_single_instance(output_dict[standard_component_specs.MODEL_KEY])
        write_model_info(info, path_utils.serving_model_path(model.uri))

    def _GetFnArgs(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> fn_args_utils.FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        fn_args.custom_config[CATALOG_DIRECTORY] = artifact_utils.get_single_uri(input_dict[CATALOG_KEY])
        if input_dict.get(PAIRS_KEY):
            uris = artifact_utils.get_split_uris(input_dict[PAIRS_KEY], _SPLIT)
            fn_args.custom_config[PAIRS_PATTERNS] = [io_utils.all_files_pattern(uri) for uri in uris]
        if input_dict.get(ITEM_VECTORS_KEY):
            directory = artifact_utils.get_single_uri(input_dict[ITEM_VECTORS_KEY])
            fn_args.custom_config[ITEM_VECTORS_FILE] = os.path.join(directory, VECTORS_FILE)
        return fn_args

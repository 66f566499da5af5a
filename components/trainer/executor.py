"""Executor of the Trainer: TFX's generic one, which hands the pairs' files to run_fn."""

from typing import Any

from tfx import types
from tfx.components.trainer import executor as tfx_executor
from tfx.components.trainer import fn_args_utils
from tfx.types import artifact_utils
from tfx.utils import io_utils

PAIRS_KEY = "pairs"
"""Input of the component."""

CONFIG = "config"
PAIRS_PATTERNS = "pairs_patterns"
"""Keys of custom_config: the JSON of a TrainerConfig, and globs of the pairs' files, if there are pairs."""

_SPLIT = "train"


class Executor(tfx_executor.GenericExecutor):
    """custom_config cannot hold a channel, so the pairs' location joins it here.

    `_GetFnArgs` is private to TFX, whose version is pinned.
    """

    def _GetFnArgs(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> fn_args_utils.FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        if input_dict.get(PAIRS_KEY):
            uris = artifact_utils.get_split_uris(input_dict[PAIRS_KEY], _SPLIT)
            fn_args.custom_config[PAIRS_PATTERNS] = [io_utils.all_files_pattern(uri) for uri in uris]
        return fn_args

"""What only this machine can tell of a scoring configuration: files, the key, the bundled model's runtime."""

import logging
import os

from sllmr.components.llm_scorer.capabilities import REASONING_TOKENS, is_openai
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint import local_server
from sllmr.components.llm_scorer.errors import LlmError

_logger = logging.getLogger(__name__)


def check_needs(config: LlmConfig) -> None:
    """Checks what a scoring job needs, before anything is spent.

    Raises:
        LlmError: a file, the API key or the bundled model's runtime is missing.
    """
    if config.prompt_file is not None and not os.path.isfile(config.prompt_file):
        raise LlmError(f"llm.prompt_file must be a file, got {config.prompt_file}")
    if config.replay_table is not None and not os.path.exists(config.replay_table):
        raise LlmError(f"llm.replay_table must be a folder or a file, got {config.replay_table}")
    if is_openai(config.resolve().base_url) and not os.environ.get(config.api_key_env):
        raise LlmError(
            f"model {config.model!r} is queried at OpenAI's API, which needs a key, and the environment variable "
            f"{config.api_key_env} is not set; set it, or llm.base_url, or leave llm.model empty for the bundled model"
        )
    if config.endpoint_capabilities.reasoning and not config.asks_nobody:
        cap = config.max_output_tokens or f"about {REASONING_TOKENS} more than the scores take"
        _logger.warning(
            "llm: %s reasons before it responds, and reasoning tokens are billed as output: llm.max_output_tokens is "
            "%s, reasoning_effort %s; responses cut at the cap score nothing",
            config.model,
            cap,
            config.endpoint_capabilities.reasoning_effort or "the endpoint's default",
        )
    if config.uses_local_server:
        local_server.check_runtime()

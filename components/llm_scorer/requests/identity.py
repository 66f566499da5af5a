"""Responses in the cache that name no endpoint: whether they count is the user's decision."""

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import LlmRequest
from sllmr.components.llm_scorer.requests.cache import ResponseCache


def check_endpoint_of_cached(request: LlmRequest, cache: ResponseCache, config: LlmConfig) -> None:
    """Checks that a request that has no response from this endpoint has none under the model's name alone either.

    The cache's keys hold the endpoint, except for OpenAI's API and the bundled model. An earlier version left it out
    for all endpoints: its responses were paid for, and two servers may have called different models by one name.

    Args:
        request: one that the cache does not answer.
        config: resolved.

    Raises:
        LlmError: there is such a response, and llm.model_id does not say whether it counts.
    """
    if config.model_id is None and request.endpoint and cache.get(request.content_key) is not None:
        raise LlmError(
            f"the cache {cache.store} holds responses of a model named {config.model!r} that do not tell their "
            f"endpoint; set llm.model_id: {config.model} to use them if they came from the model at "
            f"{request.endpoint}, or llm.model_id: {request.endpoint} to query it anew"
        )

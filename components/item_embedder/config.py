"""Configuration of item vectors: where they come from, and what they may cost."""

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sllmr.components.llm_scorer.config import LISTWISE, Limits, LlmConfig, Price
from sllmr.models.strict_config import StrictConfig

MIN_ITEMS_WITH_VECTOR = 0.2
"""Fraction of the items that must have a vector."""

_SECTION_OF_LLM = re.compile(r"\bllm\.(?=[a-z_]+)")


class EmbeddingBudget(BaseModel):
    """What the vectors may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_cost_usd: float | None = Field(
        default=None,
        gt=0,
        description="no request is sent that could bring the cost of all vectors, those of earlier runs included, "
        "above this; needs a known price",
    )
    max_tokens: int | None = Field(default=None, ge=1, description="the same for tokens")


class EmbeddingEndpoint(StrictConfig):
    """An OpenAI-compatible endpoint with /v1/embeddings. Keys mean what they mean in `llm`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    SECTION: ClassVar = "item_vectors.endpoint"

    model: str = Field(min_length=1, description="the embedding model's name at the endpoint")
    base_url: str | None = Field(
        default=None, description="ending in /v1; empty: OpenAI's API, or this machine for the models of llm.model"
    )
    accept_license: bool = Field(default=False, description="as llm.accept_license")
    model_id: str | None = Field(default=None, min_length=1, description="as llm.model_id")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", description="NAME of the environment variable that holds the key"
    )
    extra_body: dict[str, Any] = Field(default_factory=dict, description="further fields of each request")
    timeout_s: float = Field(default=120, gt=0, description="seconds that a request may take")
    max_retries: int = Field(default=5, ge=0, le=20, description="retries of a request after a retryable failure")
    concurrency: int | None = Field(default=None, ge=1, le=1024, description="requests in flight at most; empty: 16")
    max_failure_rate: float = Field(
        default=0.1, ge=0, le=1, description="above this fraction of texts without a vector the step fails"
    )
    price_per_million_tokens: Price | None = Field(default=None, description="empty: the list price where it is known")
    budget: EmbeddingBudget = EmbeddingBudget()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _can_be_sent_to(self) -> Self:
        try:
            self.client_config()
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(in_terms_of_the_endpoint(problem)) from None
        return self

    def client_config(self) -> LlmConfig:
        """The configuration for the scorer's client, cache and ledger; its strategy plays no part in embedding."""
        values = self.model_dump(exclude={"budget"})
        budget = {key: cap for key, cap in self.budget.model_dump().items() if cap is not None}
        return LlmConfig.model_validate({**values, "strategy": LISTWISE, "budget": budget}).resolve()


class ItemVectorsConfig(StrictConfig):
    """Where the vectors of the items' texts come from. They serve the ranking model's inputs (model.item_vectors), the
    candidates near a history and the strategy `embedding`; where none of these reads them, none are made."""

    SECTION: ClassVar = "item_vectors"

    source: Literal["bundled", "endpoint", "file", "none"] = Field(
        default="bundled",
        description="`bundled`: all-MiniLM-L6-v2, on this machine, 83 MB to fetch once; `endpoint`: "
        "item_vectors.endpoint; `file`: item_vectors.file; `none`: no vectors",
    )
    file: str | None = Field(
        default=None,
        description="of source file: an .npz with item_id, strings [items], and vector, floats [items, dimensions]",
    )
    endpoint: EmbeddingEndpoint | None = Field(default=None, description="of source endpoint")

    @model_validator(mode="after")
    def _file_and_endpoint_go_with_their_source(self) -> Self:
        for name in ("file", "endpoint"):
            if (self.source == name) != (getattr(self, name) is not None):
                given = "none" if getattr(self, name) is None else "one"
                raise ValueError(
                    f"item_vectors.{name} goes with item_vectors.source: {name}, got source {self.source} and {given}; "
                    "set both, or neither"
                )
        return self


def in_terms_of_the_endpoint(message: str) -> str:
    """Rewrites a message of the scorer's client so that it names the keys of this section."""
    return _SECTION_OF_LLM.sub("item_vectors.endpoint.", message)

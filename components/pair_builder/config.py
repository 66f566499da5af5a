"""What PairBuilder may be told."""

from pydantic import BaseModel, ConfigDict, Field


class PairConfig(BaseModel):
    """How many pairs are made of one context's scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_per_context: int = Field(
        default=8,
        ge=1,
        description="pairs with the largest score gap that are kept of one context (the paper's K~)",
    )
    min_margin: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="smallest score gap that says anything; ties never make a pair",
    )
    drop_inconsistent: bool = Field(
        default=False,
        description="leave out pairs that the LLM orders differently when the candidates are told in reverse; "
        "llm.audit.share says how many contexts are asked so",
    )

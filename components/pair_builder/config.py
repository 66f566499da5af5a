"""Configuration of PairBuilder."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PairConfig(BaseModel):
    """How many pairs are made of one context's scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_per_context: int = Field(
        default=8,
        ge=1,
        description="pairs that are kept of one context (the paper's K~), labeled ones not counted",
    )
    selection: Literal["widest", "cover"] = Field(
        default="widest",
        description="which: `widest`, those with the largest score gap, as the paper does; `cover`, pairs that hold "
        "each candidate once, for losses of single items (loss.form pointwise and distillation)",
    )
    min_margin: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="smallest score gap that says anything; ties never make a pair",
    )
    drop_inconsistent: bool = Field(
        default=False,
        description="leave out pairs that the LLM orders differently when the prompt lists them in reverse; "
        "llm.audit.fraction sets how many contexts are queried so",
    )

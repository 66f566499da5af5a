"""What a person decides about the LLM: which one, how it is asked, about whom, and what it may cost."""

import os
import re
import urllib.parse
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

BUNDLED_MODEL = "smollm2-135m-instruct-q4_1"
"""Runs on this machine without a key: see local_model.py."""

OPENAI_BASE_URL = "https://api.openai.com/v1"

LISTWISE = "listwise"
TITLE_LIKELIHOOD = "title_likelihood"
YES_NO = "yes_no"
EMBEDDING = "embedding"
REPLAY = "replay"
STRATEGY_NAMES = (LISTWISE, TITLE_LIKELIHOOD, YES_NO, EMBEDDING, REPLAY)


class LlmError(RuntimeError):
    """The scoring job cannot start or must stop; the message says why and how to go on. Never holds a
    secret.
    """


class Price(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: float = Field(ge=0, description="prompt tokens that the server had not cached")
    cached_prompt: float = Field(ge=0, description="prompt tokens that the server read from its own cache")
    completion: float = Field(ge=0, description="tokens of the answer")
    batch_discount: float = Field(
        default=0.5, ge=0, le=1, description="share of these prices that the Batch API takes off"
    )

    @property
    def by_batch(self) -> "Price":
        """The price of an answer that comes by the Batch API."""
        share = 1 - self.batch_discount
        return Price(
            prompt=self.prompt * share,
            cached_prompt=self.cached_prompt * share,
            completion=self.completion * share,
            batch_discount=0,
        )


KNOWN_PRICES = {
    BUNDLED_MODEL: Price(prompt=0, cached_prompt=0, completion=0),
    "gpt-4o-mini": Price(prompt=0.15, cached_prompt=0.075, completion=0.60),
    "gpt-4o": Price(prompt=2.50, cached_prompt=1.25, completion=10.00),
}
"""List prices; `llm.price_per_million_tokens` takes precedence."""


class Budget(BaseModel):
    """How much may be asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int = Field(default=1500, ge=1, description="(user, candidate) pairs to score; never exceeded")
    max_cost_usd: float | None = Field(
        default=None,
        gt=0,
        description="no call is sent that could bring the cost of all answers, those of earlier runs "
        "included, above this; needs a known price",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="no call is sent that could bring the tokens of all prompts and answers, those of earlier runs "
        "included, above this",
    )


class Limits(BaseModel):
    """How fast may be asked; endpoints tell an account's limits. Held by all workers of a machine together, with
    calls spread evenly over the minute; repeats of a failed call count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1, description="calls; empty: no limit")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens of prompts and answers together; empty: no limit"
    )


class CandidateConfig(BaseModel):
    """Which contexts (users at a moment of the train split) and which candidates are asked about. See
    candidates.py.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_context: int = Field(default=10, ge=2, le=100, description="candidates a context is asked about")
    probe_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of contexts that are labelled probes: they hold the item chosen next",
    )
    negatives_per_probe: int = Field(
        default=3,
        ge=1,
        description="sampled negatives beside the chosen item in a probe",
    )
    probe_negatives: Literal["popularity", "uniform"] = Field(
        default="popularity",
        description="which: `popularity`, items about as popular as the chosen one, so that what the LLM gets right is "
        "not popularity; `uniform`, any items, as the sampled negatives of the rows, for a gate that weighs the LLM "
        "against the ranking model (gate.mode advantage and fused)",
    )
    popularity_pool: int = Field(default=200, ge=1, description="K: size of the pool of most popular items")
    cold_max_history: int = Field(
        default=3, ge=1, description="a context with at most so many earlier positives is cold"
    )
    cold_fraction: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of contexts kept for cold ones; they get diverse candidates",
    )
    tail_chosen_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of contexts kept for probes whose chosen item is a long-tail item; 0: they are asked about "
        "as often as they occur, which gate.mode fused needs, as it learns from the probes how often they are chosen",
    )
    tail_per_context: int = Field(default=2, ge=0, description="long-tail candidates in every context")
    similar_per_context: int = Field(
        default=0,
        ge=0,
        description="candidates in every context that are like an item of the history: near its vector in "
        "embedding_file where that is given, else of the same most specific category",
    )
    moments: Literal["any", "latest"] = Field(
        default="any",
        description="which of a user's moments are asked about first: `any`, by hash; `latest`, the last ones of the "
        "train split, whose histories are nearest to what is served",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        parts = 1 + self.negatives_per_probe + self.tail_per_context + self.similar_per_context
        if parts > self.per_context:
            raise ValueError(
                "1 + negatives_per_probe + tail_per_context + similar_per_context must be at most per_context, got "
                f"{parts} > {self.per_context}; raise llm.candidates.per_context"
            )
        if self.cold_fraction + self.tail_chosen_fraction > 1:
            raise ValueError(
                "cold_fraction + tail_chosen_fraction must be at most 1, got "
                f"{self.cold_fraction + self.tail_chosen_fraction:g}; lower one of them in llm.candidates"
            )
        return self


class AuditConfig(BaseModel):
    """How the influence of the order of candidates is measured: some contexts are asked twice. See audit.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of contexts that are asked a second time with the candidates in reverse order; the calls "
        "come on top of those that budget.pairs allows, within max_cost_usd",
    )


class BatchConfig(BaseModel):
    """How requests go to the Batch API: files of at most so many requests and bytes, which OpenAI bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_file: int = Field(default=50_000, ge=1, le=50_000, description="requests in one batch")
    bytes_per_file: int = Field(default=200_000_000, ge=1, le=200_000_000, description="size of one batch's file")
    max_enqueued_tokens: int | None = Field(
        default=None,
        ge=1,
        description="prompt tokens in all batches under way together, as estimated: the account's limit by model, less "
        "a tenth; empty: no limit",
    )
    poll_s: float = Field(default=60, gt=0, description="seconds between two looks at the batches under way")


class LocalServerConfig(BaseModel):
    """The process that serves the bundled model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=2, ge=1, description="CPU threads for all slots together")
    slots: int = Field(default=16, ge=1, description="requests decoded side by side")
    context: int = Field(default=1024, ge=128, description="tokens that a slot holds, prompt and answer")


class LlmConfig(BaseModel):
    """The LLM. `model: gpt-4o-mini` with OPENAI_API_KEY in the environment is all that another LLM needs."""

    # A wrong value may be a key in the wrong place: errors name the field and the rule, not the input.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(default=BUNDLED_MODEL, min_length=1, description="the model's name at the endpoint")
    base_url: str | None = Field(
        default=None,
        description="an OpenAI-compatible endpoint, ending in /v1; empty: a local server for the bundled "
        "model, OpenAI's API for any other",
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY",
        description="NAME of the environment variable that holds the key",
    )
    strategy: str | None = Field(
        default=None,
        description=f"how it is asked: {LISTWISE}; {YES_NO} (endpoints that tell log-probabilities); "
        f"{TITLE_LIKELIHOOD} (llama.cpp servers only); {EMBEDDING} (an embedding model, or embedding_file); {REPLAY} "
        f"(replay_table); empty: {TITLE_LIKELIHOOD} for the bundled model, {LISTWISE} for any other",
    )
    embedding_file: str | None = Field(
        default=None,
        description=f"{EMBEDDING}: an .npz with item_id [items] and vector [items, dimensions]; then nothing is asked",
    )
    replay_table: str | None = Field(
        default=None,
        description=f"{REPLAY}: an LlmScores folder, or a CSV with context_id, item_id and score in [0, 1]",
    )
    prompt_file: str | None = Field(default=None, description="a prompt file in place of the strategy's own")
    history_items: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description=f"latest items of the history that a prompt tells; empty: the paper's 10, for {TITLE_LIKELIHOOD} 6",
    )
    history_lag: int = Field(
        default=0,
        ge=0,
        description="newest items of each history that the LLM is not told, as if it had been asked so many choices "
        "ago: an experiment on what stale scores cost",
    )
    temperature: float | None = Field(default=0, ge=0, le=2, description="empty where a model refuses the parameter")
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        description="cut of one answer; empty: by the strategy, from the number of candidates",
    )
    seed: int = Field(default=0, description="of the choice and order of candidates, and of the endpoint's sampling")
    timeout_s: float = Field(
        default=120, gt=0, description="seconds that a call may take, from its start to the end of its answer"
    )
    max_retries: int = Field(
        default=5,
        ge=0,
        le=20,
        description="repeats of a call that failed in passing, with exponential back-off or as the endpoint asks",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="calls under way in one worker at most, fewer while the endpoint pushes back; empty: the local "
        "server's slots, or 16",
    )
    max_failure_rate: float = Field(
        default=0.1, ge=0, le=1, description="above this share of failed pairs the component fails"
    )
    max_age_days: float | None = Field(
        default=None,
        gt=0,
        description="a run warns where its oldest score is older; `sllmr rescore` asks again for older ones; empty: "
        "no limit",
    )
    store_user_ids: bool = Field(default=False, description="write user ids into the score table")
    price_per_million_tokens: Price | None = Field(default=None, description="empty: the list price where it is known")
    budget: Budget = Budget()
    limits: Limits = Limits()
    batch: BatchConfig = BatchConfig()
    candidates: CandidateConfig = CandidateConfig()
    audit: AuditConfig = AuditConfig()
    local_server: LocalServerConfig = LocalServerConfig()

    @field_validator("api_key_env")
    @classmethod
    def _name_of_a_variable(cls, value: str) -> str:
        # The value itself stays out of the message: it may be the key.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "api_key_env must be the NAME of an environment variable, like OPENAI_API_KEY, got something else; "
                "put the key into that variable"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urllib.parse.urlsplit(value)
        # The value itself stays out of the message: it may carry a password.
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must be like https://host/v1, got something else; set llm.base_url")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "base_url must carry no user, password or query; put the key into the environment variable "
                "that llm.api_key_env names"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy not in (None, *STRATEGY_NAMES):
            raise ValueError(
                f"strategy must be one of {', '.join(STRATEGY_NAMES)}, got {self.strategy!r}; set llm.strategy"
            )
        for key, strategy in (("embedding_file", EMBEDDING), ("replay_table", REPLAY)):
            if getattr(self, key) is not None and self.strategy != strategy:
                raise ValueError(
                    f"{key} needs strategy {strategy}, got {self.strategy or 'none'}; set llm.strategy: {strategy} or "
                    f"remove llm.{key}"
                )
        if self.strategy == REPLAY and self.replay_table is None:
            raise ValueError(f"strategy {REPLAY} needs a table, got none; set llm.replay_table")
        if self.strategy == TITLE_LIKELIHOOD and not self.uses_local_server and self.base_url is None:
            raise ValueError(
                f"strategy {TITLE_LIKELIHOOD} needs a llama.cpp server, got OpenAI's API for model "
                f"{self.model!r}; set llm.strategy to {LISTWISE} or llm.base_url to such a server"
            )
        if self.audit.share and self.chosen_strategy != LISTWISE:
            raise ValueError(
                f"audit.share needs {LISTWISE}, the one strategy whose answer can depend on the order of candidates, "
                f"got {self.audit.share:g} with {self.chosen_strategy}; set llm.audit.share: 0 or llm.strategy: "
                f"{LISTWISE}"
            )
        if self.budget.max_cost_usd is not None and self.price is None:
            raise ValueError(
                f"max_cost_usd needs the price of {self.model!r}, which is not known; set llm.price_per_million_tokens"
            )
        return self

    @property
    def chosen_strategy(self) -> str:
        """The strategy that counts."""
        return self.strategy or (TITLE_LIKELIHOOD if self.model == BUNDLED_MODEL else LISTWISE)

    @property
    def uses_local_server(self) -> bool:
        """Whether the scorer starts the bundled model itself."""
        return self.model == BUNDLED_MODEL and self.base_url is None and not self.asks_nobody

    @property
    def asks_nobody(self) -> bool:
        """Whether the scores come from a file."""
        return self.embedding_file is not None or self.replay_table is not None

    @property
    def price(self) -> Price | None:
        """The price that counts; None where it is unknown."""
        if self.asks_nobody:
            return Price(prompt=0, cached_prompt=0, completion=0)
        return self.price_per_million_tokens or KNOWN_PRICES.get(self.model)

    def resolve(self) -> "LlmConfig":
        """The same choices with nothing left to defaults that depend on each other.

        After it, `strategy`, `history_items` and `concurrency` are set, and `base_url` is None only where the
        scorer starts the server or asks nobody. Scores from a file have its name as their model, unless another
        one is named.
        """
        local = self.uses_local_server or self.asks_nobody
        source = self.embedding_file or self.replay_table
        model = os.path.basename(os.path.normpath(source)) if source and self.model == BUNDLED_MODEL else self.model
        strategy = self.chosen_strategy
        return self.model_copy(
            update={
                "model": model,
                "base_url": self.base_url or (None if local else OPENAI_BASE_URL),
                "strategy": strategy,
                "history_items": self.history_items or (6 if strategy == TITLE_LIKELIHOOD else 10),
                "concurrency": self.concurrency or (self.local_server.slots if local else 16),
                "price_per_million_tokens": self.price,
            }
        )

    def check_needs(self) -> None:
        """Raises LlmError where something that only this machine can tell is missing, before anything is
        spent.
        """
        for key in ("prompt_file", "embedding_file"):
            path = getattr(self, key)
            if path is not None and not os.path.isfile(path):
                raise LlmError(f"llm.{key} must be a file, got {path}")
        if self.replay_table is not None and not os.path.exists(self.replay_table):
            raise LlmError(f"llm.replay_table must be a folder or a file, got {self.replay_table}")
        resolved = self.resolve()
        if resolved.base_url == OPENAI_BASE_URL and not os.environ.get(self.api_key_env):
            raise LlmError(
                f"model {self.model!r} is asked at OpenAI's API, which needs a key, and the environment "
                f"variable {self.api_key_env} is not set; set it, or llm.base_url, or leave llm.model "
                "empty for the bundled model"
            )
        if self.uses_local_server:
            from components.llm_scorer import local_server

            local_server.check_runtime()

"""The configuration of the LLM: which one, how it is queried, about whom, and what it may cost."""

import os
import re
import urllib.parse
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from sllmr.components.llm_scorer.capabilities import OPENAI_HOST, Capabilities, capabilities_of
from sllmr.components.llm_scorer.local_models import BUNDLED_MODEL, LOCAL_MODELS, LocalModel
from sllmr.models.strict_config import StrictConfig

OPENAI_BASE_URL = f"https://{OPENAI_HOST}/v1"

LISTWISE = "listwise"
TITLE_LIKELIHOOD = "title_likelihood"
YES_NO = "yes_no"
EMBEDDING = "embedding"
REPLAY = "replay"
STRATEGY_NAMES = (LISTWISE, TITLE_LIKELIHOOD, YES_NO, EMBEDDING, REPLAY)


class Price(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: float = Field(ge=0, description="prompt tokens that the server had not cached")
    cached_prompt: float = Field(ge=0, description="prompt tokens that the server read from its own cache")
    completion: float = Field(ge=0, description="tokens of the response")
    batch_discount: float = Field(
        default=0.5, ge=0, le=1, description="fraction of these prices that the Batch API takes off"
    )

    @property
    def by_batch(self) -> "Price":
        """The price of a response that comes by the Batch API."""
        left = 1 - self.batch_discount
        return Price(
            prompt=self.prompt * left,
            cached_prompt=self.cached_prompt * left,
            completion=self.completion * left,
            batch_discount=0,
        )


KNOWN_PRICES = {
    "text-embedding-3-small": Price(prompt=0.02, cached_prompt=0.02, completion=0),
    "text-embedding-3-large": Price(prompt=0.13, cached_prompt=0.13, completion=0),
    **dict.fromkeys(LOCAL_MODELS, Price(prompt=0, cached_prompt=0, completion=0)),
    "gpt-4o-mini": Price(prompt=0.15, cached_prompt=0.075, completion=0.60),
    "gpt-4o": Price(prompt=2.50, cached_prompt=1.25, completion=10.00),
}
"""List prices; `llm.price_per_million_tokens` takes precedence."""


LOCAL_MINUTES = 10.0
"""llm.budget.max_minutes of a model that the scorer serves itself."""


class Budget(BaseModel):
    """How many pairs, and how much money and how many tokens for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: int | None = Field(
        default=None,
        ge=1,
        description="(user, candidate) pairs to score; never exceeded. Empty: enough for one preference pair per ten "
        "train positives, fewer if max_cost_usd, max_tokens or max_minutes, as estimated, allow fewer; of a table with "
        "scores, all",
    )
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="minutes that the requests of a plan without pairs may take, as estimated if nothing is cached; "
        f"empty: {LOCAL_MINUTES:g} for a model that runs on this machine, else no limit",
    )
    max_cost_usd: float | None = Field(
        default=None,
        gt=0,
        description="no request is sent that could bring the cost of all responses, those of earlier runs "
        "included, above this; needs a known price",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="no request is sent that could bring the tokens of all prompts and responses, those of earlier "
        "runs included, above this",
    )


class Limits(BaseModel):
    """How fast requests are sent; endpoints publish an account's limits. All runs in progress that query the model and
    use the same store share them, with requests spread evenly over the minute; retries count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1, description="requests; empty: no limit")
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens of prompts and responses together; empty: no limit"
    )


class CandidateConfig(StrictConfig):
    """Which scoring contexts (a user at a point in time, from the train split) and which candidates the LLM scores. See
    contexts/candidates.py.
    """

    SECTION: ClassVar = "llm.candidates"
    RENAMED_KEYS: ClassVar = {
        "probe_fraction": "calibration_fraction",
        "negatives_per_probe": "negatives_per_target",
        "probe_negatives": "calibration_negatives",
        "cold_max_history": "short_history_max",
        "cold_fraction": "short_history_fraction",
        "tail_chosen_fraction": "tail_target_fraction",
        "moments": "contexts",
    }

    per_context: int = Field(default=10, ge=2, le=100, description="candidates of a scoring context")
    calibration_fraction: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="fraction of contexts that contain the target item, the item that the user interacted with next; "
        "its pairs with sampled negatives are the calibration pairs",
    )
    negatives_per_target: int = Field(
        default=3,
        ge=1,
        description="sampled negatives beside the target item",
    )
    calibration_negatives: Literal["popularity", "uniform"] = Field(
        default="popularity",
        description="which negatives: `popularity`, items about as popular as the target item, so that what the LLM "
        "gets right is not popularity; `uniform`, any items, as the sampled negatives of the rows, for a gate that "
        "weighs the LLM against the ranking model (gate.mode advantage and stacked)",
    )
    popularity_pool: int = Field(default=200, ge=1, description="K: size of the pool of most popular items")
    short_history_max: int = Field(
        default=3, ge=1, description="a history of at most this many positives counts as short"
    )
    short_history_fraction: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="fraction of contexts reserved for short histories; they get diverse candidates",
    )
    tail_target_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="fraction of contexts reserved for target items of the long tail; 0 scores these as often as they "
        "occur, which gate.mode stacked needs, as it learns from the calibration pairs how often users take them",
    )
    tail_per_context: int = Field(default=2, ge=0, description="long-tail candidates in every context")
    similar_per_context: int = Field(
        default=0,
        ge=0,
        description="candidates in every context that are like an item of the history: near its vector in "
        "the items' vectors if item_vectors.source is not none, else of the same most specific category",
    )
    contexts: Literal["any", "latest"] = Field(
        default="any",
        description="which contexts of a user come first: `any`, by hash; `latest`, the last ones of the train split, "
        "whose histories are nearest to what is served",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        parts = 1 + self.negatives_per_target + self.tail_per_context + self.similar_per_context
        if parts > self.per_context:
            raise ValueError(
                "1 + negatives_per_target + tail_per_context + similar_per_context must be at most per_context, got "
                f"{parts} > {self.per_context}; raise llm.candidates.per_context"
            )
        if self.short_history_fraction + self.tail_target_fraction > 1:
            raise ValueError(
                "short_history_fraction + tail_target_fraction must be at most 1, got "
                f"{self.short_history_fraction + self.tail_target_fraction:g}; lower one of them in llm.candidates"
            )
        return self


class AuditConfig(StrictConfig):
    """How the influence of the order of candidates is measured: some contexts are queried twice. See audit.py."""

    SECTION: ClassVar = "llm.audit"
    RENAMED_KEYS: ClassVar = {"share": "fraction"}

    fraction: float = Field(
        default=0,
        ge=0,
        le=1,
        description="fraction of contexts that the scorer queries a second time with the candidates in reverse order; "
        "these requests come on top of those that budget.pairs allows, within max_cost_usd",
    )
    canary_fraction: float = Field(
        default=0,
        ge=0,
        le=1,
        description="fraction of contexts that the scorer queries once more with a planted item whose title holds an "
        "instruction, to see whether the LLM follows it; on top of budget.pairs, as above. See canary.py",
    )


class PromptFeatures(BaseModel):
    """Declared features that prompts contain, by name: what an endpoint learns of users beside their histories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item: tuple[str, ...] = Field(default=(), description="of each item, as it was at the time of the scoring context")
    user: tuple[str, ...] = Field(default=(), description="of the user at that time")


class BatchConfig(BaseModel):
    """How requests go to the Batch API: in files of at most so many requests and bytes, which OpenAI bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_file: int = Field(default=50_000, ge=1, le=50_000, description="requests in one batch")
    bytes_per_file: int = Field(default=200_000_000, ge=1, le=200_000_000, description="size of one batch's file")
    max_enqueued_tokens: int | None = Field(
        default=None,
        ge=1,
        description="prompt tokens in all batches in flight together, as estimated: the account's limit by model, less "
        "a tenth; empty: no limit",
    )
    poll_s: float = Field(default=60, gt=0, description="seconds between two polls of the batches in flight")


class LocalServerConfig(BaseModel):
    """The process that serves a model on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=2, ge=1, description="CPU threads for all slots together")
    slots: int | None = Field(
        default=None,
        ge=1,
        description="requests decoded side by side; empty: 2 for qwen2.5-coder-1.5b-instruct-q4, 16 for the other "
        "local models",
    )
    context: int = Field(default=1024, ge=128, description="tokens that a slot holds, prompt and response")


class LlmConfig(StrictConfig):
    """The LLM. `model: gpt-4o-mini` with OPENAI_API_KEY in the environment is all that another LLM needs."""

    # A wrong value may be a key in the wrong place: errors name the field and the rule, not the input.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    SECTION: ClassVar = "llm"
    MOVED_KEYS: ClassVar = {"embedding_file": "item_vectors: {source: file, file: ...}"}

    _item_vectors_file: str | None = PrivateAttr(default=None)

    model: str = Field(
        default=BUNDLED_MODEL,
        min_length=1,
        description="the model's name at the endpoint; without base_url, these run on this machine: "
        f"{', '.join(LOCAL_MODELS)}",
    )
    accept_license: bool = Field(
        default=False, description="that you accept the terms of a model which asks for it, such as Gemma's"
    )
    base_url: str | None = Field(
        default=None,
        description="an OpenAI-compatible endpoint, ending in /v1; empty: a local server for the models "
        "that run on this machine, OpenAI's API for any other",
    )
    model_id: str | None = Field(
        default=None,
        min_length=1,
        description="what tells this model from others of the same name in the response cache; empty: the endpoint's "
        "host, port and path, for OpenAI's API and the bundled model the name alone; the text of llm.model: the name "
        "alone, whichever endpoint",
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY",
        description="NAME of the environment variable that holds the key",
    )
    strategy: str | None = Field(
        default=None,
        description=f"how it is queried: {LISTWISE}; {YES_NO} (endpoints that return log-probabilities); "
        f"{TITLE_LIKELIHOOD} (llama.cpp servers only); {EMBEDDING} (the items' vectors, see item_vectors); {REPLAY} "
        f"(replay_table); empty: for a model that runs on this machine its own, see docs/llm.md; {LISTWISE} for any "
        "other",
    )
    replay_table: str | None = Field(
        default=None,
        description=f"{REPLAY}: an LlmScores folder; or CSV or Parquet, plain or .gz, a file or a folder of parts, "
        "with user_id, item_id, score and optionally scored_at, or with context_id, item_id and score in [0, 1]",
    )
    prompt_file: str | None = Field(default=None, description="a prompt file in place of the strategy's own")
    history_items: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description=f"latest items of the history in a prompt; empty: the paper's 10, for {TITLE_LIKELIHOOD} 6",
    )
    prompt_features: PromptFeatures = Field(
        default=PromptFeatures(),
        description=f"declared features in prompts, of {LISTWISE} and {YES_NO}; see docs/security.md",
    )
    history_lag: int = Field(
        default=0,
        ge=0,
        description="newest items of each history that prompts leave out, as if the scores were so many interactions "
        "old: an experiment on what stale scores cost",
    )
    temperature: float | None = Field(default=0, ge=0, le=2, description="empty where a model refuses the parameter")
    capabilities: dict[str, Any] = Field(
        default_factory=dict,
        description="overrides of what the endpoint takes, where the table in components/llm_scorer/capabilities.py is "
        "wrong: output_cap, response_format (json_schema, json_object, none), seed, temperature, top_logprobs, "
        "reasoning, reasoning_effort",
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of each chat and embedding request, as the endpoint defines them; part of the "
        "cache identity",
    )
    max_output_tokens: int | None = Field(
        default=None,
        ge=1,
        description="limit of one response; empty: by the strategy, from the number of candidates",
    )
    seed: int = Field(default=0, description="of the choice and order of candidates, and of the endpoint's sampling")
    timeout_s: float = Field(
        default=120, gt=0, description="seconds that a request may take, from its start to the end of its response"
    )
    max_retries: int = Field(
        default=5,
        ge=0,
        le=20,
        description="retries of a request after a retryable failure, with exponential back-off or the endpoint's delay",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="requests in flight in one worker at most, fewer while the endpoint throttles; empty: the local "
        "server's slots, or 16",
    )
    max_failure_rate: float = Field(
        default=0.1, ge=0, le=1, description="above this fraction of failed pairs the component fails"
    )
    max_age_days: float | None = Field(
        default=None,
        gt=0,
        description="a run warns if its oldest score is older; `sllmr rescore` scores older ones again; empty: "
        "no limit",
    )
    rescore: bool = Field(
        default=False,
        description="a run keeps the scores of the last run in its folder and queries the LLM only about what changed, "
        "as `sllmr rescore` does; false: every run plans anew, and only the cache saves requests",
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

    @field_validator("capabilities")
    @classmethod
    def _known_capabilities(cls, value: dict[str, Any]) -> dict[str, Any]:
        Capabilities.model_validate(value)
        return value

    @field_validator("extra_body")
    @classmethod
    def _own_fields_stay(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := {"model", "messages", "input", "prompt", "stream", "n"} & set(value):
            raise ValueError(f"extra_body must not hold {', '.join(sorted(taken))}; the scorer sets them itself")
        if caps := {"max_tokens", "max_completion_tokens"} & set(value):
            raise ValueError(f"extra_body must not hold {', '.join(sorted(caps))}; set llm.max_output_tokens")
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
        if self.replay_table is not None and self.strategy != REPLAY:
            raise ValueError(
                f"replay_table needs strategy {REPLAY}, got {self.strategy or 'none'}; set llm.strategy: {REPLAY} or "
                "remove llm.replay_table"
            )
        if self.local_model is not None and self.local_model.terms is not None and not self.accept_license:
            raise ValueError(
                f"model {self.model} is under the terms of {self.local_model.terms}, which you must accept; read them "
                "and set llm.accept_license: true, or set another llm.model"
            )
        if self.strategy == REPLAY and self.rescore:
            raise ValueError(
                f"rescore needs a strategy that queries an LLM, got {REPLAY}; remove llm.rescore, or set llm.strategy"
            )
        if self.strategy == REPLAY and self.replay_table is None:
            raise ValueError(f"strategy {REPLAY} needs a table, got none; set llm.replay_table")
        if self.strategy == TITLE_LIKELIHOOD and not self.uses_local_server and self.base_url is None:
            raise ValueError(
                f"strategy {TITLE_LIKELIHOOD} needs a llama.cpp server, got OpenAI's API for model "
                f"{self.model!r}; set llm.strategy to {LISTWISE} or llm.base_url to such a server"
            )
        if self.strategy == YES_NO and not self.endpoint_capabilities.top_logprobs:
            raise ValueError(
                f"strategy {YES_NO} needs top_logprobs, which {self.model!r} does not return at this endpoint; set "
                f"llm.strategy: {LISTWISE}, or llm.capabilities: {{top_logprobs: true}} if it does"
            )
        if self.audit.fraction and self.chosen_strategy != LISTWISE:
            raise ValueError(
                f"audit.fraction needs {LISTWISE}, the one strategy whose response can depend on the order of "
                f"candidates, got {self.audit.fraction:g} with {self.chosen_strategy}; set llm.audit.fraction: 0 or "
                f"llm.strategy: {LISTWISE}"
            )
        if self.audit.canary_fraction and self.chosen_strategy != LISTWISE:
            raise ValueError(
                f"audit.canary_fraction needs {LISTWISE}, the one strategy whose prompt holds several candidates, got "
                f"{self.audit.canary_fraction:g} with {self.chosen_strategy}; set llm.audit.canary_fraction: 0 or "
                f"llm.strategy: {LISTWISE}"
            )
        if self.prompt_features != PromptFeatures() and self.chosen_strategy not in (LISTWISE, YES_NO):
            raise ValueError(
                f"prompt_features needs a strategy whose prompt describes user and items, {LISTWISE} or {YES_NO}, got "
                f"{self.chosen_strategy}; set llm.strategy or remove llm.prompt_features"
            )
        if self.budget.max_minutes is not None and self.budget.pairs is not None:
            raise ValueError(
                f"budget.max_minutes bounds pairs that follow from the data, got budget.pairs {self.budget.pairs} as "
                "well; remove llm.budget.max_minutes or llm.budget.pairs"
            )
        if self.budget.max_cost_usd is not None and self.price is None:
            raise ValueError(
                f"max_cost_usd needs the price of {self.model!r}, which is not known; set llm.price_per_million_tokens"
            )
        return self

    @property
    def endpoint_capabilities(self) -> Capabilities:
        """What the model at the endpoint takes."""
        local = self.uses_local_server or self.asks_nobody
        return capabilities_of(self.base_url or (None if local else OPENAI_BASE_URL), self.model, self.capabilities)

    @property
    def chosen_strategy(self) -> str:
        """The strategy in effect: llm.strategy, or the default of the model."""
        known = LOCAL_MODELS.get(self.model)
        return self.strategy or (LISTWISE if known is None else known.strategy)

    @property
    def uses_local_server(self) -> bool:
        """Whether the scorer starts the model itself."""
        return self.local_model is not None

    @property
    def local_model(self) -> LocalModel | None:
        """The model that the scorer starts itself; None if it starts none."""
        return None if self.base_url is not None or self.asks_nobody else LOCAL_MODELS.get(self.model)

    @property
    def minutes_at_most(self) -> float | None:
        """How long the requests of a plan without budget.pairs may take; None without a limit."""
        return self.budget.max_minutes or (LOCAL_MINUTES if self.uses_local_server else None)

    @property
    def slots(self) -> int:
        """Requests that a server on this machine decodes side by side."""
        return self.local_server.slots or LOCAL_MODELS.get(self.model, LOCAL_MODELS[BUNDLED_MODEL]).slots

    @property
    def endpoint_identity(self) -> str:
        """What stands for the endpoint in the keys of the response cache; empty if the model's name is enough."""
        if self.model_id is not None:
            return "" if self.model_id == self.model else self.model_id
        parts = urllib.parse.urlsplit(self.base_url or OPENAI_BASE_URL)
        host = parts.hostname or ""
        if (
            self.model == BUNDLED_MODEL
            or self.uses_local_server
            or self.asks_nobody
            or f".{host}".endswith(".api.openai.com")
        ):
            return ""
        port = "" if parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme)) else f":{parts.port}"
        return f"{host}{port}{parts.path.removesuffix('/v1')}"

    @property
    def asks_nobody(self) -> bool:
        """Whether the scores come from item vectors or a table."""
        return self.strategy == EMBEDDING or self.replay_table is not None

    def scored_by_vectors(self) -> "LlmConfig":
        """A configuration for the same choice of candidates, as many as training needs, scored by item vectors."""
        return LlmConfig(strategy=EMBEDDING, candidates=self.candidates, seed=self.seed)

    @property
    def planned_pairs(self) -> int:
        """budget.pairs, which a job sets by the data if a person does not: see cost/pairs_from_data.py."""
        if self.budget.pairs is None:
            raise ValueError("budget.pairs must be set before contexts are planned, got None; see with_pairs")
        return self.budget.pairs

    def with_pairs(self, pairs: int) -> "LlmConfig":
        """The same with budget.pairs."""
        return self.model_copy(update={"budget": self.budget.model_copy(update={"pairs": pairs})})

    @property
    def item_vectors_file(self) -> str | None:
        """Where ItemEmbedder's vectors are; None without any."""
        return self._item_vectors_file

    def with_item_vectors(self, file: str | None) -> "LlmConfig":
        """This configuration with the item vectors of this run; the job sets them, not the user."""
        config = self.model_copy()
        config._item_vectors_file = file
        return config

    @property
    def price(self) -> Price | None:
        """The price that counts; None where it is unknown."""
        if self.asks_nobody:
            return Price(prompt=0, cached_prompt=0, completion=0)
        return self.price_per_million_tokens or KNOWN_PRICES.get(self.model)

    def resolve(self) -> "LlmConfig":
        """This configuration with all defaults filled in that depend on other settings.

        In the result, `strategy`, `history_items` and `concurrency` are set, and `base_url` is None only if the scorer
        starts the server itself or sends no requests. If the scores come from a table or from item vectors, `model` is
        the table's file name or `item_vectors`, unless another model is named.
        """
        local = self.uses_local_server or self.asks_nobody
        source = "item_vectors" if self.strategy == EMBEDDING else self.replay_table
        model = os.path.basename(os.path.normpath(source)) if source and self.model == BUNDLED_MODEL else self.model
        strategy = self.chosen_strategy
        return self.model_copy(
            update={
                "model": model,
                "base_url": self.base_url or (None if local else OPENAI_BASE_URL),
                "strategy": strategy,
                "history_items": self.history_items or (6 if strategy == TITLE_LIKELIHOOD else 10),
                "concurrency": self.concurrency or (self.slots if local else 16),
                "price_per_million_tokens": self.price,
            }
        )

"""What a plan will ask for, cost and take, told before the first call."""

import dataclasses
from collections.abc import Iterable, Mapping

from components.catalog import Item
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Context, LlmRequest, Usage
from components.llm_scorer.ledger import cost_nano_usd
from components.llm_scorer.strategies import Strategy

CHARACTERS_PER_TOKEN = 4.0
"""Of English prompts, instructions and JSON schema included. A guess before the first answer: by SmolLM2's tokenizer,
which splits digits, estimates lie between .87 and 1.11 of the truth over three catalogues and four strategies.
"""

LEARN_FROM = 20
"""So many answers at hand tell better than any rule how many tokens the others take."""

LATENCY_S = 0.5
TOKENS_PER_S = 50.0
"""What is taken for a remote endpoint before it was ever asked: time to the first token, speed of the others."""

LOCAL_CALL_CPU_S = 0.1
"""Of the bundled model, prefix cached (measured: 0.1 a yes/no pair, 0.2 a title likelihood of two calls)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size of a plan.

    Attributes:
        contexts, pairs, probes: what is asked about.
        calls: distinct requests.
        cached: those of them whose answers are at hand.
        usage: estimated tokens of the others; none of the prompt counts as cached by the server.
        cost_nano_usd: estimated price of the others; None where the price is unknown.
        prior_nano_usd: what the answers at hand did cost; 0 where the price is unknown.
    """

    contexts: int
    pairs: int
    probes: int
    calls: int
    cached: int
    usage: Usage
    cost_nano_usd: int | None
    prior_nano_usd: int

    @property
    def to_send(self) -> int:
        """Calls that will be made."""
        return self.calls - self.cached

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_nano_usd is None else f"about ${self.cost_nano_usd / 1e9:.4f}"
        return (
            f"{self.pairs} pairs in {self.contexts} contexts ({self.probes} labelled probes): "
            f"{self.calls} calls, {self.cached} of them cached; to send {self.to_send} calls, about "
            f"{self.usage.prompt} prompt and {self.usage.completion} completion tokens, {cost}"
        )


def expected_usage(request: LlmRequest) -> Usage:
    """Likely tokens of one call."""
    return Usage(
        prompt=round(request.prompt_bytes / CHARACTERS_PER_TOKEN),
        completion=request.expected_tokens,
    )


class Estimator:
    """Sizes a plan context by context. A request that recurs is counted once, as the cache will answer its repeats.

    With LEARN_FROM answers at hand, tokens of the others are corrected by what those took against what was expected.
    """

    def __init__(self, catalog: Mapping[str, Item], strategy: Strategy, config: LlmConfig, cache: ResponseCache):
        """
        Args:
            config: resolved.
        """
        self._catalog = catalog
        self._strategy = strategy
        self._price = config.price
        self._cache = cache
        self._seen: set[bytes] = set()
        self._contexts = self._pairs = self._probes = self._cached = self._prior = 0
        self._prompt = self._completion = 0
        self._learnt = 0
        self._answered_prompt = self._answered_completion = 0
        self._expected_prompt = self._expected_completion = 0

    def add(self, context: Context) -> None:
        """Counts one context."""
        self._contexts += 1
        self._pairs += len(context.candidates)
        self._probes += bool(context.chosen_item_id)
        for request in self._strategy.requests(context, self._catalog):
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in self._seen:
                continue
            self._seen.add(digest)
            known = self._cache.get(key)
            expected = expected_usage(request)
            if known is None:
                self._prompt += expected.prompt
                self._completion += expected.completion
                continue
            self._cached += 1
            usage = Usage.of(known[0])
            if self._price is not None:
                self._prior += cost_nano_usd(usage, self._price)
            if usage.prompt:
                self._learnt += 1
                self._answered_prompt += usage.prompt
                self._answered_completion += usage.completion
                self._expected_prompt += expected.prompt
                self._expected_completion += expected.completion

    def total(self) -> Estimate:
        """Of all contexts so far."""
        prompt, completion = self._prompt, self._completion
        if self._learnt >= LEARN_FROM:
            prompt = round(prompt * self._answered_prompt / max(self._expected_prompt, 1))
            completion = round(completion * self._answered_completion / max(self._expected_completion, 1))
        usage = Usage(prompt=prompt, completion=completion)
        return Estimate(
            contexts=self._contexts,
            pairs=self._pairs,
            probes=self._probes,
            calls=len(self._seen),
            cached=self._cached,
            usage=usage,
            cost_nano_usd=None if self._price is None else cost_nano_usd(usage, self._price),
            prior_nano_usd=self._prior,
        )


def estimate(
    contexts: Iterable[Context],
    catalog: Mapping[str, Item],
    strategy: Strategy,
    config: LlmConfig,
    cache: ResponseCache,
) -> Estimate:
    """Sizes a plan without a call."""
    estimator = Estimator(catalog, strategy, config, cache)
    for context in contexts:
        estimator.add(context)
    return estimator.total()


def expected_seconds(size: Estimate, config: LlmConfig) -> tuple[float, str]:
    """How long the calls take at the configured limits, and which limit it is that binds.

    The longest of: calls / requests_per_minute, tokens / tokens_per_minute, and the work itself: for the bundled model
    its CPU time over its threads, for a remote endpoint LATENCY_S and TOKENS_PER_S over `concurrency`.

    Args:
        config: resolved.
    """
    bounds: dict[str, float] = {}
    if config.limits.requests_per_minute is not None:
        bounds["llm.limits.requests_per_minute"] = 60 * size.to_send / config.limits.requests_per_minute
    if config.limits.tokens_per_minute is not None:
        tokens = size.usage.prompt + size.usage.completion
        bounds["llm.limits.tokens_per_minute"] = 60 * tokens / config.limits.tokens_per_minute
    if config.uses_local_server:
        bounds["llm.local_server.threads"] = size.to_send * LOCAL_CALL_CPU_S / config.local_server.threads
    else:
        work = size.to_send * LATENCY_S + size.usage.completion / TOKENS_PER_S
        bounds["llm.concurrency"] = work / (config.concurrency or 1)
    name = max(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name

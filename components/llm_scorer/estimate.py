"""What a plan will ask for, cost and take, told before the first call."""

import contextlib
import dataclasses
import os.path
from collections.abc import Iterable, Mapping

from components.catalog import Item
from components.llm_scorer.batch_state import BatchState
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Context, LlmRequest, Usage
from components.llm_scorer.ledger import cost_nano_usd, cost_of_answer_nano_usd
from components.llm_scorer.strategies import Strategy
from components.llm_scorer.tokens import expected_cached_prompt, expected_usage

LEARN_FROM = 20
"""So many answers at hand tell better than any rule how many tokens the others take."""

LATENCY_S = 0.5
TOKENS_PER_S = 50.0
"""What is taken for a remote endpoint before it was ever asked: time to the first token, speed of the others."""

LOCAL_TOKENS_PER_CPU_S = 175.0
"""Of the bundled model: prompt tokens that it does not have, and those of answers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size of a plan.

    Attributes:
        contexts, pairs, probes: what is asked about.
        calls: distinct requests.
        cached: those of them whose answers are at hand.
        under_way: those of them that are with the Batch API.
        usage: estimated tokens of the others.
        cost_nano_usd: estimated price of the others; None where the price is unknown.
        by_batch_nano_usd: the same by the Batch API.
        prior_nano_usd: what the answers at hand did cost; 0 where the price is unknown.
        prior_tokens: of the answers at hand, prompts and answers together.
    """

    contexts: int
    pairs: int
    probes: int
    calls: int
    cached: int
    under_way: int
    usage: Usage
    cost_nano_usd: int | None
    by_batch_nano_usd: int | None
    prior_nano_usd: int
    prior_tokens: int

    @property
    def to_send(self) -> int:
        """Calls that will be made."""
        return self.calls - self.cached - self.under_way

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_nano_usd is None else f"about ${self.cost_nano_usd / 1e9:.4f}"
        return (
            f"{self.pairs} pairs in {self.contexts} contexts ({self.probes} labelled probes): "
            f"{self.calls} calls, {self.cached} of them cached; to send {self.to_send} calls, about "
            f"{self.usage.prompt} prompt and {self.usage.completion} completion tokens, {cost}"
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
        self._config = config
        self._price = config.price
        self._cache = cache
        self._seen: set[bytes] = set()
        with contextlib.closing(BatchState(os.path.dirname(cache.path))) as batches:
            self._keys_under_way = batches.keys_under_way()
        self._contexts = self._pairs = self._probes = self._cached = self._under_way = 0
        self._prior_nano_usd = self._prior_tokens = 0
        self._to_send = Usage()
        # Of the answers at hand: how many of them tell their tokens, these, and those that were to be expected.
        self._learnt = 0
        self._answered = Usage()
        self._expected = Usage()

    def add(self, context: Context) -> None:
        """Counts one context."""
        self._contexts += 1
        self._pairs += len(context.candidates)
        self._probes += bool(context.chosen_item_id)
        previous: LlmRequest | None = None
        for request in self._strategy.requests(context, self._catalog):
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in self._seen:
                continue
            self._seen.add(digest)
            known = self._cache.get(key)
            if known is None and key in self._keys_under_way:
                self._under_way += 1
                continue
            expected = expected_usage(request, self._config)
            if known is None:
                if previous is not None:
                    cached_prompt = expected_cached_prompt(request, previous, self._config)
                    expected = dataclasses.replace(expected, cached_prompt=cached_prompt)
                previous = request
                self._to_send += expected
                continue
            self._cached += 1
            usage = Usage.of(known[0])
            self._prior_tokens += usage.prompt + usage.completion
            if self._price is not None:
                self._prior_nano_usd += cost_of_answer_nano_usd(known[0], self._price)
            if usage.prompt:
                self._learnt += 1
                self._answered += usage
                self._expected += expected

    def total(self) -> Estimate:
        """Of all contexts so far."""
        usage = self._to_send
        if self._learnt >= LEARN_FROM:
            prompt = round(usage.prompt * self._answered.prompt / max(self._expected.prompt, 1))
            usage = Usage(
                prompt=prompt,
                cached_prompt=round(prompt * self._answered.cached_prompt / self._answered.prompt),
                completion=round(usage.completion * self._answered.completion / max(self._expected.completion, 1)),
            )
        price = self._price
        # Requests of one batch are worked on in any order, so no shared beginning is counted on.
        uncached = dataclasses.replace(usage, cached_prompt=0)
        return Estimate(
            contexts=self._contexts,
            pairs=self._pairs,
            probes=self._probes,
            calls=len(self._seen),
            cached=self._cached,
            under_way=self._under_way,
            usage=usage,
            cost_nano_usd=None if price is None else cost_nano_usd(usage, price),
            by_batch_nano_usd=None if price is None else cost_nano_usd(uncached, price.by_batch),
            prior_nano_usd=self._prior_nano_usd,
            prior_tokens=self._prior_tokens,
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
        bounds["llm.local_server.threads"] = (
            (size.usage.prompt - size.usage.cached_prompt + size.usage.completion)
            / LOCAL_TOKENS_PER_CPU_S
            / config.local_server.threads
        )
    else:
        work = size.to_send * LATENCY_S + size.usage.completion / TOKENS_PER_S
        bounds["llm.concurrency"] = work / (config.concurrency or 1)
    name = max(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name

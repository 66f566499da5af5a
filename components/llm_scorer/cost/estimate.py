"""What a plan will ask for, cost and take, told before the first call."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.batch.state import BatchState
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.endpoint.tokens import expected_cached_prompt, expected_usage
from sllmr.components.llm_scorer.messages import Context, LlmRequest, Usage
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.identity import check_endpoint_of_cached
from sllmr.components.llm_scorer.requests.ledger import (
    RESERVED_NANO_USD,
    RESERVED_TOKENS,
    billed_usage,
    cost_nano_usd,
    cost_of_response_nano_usd,
    unsettled_reservations,
)
from sllmr.components.llm_scorer.strategies import Strategy

LEARN_FROM = 20
"""With this many cached responses, their token counts correct the estimate for the other requests."""

LATENCY_S = 0.5
TOKENS_PER_S = 50.0
"""Assumptions about a remote endpoint: seconds to the first token, then tokens per second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Size of a plan.

    Attributes:
        contexts, pairs, calibration_contexts: what the plan holds.
        requests: distinct ones.
        cached: those of them that the cache answers.
        failed_earlier: those of them that are queried again, as no earlier response gave a score.
        in_flight: those of them that are with the Batch API.
        usage: estimated tokens of the requests to send, which are neither cached nor in flight.
        cost_nano_usd: estimated price of the requests to send; None if the price is unknown.
        by_batch_nano_usd: the same by the Batch API.
        retry_nano_usd: the part of cost_nano_usd for failed_earlier.
        prior_nano_usd: what the earlier responses did cost, those without a score as well; 0 where the price is
            unknown.
        prior_tokens: of the earlier responses, prompts and answers together.
        unsettled: requests whose earlier run was killed, or failed, while the endpoint may have done the work.
        unsettled_nano_usd: the most that these can have cost; part of prior_nano_usd.
    """

    contexts: int
    pairs: int
    calibration_contexts: int
    requests: int
    cached: int
    in_flight: int
    usage: Usage
    cost_nano_usd: int | None
    by_batch_nano_usd: int | None
    prior_nano_usd: int
    prior_tokens: int
    failed_earlier: int = 0
    retry_nano_usd: int | None = 0
    unsettled: int = 0
    unsettled_nano_usd: int = 0

    @property
    def to_send(self) -> int:
        """Calls that will be made."""
        return self.requests - self.cached - self.in_flight

    def __str__(self) -> str:
        unsettled = ""
        if self.unsettled:
            unsettled = (
                f"; {self.unsettled} requests of earlier runs ended without a response and may be on the bill: up to "
                f"${self.unsettled_nano_usd / 1e9:.4f} counts as spent (sllmr reservations)"
            )
        cost = "price unknown" if self.cost_nano_usd is None else f"about ${self.cost_nano_usd / 1e9:.4f}"
        return (
            f"{self.pairs} pairs in {self.contexts} contexts ({self.calibration_contexts} for calibration): "
            f"{self.requests} requests, {self.cached} of them cached; to send {self.to_send}, about "
            f"{self.usage.prompt} prompt and {self.usage.completion} completion tokens, {cost}{unsettled}"
        )


class Estimator:
    """Sizes a plan context by context. A request that recurs is counted once, as the cache will answer its repeats.

    With LEARN_FROM cached responses, the expected tokens of the other requests are scaled by the ratio of actual to
    expected tokens of the cached ones.
    """

    def __init__(
        self,
        catalog: Mapping[str, Item],
        strategy: Strategy,
        config: LlmConfig,
        cache: ResponseCache,
        *,
        retry_failed: bool = True,
    ):
        """
        Args:
            config: resolved.
            retry_failed: whether requests whose responses gave no score are queried again.
        """
        self._catalog = catalog
        self._strategy = strategy
        self._config = config
        self._price = config.price
        self._cache = cache
        self._retry_failed = retry_failed
        self._receipt_keys = cache.receipt_keys()
        self._failed_earlier = 0
        self._to_retry = Usage()
        self._seen: set[bytes] = set()
        with contextlib.closing(BatchState(cache.store)) as batches:
            self._keys_in_flight = batches.keys_in_flight()
        self._contexts = self._pairs = self._calibration_contexts = self._cached = self._in_flight = 0
        self._prior_nano_usd = self._prior_tokens = 0
        self._unsettled = unsettled_reservations(cache.store)
        self._unsettled_requests = self._unsettled_nano_usd = 0
        self._to_send = Usage()
        # Of the cached responses: how many report their tokens, the tokens reported, and the tokens expected.
        self._learnt = 0
        self._answered = Usage()
        self._expected = Usage()

    def add(self, context: Context) -> None:
        """Counts one context."""
        self._contexts += 1
        self._pairs += len(context.candidates)
        self._calibration_contexts += bool(context.target_item_id)
        previous: LlmRequest | None = None
        for request in self._strategy.requests(context, self._catalog):
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in self._seen:
                continue
            self._seen.add(digest)
            known = self._cache.get(key)
            earlier = self._cache.receipts(key) if key in self._receipt_keys else []
            for response in earlier if known is None else [known[0], *earlier]:
                paid = billed_usage(request, response)
                self._prior_tokens += paid.prompt + paid.completion
                if self._price is not None:
                    self._prior_nano_usd += cost_of_response_nano_usd(request, response, self._price)
            if unsettled := self._unsettled.get(key):
                self._unsettled_requests += 1
                self._unsettled_nano_usd += unsettled[RESERVED_NANO_USD]
                self._prior_tokens += unsettled[RESERVED_TOKENS]
            if known is None:
                check_endpoint_of_cached(request, self._cache, self._config)
            is_failed = known is None and bool(earlier)
            if known is not None and self._retry_failed and self._strategy.failure(request, known[0]) is not None:
                known, is_failed = None, True
            if known is None and key in self._keys_in_flight:
                self._in_flight += 1
                continue
            expected = expected_usage(request, self._config)
            if known is None:
                if previous is not None:
                    cached_prompt = expected_cached_prompt(request, previous, self._config)
                    expected = dataclasses.replace(expected, cached_prompt=cached_prompt)
                previous = request
                self._to_send += expected
                if is_failed:
                    self._failed_earlier += 1
                    self._to_retry += expected
                continue
            self._cached += 1
            usage = Usage.of(known[0])
            if usage.prompt:
                self._learnt += 1
                self._answered += usage
                self._expected += expected

    def total(self) -> Estimate:
        """Of all contexts so far."""
        usage = self._corrected(self._to_send)
        price = self._price
        # Requests of one batch are worked on in any order, so no shared beginning is counted on.
        uncached = dataclasses.replace(usage, cached_prompt=0)
        return Estimate(
            contexts=self._contexts,
            pairs=self._pairs,
            calibration_contexts=self._calibration_contexts,
            requests=len(self._seen),
            cached=self._cached,
            in_flight=self._in_flight,
            usage=usage,
            cost_nano_usd=None if price is None else cost_nano_usd(usage, price),
            by_batch_nano_usd=None if price is None else cost_nano_usd(uncached, price.by_batch),
            prior_nano_usd=self._prior_nano_usd + self._unsettled_nano_usd,
            prior_tokens=self._prior_tokens,
            unsettled=self._unsettled_requests,
            unsettled_nano_usd=self._unsettled_nano_usd,
            failed_earlier=self._failed_earlier,
            retry_nano_usd=None if price is None else cost_nano_usd(self._corrected(self._to_retry), price),
        )

    def _corrected(self, usage: Usage) -> Usage:
        if self._learnt < LEARN_FROM:
            return usage
        prompt = round(usage.prompt * self._answered.prompt / max(self._expected.prompt, 1))
        return Usage(
            prompt=prompt,
            cached_prompt=round(prompt * self._answered.cached_prompt / self._answered.prompt),
            completion=round(usage.completion * self._answered.completion / max(self._expected.completion, 1)),
        )


def estimate(
    contexts: Iterable[Context],
    catalog: Mapping[str, Item],
    strategy: Strategy,
    config: LlmConfig,
    cache: ResponseCache,
    *,
    retry_failed: bool = True,
) -> Estimate:
    """Sizes a plan without a call."""
    estimator = Estimator(catalog, strategy, config, cache, retry_failed=retry_failed)
    for context in contexts:
        estimator.add(context)
    return estimator.total()


def expected_seconds(size: Estimate, config: LlmConfig) -> tuple[float, str]:
    """How long the calls take at the configured limits, and which limit it is that binds.

    The longest of: calls / requests_per_minute, tokens / tokens_per_minute, and the work itself: for a model on this
    machine its CPU time over its threads, for a remote endpoint LATENCY_S and TOKENS_PER_S over `concurrency`.

    Args:
        config: resolved.
    """
    bounds: dict[str, float] = {}
    if config.limits.requests_per_minute is not None:
        bounds["llm.limits.requests_per_minute"] = 60 * size.to_send / config.limits.requests_per_minute
    if config.limits.tokens_per_minute is not None:
        tokens = size.usage.prompt + size.usage.completion
        bounds["llm.limits.tokens_per_minute"] = 60 * tokens / config.limits.tokens_per_minute
    if config.local_model is not None:
        bounds["llm.local_server.threads"] = (
            (size.usage.prompt - size.usage.cached_prompt + size.usage.completion)
            / config.local_model.tokens_per_cpu_s
            / config.local_server.threads
        )
    else:
        work = size.to_send * LATENCY_S + size.usage.completion / TOKENS_PER_S
        bounds["llm.concurrency"] = work / (config.concurrency or 1)
    name = max(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name

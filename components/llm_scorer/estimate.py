"""What a plan will ask for and cost, told before the first call."""

import dataclasses
from collections.abc import Iterable, Mapping

from components.catalog import Item
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.config import LlmConfig
from components.llm_scorer.exchange import Context, Usage
from components.llm_scorer.ledger import cost_nano_usd
from components.llm_scorer.strategies import Strategy

CHARACTERS_PER_TOKEN = 4.0
"""Of English prompts, instructions and JSON schema included."""


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


def estimate(
    contexts: Iterable[Context],
    catalog: Mapping[str, Item],
    strategy: Strategy,
    config: LlmConfig,
    cache: ResponseCache,
) -> Estimate:
    """Sizes a plan without a call. A request that recurs is counted once, as the cache will answer its
    repeats.
    """
    seen: set[bytes] = set()
    number = pairs = probes = cached = prompt = completion = prior = 0
    price = config.price
    for context in contexts:
        number += 1
        pairs += len(context.candidates)
        probes += bool(context.chosen_item_id)
        for request in strategy.requests(context, catalog):
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in seen:
                continue
            seen.add(digest)
            known = cache.get(key)
            if known is None:
                prompt += round(request.prompt_bytes / CHARACTERS_PER_TOKEN)
                completion += request.expected_tokens
            else:
                cached += 1
                if price is not None:
                    prior += cost_nano_usd(Usage.of(known[0]), price)
    usage = Usage(prompt=prompt, completion=completion)
    return Estimate(
        contexts=number,
        pairs=pairs,
        probes=probes,
        calls=len(seen),
        cached=cached,
        usage=usage,
        cost_nano_usd=None if price is None else cost_nano_usd(usage, price),
        prior_nano_usd=prior,
    )

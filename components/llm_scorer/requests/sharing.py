"""Which runs spend one budget and keep to one limit: see RunLedger.share."""

import hashlib
from collections.abc import Iterable

from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.requests.ledger import BUDGET, LIMITS, RunLedger


def share_run(run: RunLedger, config: LlmConfig, prompt_version: str, parts: Iterable[str]) -> None:
    """Shares the budget with runs of the same plan, and the limits with all runs that query the same model.

    Args:
        run: driven by the calling process.
        config: resolved.
        prompt_version: of the requests.
        parts: what tells the parts of the plan, in any order.
    """
    model = f"{config.base_url}\n{config.model}"
    digests = (hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest() for part in parts)
    plan = sum(int.from_bytes(digest) for digest in digests) % 2**256
    run.share(BUDGET, hashlib.sha256(f"{model}\n{prompt_version}\n{plan}".encode()).hexdigest())
    run.share(LIMITS, hashlib.sha256(model.encode()).hexdigest())

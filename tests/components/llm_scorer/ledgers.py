"""A complete ledger, of which a test names only what it is about."""

from typing import Any

from sllmr.components.llm_scorer.results import ScoringLedger


def make_ledger(**values: Any) -> ScoringLedger:
    """The ledger of ten contexts with sixty scored pairs, with these fields instead."""
    tokens = {"prompt": 1000, "cached_prompt": 0, "completion": 100}
    return ScoringLedger.model_validate(
        {
            "model": "m",
            "strategy": "listwise",
            "prompt_version": "listwise.v1-0",
            "contexts": 10,
            "calibration_contexts": 5,
            "requested": 60,
            "kept": 0,
            "cached": 0,
            "scored": 60,
            "failed": 0,
            "failures": {},
            "unknown_items_in_responses": 0,
            "responses_without_score": 0,
            "responses_wrapped": 0,
            "requests_queried_again": 0,
            "responses_without_usage": 0,
            "scored_by_role": {"popular": 60},
            "requests": {
                "planned": 10,
                "sent": 10,
                "cached": 0,
                "failed": 0,
                "refused_by_budget": 0,
                "retried": 0,
            },
            "throttled": {"times": 0, "fewest_in_flight": 16, "concurrency": 16},
            "corrupt_cache_entries": 0,
            "tokens": tokens,
            "estimated_tokens": tokens,
            "cost_usd": 0.01,
            "estimated_cost_usd": 0.01,
            "cost_of_lost_responses_at_most_usd": 0.0,
            "cost_of_cached_responses_usd": 0.0,
            "latency_s": {"p50": 0.5},
            "oldest_score": None,
            "median_score": None,
            "newest_score": None,
            "contexts_outdated": 0,
            "audit": None,
            "seconds": 12.5,
            **values,
        }
    )

"""The ledger of a scoring job: what was written, held to what was planned."""

import dataclasses
import json
import logging
import os
import statistics
import time
from collections import Counter

from sllmr.components import scores
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimate
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.plan import read_plan
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.llm_scorer.quality.audit import OrderAudit, is_audited
from sllmr.components.llm_scorer.quality.canary import canary_report
from sllmr.components.llm_scorer.requests import congestion, ledger
from sllmr.components.llm_scorer.requests.ledger import latency_percentiles_s
from sllmr.components.llm_scorer.results import RequestCounts, ScoringLedger, ThrottlingCounts, TokenCounts
from sllmr.models import artifact_files

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """What a rescored table takes over from the earlier one; `pairs` are scored ones and failed ones."""

    contexts: int = 0
    calibration_contexts: int = 0
    pairs: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)


def account(
    workspace: Workspace,
    plan: str,
    expected: Estimate,
    totals: dict[str, int],
    config: LlmConfig,
    prompt_version: str,
    kept: Kept,
) -> ScoringLedger:
    """Counts what was written, and checks that it adds up to what was planned and kept."""
    roles: Counter[str] = Counter()
    times: list[int] = []
    audit = OrderAudit()
    for record in scores.read_scores(workspace.output_directory):
        roles.update(record.roles)
        times.append(record.scored_at)
        audit.add(record)
    queried_twice = [c.context_id for c in read_plan(plan) if is_audited(c.context_id, config)]
    scored = roles.total()
    failures = count_failures(workspace.output_directory)
    unknown_items = failures.pop(messages.UNKNOWN_ITEM, 0)
    failed = failures.total()
    if scored + failed != expected.pairs + kept.pairs:
        raise LlmError(
            f"every pair must end scored or failed: {expected.pairs} were planned and {kept.pairs} kept, {scored} "
            f"scored and {failed} failed; this is a defect, please report it"
        )
    cost = totals.get(ledger.NANO_USD, 0) / 1e9
    return ScoringLedger(
        model=config.model,
        strategy=config.chosen_strategy,
        prompt_version=prompt_version,
        contexts=expected.contexts + kept.contexts,
        calibration_contexts=expected.calibration_contexts + kept.calibration_contexts,
        requested=expected.pairs + kept.pairs,
        kept=kept.pairs,
        cached=totals.get(ledger.PAIRS_CACHED, 0),
        scored=scored,
        failed=failed,
        failures=dict(sorted(failures.items())),
        unknown_items_in_responses=unknown_items,
        responses_without_score=totals.get(ledger.RESPONSES_WITHOUT_SCORE, 0),
        responses_wrapped=totals.get(ledger.RESPONSES_WRAPPED, 0),
        requests_queried_again=expected.failed_earlier,
        responses_without_usage=totals.get(ledger.RESPONSES_WITHOUT_USAGE, 0),
        scored_by_role=dict(sorted(roles.items())),
        requests=RequestCounts(
            planned=expected.requests,
            sent=totals.get(ledger.REQUESTS_SENT, 0),
            cached=totals.get(ledger.REQUESTS_CACHED, 0),
            failed=totals.get(ledger.REQUESTS_FAILED, 0),
            refused_by_budget=totals.get(ledger.REQUESTS_REFUSED_BY_BUDGET, 0),
            retried=totals.get(ledger.REQUESTS_RETRIED, 0),
        ),
        throttled=ThrottlingCounts(
            times=totals.get(congestion.THROTTLED, 0),
            fewest_in_flight=congestion.fewest_in_flight(totals, config.concurrency or 1),
            concurrency=config.concurrency,
        ),
        corrupt_cache_entries=totals.get(ledger.CORRUPT_ENTRIES, 0),
        tokens=TokenCounts(
            prompt=totals.get(ledger.PROMPT_TOKENS, 0),
            cached_prompt=totals.get(ledger.CACHED_PROMPT_TOKENS, 0),
            completion=totals.get(ledger.COMPLETION_TOKENS, 0),
        ),
        estimated_tokens=TokenCounts(**dataclasses.asdict(expected.usage)),
        cost_usd=None if config.price is None else cost,
        estimated_cost_usd=None if expected.cost_nano_usd is None else expected.cost_nano_usd / 1e9,
        # Reserved for requests that ended without a response but are possibly billed.
        cost_of_lost_responses_at_most_usd=totals.get(ledger.RESERVED_NANO_USD, 0) / 1e9,
        cost_of_cached_responses_usd=None if config.price is None else expected.prior_nano_usd / 1e9,
        latency_s=latency_percentiles_s(totals),
        oldest_score=min(times, default=None),
        median_score=statistics.median_low(times) if times else None,
        newest_score=max(times, default=None),
        contexts_outdated=sum(context.is_outdated for context in read_plan(plan)),
        audit=audit.report(queried_twice),
        canary=canary_report(totals),
        seconds=0,
    )


def close(
    workspace: Workspace, book: ScoringLedger, config: LlmConfig, started: float, kept: Kept | None = None
) -> ScoringLedger:
    """Writes the ledger with the job's wall time, then checks this run's failures against llm.max_failure_rate.

    Args:
        workspace: ledger.json is written to its output directory.
        book: the ledger of the whole table.
        config: resolved.
        started: time.monotonic() at the job's start.
        kept: what was taken over from an earlier table; its failures do not count.

    Raises:
        LlmError: nothing was scored within the budget, or too many pairs failed.
    """
    book = book.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    with artifact_files.open(os.path.join(workspace.output_directory, scores.LEDGER_FILE), "w") as file:
        file.write(book.model_dump_json(indent=2))
    _check_failures(book, config, kept or Kept())
    return book


def count_failures(directory: str) -> Counter[str]:
    """Failed pairs of a table by reason."""
    failures: Counter[str] = Counter()
    for path in artifact_files.matches(os.path.join(directory, scores.FAILURES_PREFIX + "-*.jsonl.gz")):
        with artifact_files.gzip(path, "rt") as file:
            failures.update(json.loads(line)["reason"] for line in file)
    return failures


def _check_failures(book: ScoringLedger, config: LlmConfig, kept: Kept) -> None:
    """Raises LlmError if nothing was scored within the budget, or too many pairs of this run failed.

    Pairs that the budget left out are not failures.
    """
    failures = Counter(book.failures) - kept.failures
    requested = book.requested - kept.pairs
    unasked = failures[messages.BUDGET_EXHAUSTED]
    if unasked:
        go_on = (
            f"{unasked} of {requested} pairs were not asked about, as {_caps(config)} would have been passed; raise "
            "it and run again, what was paid for is cached"
        )
        if not book.scored:
            raise LlmError(go_on)
        _logger.warning("%s", go_on)
    asked = requested - unasked
    failed = failures.total() - unasked
    if asked and failed / asked > config.max_failure_rate:
        raise LlmError(
            f"the fraction of failed pairs must be at most max_failure_rate={config.max_failure_rate:g}, got "
            f"{failed} of {asked} ({failed / asked:.1%}): {dict(failures)}; mend the cause or raise "
            "llm.max_failure_rate, and run again (responses are cached)"
        )


def _caps(config: LlmConfig) -> str:
    caps = {"max_cost_usd": config.budget.max_cost_usd, "max_tokens": config.budget.max_tokens}
    return " or ".join(f"llm.budget.{name}={cap}" for name, cap in caps.items() if cap is not None)

"""The typed results of scoring: the ledger, its parts, and the report of a batch job."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmr.components.scores import LEDGER_FILE
from sllmr.models import artifact_files


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FlipReport(_Result):
    """Pairs of candidates that two sets of scores both order strictly.

    Attributes:
        pairs: number of such pairs.
        flipped: those whose order differs between the two.
        flip_rate: flipped / pairs; None without pairs.
        interval_95: Wilson interval of flip_rate; None without pairs.
    """

    pairs: int
    flipped: int
    flip_rate: float | None
    interval_95: tuple[float, float] | None


class OrderAuditReport(FlipReport):
    """How often reversing the order of the candidates in a prompt flips the order of a pair.

    Attributes:
        contexts: contexts with scores in both orders.
        contexts_without_two_responses: contexts that were to be queried in both orders and have no second score.
        by_score_gap: the flips by class of the gap between the two scores of a pair.
    """

    contexts: int
    contexts_without_two_responses: int
    by_score_gap: dict[str, FlipReport]


class CanaryReport(_Result):
    """How often the LLM followed an instruction in an item's title; see quality/canary.py.

    Attributes:
        contexts: contexts with a further request that has a planted item.
        responses_with_scores: of them, contexts whose response scored the planted item and a candidate.
        followed: of these, responses that followed the instruction.
        zeroed_the_others: of these, responses that scored every candidate near 0, too.
        rate: followed / responses_with_scores; None without responses.
        interval_95: Wilson interval of rate; None without responses.
    """

    contexts: int
    responses_with_scores: int
    followed: int
    zeroed_the_others: int
    rate: float | None
    interval_95: tuple[float, float] | None


class DriftReport(FlipReport):
    """How far scores moved between an earlier table and today, over contexts that were scored again.

    Attributes:
        contexts: contexts compared.
        shared_candidates: candidates that both tables score.
        mean_absolute_change: of a score in [0, 1]; None without shared candidates.
        mean_kendall_tau: mean over contexts of tau-b of the two orders; None if it is defined for no context.
        contexts_with_tau: contexts for which tau-b is defined.
    """

    contexts: int
    shared_candidates: int
    mean_absolute_change: float | None
    mean_kendall_tau: float | None
    contexts_with_tau: int


class RescoringReport(_Result):
    """What became of the contexts of an earlier table.

    Attributes:
        kept: contexts whose scores were taken over.
        scored_again: contexts scored again, by reason.
        new: contexts of users outside the table.
        gone: contexts of the table that no longer exist.
        drift: of the scores of the contexts scored again.
    """

    kept: int
    scored_again: dict[str, int]
    new: int
    gone: int
    drift: DriftReport


class ReplayTableReport(_Result):
    """How much of a table of scores by user (llm.replay_table) is used; rows = used + the sum of dropped.

    Attributes:
        rows: rows of the table.
        used: rows that became scores.
        dropped: rows left out, by reason.
        users: users of the table.
        users_in_train: of them, users with a positive train row.
        users_used: of them, users with a context.
        scaled_from: lowest and highest score before scaling to [0, 1]; None if the scores were taken as they are.
    """

    rows: int
    used: int
    dropped: dict[str, int]
    users: int
    users_in_train: int
    users_used: int
    scaled_from: tuple[float, float] | None


class RequestCounts(_Result):
    """Requests of a scoring job.

    Attributes:
        planned: distinct requests of the plan.
        sent: requests with a response from the endpoint.
        cached: requests answered by the response cache.
        failed: requests without a response.
        refused_by_budget: requests not sent because of llm.budget.
        retried: retries, which are no requests of their own.
    """

    planned: int
    sent: int
    cached: int
    failed: int
    refused_by_budget: int
    retried: int


class ThrottlingCounts(_Result):
    """How often the endpoint throttled, the fewest requests in flight at once, and the configured concurrency."""

    times: int
    fewest_in_flight: int
    concurrency: int | None


class TokenCounts(_Result):
    """Tokens of prompts, the part of them that the endpoint had cached, and tokens of completions."""

    prompt: int
    cached_prompt: int
    completion: int


class ScoringLedger(_Result):
    """Tokens, money, and counts of a scoring job. Every planned pair is scored or failed: requested = scored + failed.

    Attributes:
        schema_version: of this layout.
        model: name of the model.
        strategy: how it was queried.
        prompt_version: of the strategy's prompt.
        contexts: scoring contexts of the table.
        calibration_contexts: of them, contexts with the target item.
        requested: pairs of a context and a candidate.
        kept: of them, pairs taken over from an earlier table.
        cached: of them, pairs whose responses all came from the cache.
        scored: of them, pairs with a score.
        failed: of them, pairs without a score.
        failures: failed pairs by reason.
        unknown_items_in_responses: items in responses that the prompt did not name.
        responses_without_score: responses of this run without any usable score.
        responses_wrapped: responses with the expected JSON inside other text or a list of text parts.
        requests_queried_again: requests sent again because no earlier response gave a score.
        responses_without_usage: responses without token counts; the ledger books the most that they can have cost.
        scored_by_role: scored pairs by the role of the candidate.
        requests: counts of requests.
        throttled: how the endpoint throttled.
        corrupt_cache_entries: entries of the response cache that could not be read.
        tokens: of this run.
        estimated_tokens: of this run, as estimated before the first request.
        cost_usd: of this run; None without a known price.
        estimated_cost_usd: as estimated before the first request; None without a known price.
        cost_of_lost_responses_at_most_usd: reserved for requests that ended without a response and are possibly billed.
        cost_of_cached_responses_usd: what the earlier responses cost; None without a known price.
        latency_s: percentiles of a request's time in seconds, as `p50`; empty if none was sent.
        oldest_score: Unix seconds; None without scores.
        median_score: Unix seconds; None without scores.
        newest_score: Unix seconds; None without scores.
        contexts_outdated: contexts with scores of an earlier table whose user has new interactions.
        audit: effect of the order of candidates; None without llm.audit.
        canary: effect of an instruction in a title; None if no such request was planned.
        rescore: what became of the earlier table; None unless the job rescored one.
        replay_table: use of a table of scores by user; None unless the job replayed one.
        seconds: wall time of the job.
    """

    schema_version: Literal[1] = 1
    model: str
    strategy: str
    prompt_version: str
    contexts: int
    calibration_contexts: int
    requested: int
    kept: int
    cached: int
    scored: int
    failed: int
    failures: dict[str, int]
    unknown_items_in_responses: int
    responses_without_score: int
    responses_wrapped: int
    requests_queried_again: int
    responses_without_usage: int
    scored_by_role: dict[str, int]
    requests: RequestCounts
    throttled: ThrottlingCounts
    corrupt_cache_entries: int
    tokens: TokenCounts
    estimated_tokens: TokenCounts
    cost_usd: float | None
    estimated_cost_usd: float | None
    cost_of_lost_responses_at_most_usd: float
    cost_of_cached_responses_usd: float | None
    latency_s: dict[str, float]
    oldest_score: int | None
    median_score: int | None
    newest_score: int | None
    contexts_outdated: int
    audit: OrderAuditReport | None
    canary: CanaryReport | None = None
    rescore: RescoringReport | None = None
    replay_table: ReplayTableReport | None = None
    seconds: float


class ScoreAge(_Result):
    """Age of the scores of a table in days, and the fraction of contexts whose user has new interactions."""

    oldest_days: float
    median_days: float
    newest_days: float
    outdated_fraction: float


class BatchReport(_Result):
    """Requests, tokens, and money of `sllmr batch`, over all batches of the plan.

    Attributes:
        schema_version: of this layout.
        model: name of the model.
        strategy: how it is queried.
        requests: distinct requests of the plan.
        answered: requests with a response that gives a score.
        answered_by_batch: of them, those whose response came by the Batch API.
        in_flight: requests in batches that have not ended.
        batches_in_flight: ids of these batches at the endpoint.
        left: requests that are not retried, by reason.
        not_submitted: requests that wait for room in llm.budget.
        refusal: the endpoint's reason for refusing a file; empty if it refused none.
        tokens: of the responses that came by batch.
        cost_usd: of these and of lost batches; None without a known price.
        cost_of_live_responses_usd: of the other cached responses; None without a known price.
        reserved_usd: reserved for requests in flight; None without a known price.
    """

    schema_version: Literal[1] = 1
    model: str
    strategy: str | None
    requests: int
    answered: int
    answered_by_batch: int
    in_flight: int
    batches_in_flight: tuple[str, ...]
    left: dict[str, int]
    not_submitted: int
    refusal: str
    tokens: TokenCounts
    cost_usd: float | None
    cost_of_live_responses_usd: float | None
    reserved_usd: float | None


def read_ledger(directory: str | os.PathLike[str]) -> ScoringLedger:
    """Reads the ledger of a score table."""
    with artifact_files.open(os.path.join(directory, LEDGER_FILE)) as file:
        return ScoringLedger.model_validate_json(file.read())

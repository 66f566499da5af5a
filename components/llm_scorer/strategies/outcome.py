"""The requests of a context, and what the responses come to: its line of the score table, and a line for each thing
that failed.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sllmr.components.catalog import Item
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.messages import BUDGET_EXHAUSTED, Answer, CandidateResult, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.quality.audit import is_audited
from sllmr.components.llm_scorer.quality.canary import has_canary
from sllmr.components.llm_scorer.strategies import ContentDigest, create_strategy
from sllmr.components.llm_scorer.strategies.listwise import Listwise
from sllmr.components.llm_scorer.strategies.response_json import is_wrapped
from sllmr.components.scores import ScoreRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the responses to one context's requests come to.

    Attributes:
        record: the candidates that have a score, a serialized components.scores.ScoreRecord; None if none has one.
        failures: a JSON line for each candidate that failed and each item of a response that the prompt did not name.
        failed_pairs: candidates without a score, not counting those that the budget left out.
        wrapped_responses: responses whose JSON stood in a fence, in prose or in another wrapping.
        canary: what the context's request with a planted item adds to the counters of quality/canary.py.
    """

    record: bytes | None
    failures: tuple[str, ...]
    failed_pairs: int = 0
    wrapped_responses: int = 0
    canary: Counter[str] = dataclasses.field(default_factory=Counter)


class ContextScorer:
    """Makes the requests of a context and reads their answers; each candidate is either scored or a failure.

    Args:
        catalog: all items.
        config: resolved.
    """

    def __init__(self, catalog: Mapping[str, Item], config: LlmConfig):
        self._catalog = catalog
        self._config = config
        self._strategy = create_strategy(config)
        self._digest = ContentDigest(config)

    def requests(self, context: Context) -> tuple[LlmRequest, ...]:
        """The requests of a context; sent in order, those with a common prefix can use a server's prefix cache."""
        return self._strategy.requests(context, self._catalog)

    def read(self, context: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> Outcome:
        """One answer for each of the context's requests, in order."""
        results = self._strategy.results(context, answers)
        failures = tuple(_failure_line(context, result) for result in results if result.reason)
        record = self._record(context, requests, answers, results)
        failed = sum(r.reason not in ("", BUDGET_EXHAUSTED) for r in results[: len(context.candidates)])
        listwise = self._strategy if isinstance(self._strategy, Listwise) else None
        return Outcome(
            record=None if record is None else record.serialize(),
            failures=failures,
            failed_pairs=failed,
            wrapped_responses=sum(is_wrapped(answer.response) for answer in answers) if listwise else 0,
            canary=listwise.canary(context, answers) if listwise else Counter(),
        )

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        """Why a response gives no candidate a score; None where it does."""
        return self._strategy.failure(request, response)

    def _record(
        self,
        context: Context,
        requests: Sequence[LlmRequest],
        answers: Sequence[Answer],
        results: list[CandidateResult],
    ) -> ScoreRecord | None:
        scored = [
            (candidate, result.llm_score, result.raw_score)
            for candidate, result in zip(context.candidates, results[: len(context.candidates)], strict=True)
            if result.llm_score is not None and result.raw_score is not None
        ]
        if not scored:
            return None
        orders = [result.order_llm_scores for result in results if result.order_llm_scores is not None]
        times = [answer.answered_at for answer in answers if answer.response is not None]
        times += [result.scored_at for result in results if result.scored_at is not None]
        asked = dataclasses.replace(context, candidates=tuple(candidate for candidate, _, _ in scored))
        has_more = is_audited(context.context_id, self._config) or has_canary(context.context_id, self._config)
        at_hand = asked == context and not has_more
        return ScoreRecord(
            context_id=context.context_id,
            history_item_ids=context.history_item_ids,
            history_length=context.history_length,
            item_ids=tuple(candidate.item_id for candidate, _, _ in scored),
            llm_scores=tuple(llm_score for _, llm_score, _ in scored),
            raw_scores=tuple(raw_score for _, _, raw_score in scored),
            roles=tuple(candidate.role for candidate, _, _ in scored),
            first_llm_scores=tuple(first for first, _ in orders),
            second_llm_scores=tuple(second for _, second in orders),
            target_item_id=context.target_item_id,
            user_id=context.user_id,
            user_key=context.user_key,
            user_positives=context.user_positives,
            last_position=context.last_position,
            model=self._config.model,
            strategy=str(self._config.strategy),
            prompt_version=self._strategy.prompt_version,
            fingerprint=self._digest.of(asked, self._catalog, requests if at_hand else None),
            # The oldest answer that the scores rest on: a table is as stale as its stalest part.
            scored_at=min(times),
        )


def _failure_line(context: Context, result: CandidateResult) -> str:
    return json.dumps(
        {
            "context_id": context.context_id,
            "item_id": result.item_id,
            "reason": result.reason,
            "detail": result.detail,
        },
        ensure_ascii=False,
    )

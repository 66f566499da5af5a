"""Beam's RunInference over groups of requests: cache, budget and accounting around each single call."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from apache_beam.ml.inference.base import RemoteModelHandler

from components.llm_scorer import exchange, ledger
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.client import CallFailed, LlmClient
from components.llm_scorer.config import LlmConfig, LlmError, Price
from components.llm_scorer.estimate import expected_usage
from components.llm_scorer.exchange import Answer, AnsweredGroup, LlmRequest, RequestGroup, Usage
from components.llm_scorer.ledger import RunLedger, cost_nano_usd
from components.llm_scorer.rate_limit import RateLimiter

BATCHES_AHEAD = 16
"""Groups in a batch for each call that may be under way: a batch waits for its slowest group, and long
batches make that wait small beside the work."""

HOPELESS_AFTER = 20
"""An endpoint that failed so many calls in a run and answered none ends the job."""

_FRAME_TOKENS = 64
"""Tokens that a chat template puts around the messages, at most."""


def _never(error: Exception) -> bool:
    return False


class LlmHandler(RemoteModelHandler[RequestGroup, AnsweredGroup, "Session"]):
    """Answers groups of requests, up to `concurrency` side by side in a worker, each in order in one thread.

    What fails for a request becomes its Answer: the dead letters of this job are candidates with a reason,
    finer than the batches that `with_exception_handling` would put aside. Only LlmError, the end of the job,
    is raised. Repeats are the client's, call by call, as it alone sees Retry-After; so the handler asks Beam
    for none.
    """

    def __init__(self, config: LlmConfig, base_url: str, cache_directory: str, run_id: str):
        """
        Args:
            config: resolved.
            base_url: of the endpoint.
            cache_directory: of the response cache and the run's counters.
            run_id: names the run's counters.
        """
        super().__init__(namespace="LlmHandler", num_retries=0, retry_filter=_never)
        self._config = config
        self._base_url = base_url
        self._cache_directory = cache_directory
        self._run_id = run_id

    def create_client(self) -> "Session":
        return Session(self._config, self._base_url, self._cache_directory, self._run_id)

    def request(
        self, batch: Sequence[RequestGroup], model: "Session", inference_args: dict[str, Any] | None = None
    ) -> list[AnsweredGroup]:
        return model.answer_all(batch)

    def batch_elements_kwargs(self) -> dict[str, int]:
        size = BATCHES_AHEAD * (self._config.concurrency or 1)
        return {"min_batch_size": size, "max_batch_size": size}

    def share_model_across_processes(self) -> bool:
        return False


class Session:
    """A worker's client, cache and counters."""

    def __init__(self, config: LlmConfig, base_url: str, cache_directory: str, run_id: str):
        self._config = config
        self._client = LlmClient(config, base_url)
        self._cache = ResponseCache(cache_directory)
        self._ledger = RunLedger(cache_directory, run_id)
        self._limiter = RateLimiter(config.limits, self._ledger)
        self._key_locks = _KeyLocks()
        cap = config.budget.max_cost_usd
        self._cap_nano_usd = None if cap is None else round(cap * 1e9)

    def answer_all(self, groups: Sequence[RequestGroup]) -> list[AnsweredGroup]:
        """Answers groups side by side.

        Raises:
            LlmError: the job must end; what was answered is in the cache.
        """
        # What needs no call is counted at once: a transaction for each of millions of pairs would take longest.
        free = sum(len(group.context.candidates) for group in groups if not group.requests)
        self._ledger.add({ledger.PAIRS_DONE: free})
        threads = min(self._config.concurrency or 1, len(groups))
        stop = threading.Event()
        with ThreadPoolExecutor(threads, thread_name_prefix="llm") as pool:
            futures = [pool.submit(self._answer_or_stop, group, stop) for group in groups if group.requests]
            try:
                errors = [error for error in (future.exception() for future in futures) if error is not None]
            except BaseException:
                # Ctrl-C: the pool waits for its threads, which would else go on to the end of the batch.
                stop.set()
                raise
        # The threads after the first error only report that they were stopped.
        if errors:
            raise min(errors, key=lambda error: isinstance(error, RunEnded))
        answered = iter(future.result() for future in futures)
        return [next(answered) if g.requests else AnsweredGroup(context=g.context, answers=()) for g in groups]

    def _answer_or_stop(self, group: RequestGroup, stop: threading.Event) -> AnsweredGroup:
        try:
            return self._answer(group, stop)
        except BaseException:
            stop.set()
            raise
        finally:
            self._cache.close()
            self._ledger.close()

    def _answer(self, group: RequestGroup, stop: threading.Event) -> AnsweredGroup:
        answers = []
        counts: Counter[str] = Counter()
        for request in group.requests:
            if stop.is_set():
                raise RunEnded
            answers.append(self._ask(request, counts, stop))
        pairs = len(group.context.candidates)
        counts[ledger.PAIRS_DONE] = pairs
        if all(answer.cached for answer in answers):
            counts[ledger.PAIRS_CACHED] = pairs
        counts[ledger.CORRUPT_ENTRIES] = self._cache.take_corrupt()
        self._ledger.add(counts)
        return AnsweredGroup(context=group.context, answers=tuple(answers))

    def _ask(self, request: LlmRequest, counts: Counter[str], stop: threading.Event) -> Answer:
        # A request that recurs between groups may be under way already: then this one waits for its answer.
        with self._key_locks.hold(request.key):
            return self._look_up_or_send(request, counts, stop)

    def _look_up_or_send(self, request: LlmRequest, counts: Counter[str], stop: threading.Event) -> Answer:
        key = request.key
        known = self._cache.get(key)
        if known is not None:
            response, answered_at = known
            counts[ledger.CALLS_CACHED] += 1
            return Answer(response=response, answered_at=answered_at, cached=True)
        if self._ledger.is_ended():
            raise RunEnded
        reserved = self._reserve(request)
        if reserved is None:
            counts[ledger.CALLS_REFUSED_BY_BUDGET] += 1
            return Answer(
                reason=exchange.BUDGET_EXHAUSTED,
                detail="the next call could pass max_cost_usd; raise llm.budget.max_cost_usd and run again",
            )
        expected = expected_usage(request)
        if not self._limiter.acquire(expected.prompt + expected.completion, stop):
            raise RunEnded
        started = time.monotonic()
        try:
            response = self._client.send(request)
        except CallFailed as failure:
            self._ledger.add({ledger.RESERVED_NANO_USD: -reserved, ledger.CALLS_FAILED: 1})
            self._check_hope(failure)
            return Answer(reason=failure.reason, detail=failure.detail)
        answered_at = self._cache.put(key, response)
        usage = Usage.of(response)
        price = self._config.price
        self._limiter.correct(expected.prompt + expected.completion, usage.prompt + usage.completion)
        self._ledger.add(
            {
                ledger.RESERVED_NANO_USD: -reserved,
                ledger.NANO_USD: 0 if price is None else cost_nano_usd(usage, price),
                ledger.CALLS_SENT: 1,
                ledger.PROMPT_TOKENS: usage.prompt,
                ledger.CACHED_PROMPT_TOKENS: usage.cached_prompt,
                ledger.COMPLETION_TOKENS: usage.completion,
                ledger.latency_counter(time.monotonic() - started): 1,
            }
        )
        return Answer(response=response, answered_at=answered_at)

    def _reserve(self, request: LlmRequest) -> int | None:
        """Money set aside for the dearest outcome of a call; None where the cap leaves no room for it."""
        price: Price | None = self._config.price
        if self._cap_nano_usd is None or price is None:
            return 0
        dearest = Usage(prompt=request.prompt_bytes + _FRAME_TOKENS, completion=request.max_tokens)
        amount = cost_nano_usd(dearest, price)
        return amount if self._ledger.reserve(amount, self._cap_nano_usd) else None

    def _check_hope(self, failure: CallFailed) -> None:
        totals = self._ledger.totals()
        if totals.get(ledger.CALLS_FAILED, 0) >= HOPELESS_AFTER and not totals.get(ledger.CALLS_SENT):
            raise LlmError(
                f"the first {HOPELESS_AFTER} calls to the LLM all failed, the last with {failure.reason}: "
                f"{failure.detail}; check llm.base_url and the endpoint, then run again"
            )


class _KeyLocks:
    """A lock for each key that is in use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._held.pop(key)
                if users > 1:
                    self._held[key] = lock, users - 1


class RunEnded(Exception):
    """Nothing more is to be sent: another thread or process has met the end of the job."""

"""Beam's RunInference over contexts: cache, budget and accounting around each single call.

RunInference passes on the outcomes of a batch once all of them are there, and only then takes the next batch. To keep
calls in flight meanwhile, AskAhead, the step before it, begins to score contexts; the handler collects their outcomes.
"""

import contextlib
import gc
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import apache_beam as beam
from apache_beam.ml.inference.base import RemoteModelHandler
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from sllmr.components.catalog import read_catalog
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import TITLE_LIKELIHOOD, YES_NO, LlmConfig
from sllmr.components.llm_scorer.endpoint.client import CallFailed, LlmClient
from sllmr.components.llm_scorer.endpoint.retry import LONGEST_RETRY_AFTER_S, back_off_s
from sllmr.components.llm_scorer.endpoint.tokens import dearest_usage, expected_usage
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import Answer, Context, Failure, LlmRequest, Usage
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.congestion import CongestionWindow
from sllmr.components.llm_scorer.requests.in_flight import ClaimLost, InFlight
from sllmr.components.llm_scorer.requests.ledger import RunEnded, RunLedger, billed_usage, budget_caps, cost_nano_usd
from sllmr.components.llm_scorer.requests.rate_limit import RateLimiter
from sllmr.components.llm_scorer.requests.refused import RefusedInRun
from sllmr.components.llm_scorer.requests.waiting import Waiter
from sllmr.components.llm_scorer.store.interface import CacheError, Held
from sllmr.components.llm_scorer.strategies.outcome import ContextScorer, Outcome

Read = TypeVar("Read", covariant=True)

CONTEXTS_AHEAD = 128
"""Contexts begun and not yet passed on, for each call that may be in flight: they keep calls in flight while a batch
waits for its slowest context."""

CONTEXTS_A_BATCH = 8
"""Contexts in a batch of RunInference for each call that may be in flight; without an endpoint, CONTEXTS_AHEAD."""

CALLS_A_SPARE_THREAD = 8
"""One spare thread for this many calls that may be in flight: see _threads."""

HOPELESS_AFTER = 20
"""The job ends after this many requests without a score and none with one, or this many failed calls in a row."""

_ROOM_POLL_S = 0.25
_SETTLING_S = 60.0

_FIRST_RAW = "first_raw_response"


class Scorer(Protocol[Read]):
    """Sends the requests of a context and reads their responses, both in the calling thread."""

    def requests(self, context: Context) -> Sequence[LlmRequest]:
        """The requests of a context, sent in order."""
        ...

    def read(self, context: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> Read:
        """Reads the answers: one for each request, in order."""
        ...

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        """Why a response gives no candidate a score; None where it does."""
        ...


def _never(error: Exception) -> bool:
    return False


class LlmHandler(RemoteModelHandler[Context, Outcome, "Session[Outcome]"]):
    """Queries the LLM about contexts, with up to `concurrency` calls in flight in a worker.

    One thread works on one context: it makes the requests, sends them in order, and reads the answers, while the calls
    of other threads are in flight. A failed request becomes an Answer with a reason: the dead letters of this job are
    single candidates, not the whole batches that `with_exception_handling` would put aside. Only LlmError is raised,
    which ends the job. The Session retries each call, so the handler requests no retries from Beam.
    """

    def __init__(
        self,
        config: LlmConfig,
        base_url: str,
        store: str,
        run_id: str,
        catalog_directory: str,
        *,
        not_before: int = 0,
        retry_failed: bool = True,
    ):
        """
        Args:
            config: resolved.
            base_url: of the endpoint.
            store: of the response cache and the run's counters.
            run_id: names the run's counters.
            catalog_directory: of the items.
            not_before: responses from before this Unix second do not count.
            retry_failed: whether a request whose response of an earlier run gave no score is queried again.
        """
        super().__init__(namespace="LlmHandler", num_retries=0, retry_filter=_never)
        self._config = config
        self._base_url = base_url
        self._store = store
        self._run_id = run_id
        self._catalog_directory = catalog_directory
        self._not_before = not_before
        self._retry_failed = retry_failed
        self._shared = Shared()

    @property
    def contexts_ahead(self) -> int:
        """How many contexts are begun before the first one's outcome is waited for."""
        return 0 if self._config.asks_nobody else CONTEXTS_AHEAD * (self._config.concurrency or 1)

    def create_client(self) -> "Session[Outcome]":
        """The process's session: the same one for AskAhead and RunInference."""
        return self._shared.acquire(self._new_session)

    def _new_session(self) -> "Session[Outcome]":
        session = Session(
            self._config,
            self._base_url,
            self._store,
            self._run_id,
            ContextScorer(read_catalog(self._catalog_directory), self._config),
            not_before=self._not_before,
            retry_failed=self._retry_failed,
        )
        # Calls leave cyclic garbage. Without the freeze, each full collection would walk all that Beam, TensorFlow and
        # the client have imported by now, while all threads stand still.
        gc.collect()
        gc.freeze()
        return session

    def request(
        self, batch: Sequence[Context], model: "Session[Outcome]", inference_args: dict[str, Any] | None = None
    ) -> list[Outcome]:
        return model.score_all(batch)

    def batch_elements_kwargs(self) -> dict[str, int]:
        per_call = CONTEXTS_AHEAD if self._config.asks_nobody else CONTEXTS_A_BATCH
        size = per_call * (self._config.concurrency or 1)
        return {"min_batch_size": size, "max_batch_size": size}

    def get_num_bytes(self, batch: Sequence[Context]) -> int:
        """The size for Beam's metrics: of the ids alone, as the requests never exist all at once. By default Beam would
        pickle every batch to measure it, while no call is in flight.
        """
        return sum(len(item_id) for context in batch for item_id in context.history_item_ids)

    def share_model_across_processes(self) -> bool:
        return False


class AskAhead(beam.DoFn):
    """Context -> the same, in order, passed on once it and `contexts_ahead` contexts after it are begun.

    Nothing is lost on a runner that puts RunInference into another process: that process sends requests itself, waits
    for the calls that are in flight here, and finds the other responses in the cache.
    """

    def __init__(self, handler: LlmHandler):
        self._handler = handler

    def setup(self) -> None:
        self._session = self._handler.create_client()

    def start_bundle(self) -> None:
        self._begun: deque[Context] = deque()

    def process(self, context: Context) -> Iterator[Context]:
        self._session.begin(context)
        self._begun.append(context)
        if len(self._begun) > self._handler.contexts_ahead:
            yield self._begun.popleft()

    def finish_bundle(self):
        while self._begun:
            yield GlobalWindows.windowed_value(self._begun.popleft())


class Session(Generic[Read]):
    """A worker's client, cache and counters.

    Args:
        config, base_url, store, run_id, not_before, retry_failed: as of LlmHandler.
        scorer: makes the requests and reads the responses.
    """

    def __init__(
        self,
        config: LlmConfig,
        base_url: str,
        store: str,
        run_id: str,
        scorer: Scorer[Read],
        *,
        not_before: int = 0,
        retry_failed: bool = True,
    ):
        self._config = config
        self._retry_failed = retry_failed
        self._scorer = scorer
        self._ledger = RunLedger(store, run_id)
        self._client = LlmClient(config, base_url, RefusedInRun(self._ledger))
        self._cache = ResponseCache(store, not_before=not_before)
        self._waiter = Waiter(self._ledger)
        self._limiter = RateLimiter(config.limits, self._ledger, self._waiter)
        self._window = CongestionWindow(self._ledger, config.concurrency or 1, self._waiter)
        self._in_flight = InFlight(store, self._waiter)
        self._caps = budget_caps(config)
        # Each thread has connections of its own, to cache, ledger and endpoint, as long as it lives.
        self._threads = ThreadPoolExecutor(_threads(config), thread_name_prefix="llm")
        self._lock = threading.Lock()
        self._begun: dict[str, Future[tuple[Read, Counter[str]]]] = {}
        self._stop = threading.Event()

    def begin(self, context: Context) -> None:
        """Begins to score a context, in a thread; score_all collects the outcome."""
        if not self._config.asks_nobody:
            with self._lock:
                self._begun[context.context_id] = self._submit(context)

    def score_all(self, contexts: Sequence[Context]) -> list[Read]:
        """Returns what was read for each context; scores those side by side that were not begun yet.

        Raises:
            LlmError: the job must end; responses so far are in the cache, and all that was begun is stopped.
        """
        if self._config.asks_nobody:
            # Counted at once: a transaction for each of millions of pairs would take longest.
            self._ledger.add({ledger.PAIRS_DONE: sum(len(context.candidates) for context in contexts)})
            return [self._scorer.read(context, (), ()) for context in contexts]
        with self._lock:
            futures = [
                self._begun.pop(context.context_id) if context.context_id in self._begun else self._submit(context)
                for context in contexts
            ]
        try:
            outcomes = [future.result() for future in futures]
        except BaseException as error:
            # Also Ctrl-C: the threads would else go on to the end of what was begun.
            errors = self._stop_all(futures)
            if isinstance(error, RunEnded) and errors:
                # A RunEnded only says that the thread of another context stopped this one.
                raise errors[0] from None
            raise
        self._ledger.add(sum((counts for _, counts in outcomes), Counter()))
        return [read for read, _ in outcomes]

    def _submit(self, context: Context) -> "Future[tuple[Read, Counter[str]]]":
        return self._threads.submit(self._score_or_stop, context, self._stop)

    def _stop_all(self, futures: Sequence[Future]) -> list[BaseException]:
        """Stops all that was begun, but nothing that is begun later. Returns the errors other than RunEnded."""
        with self._lock:
            self._stop.set()
            self._stop = threading.Event()
            ended = [*futures, *self._begun.values()]
            self._begun.clear()
        errors = (future.exception() for future in ended)
        return [error for error in errors if error is not None and not isinstance(error, RunEnded)]

    def _score_or_stop(self, context: Context, stop: threading.Event) -> tuple[Read, Counter[str]]:
        """Scores a context; returns what was read, and what to count when it is collected. Errors stop the others."""
        if stop.is_set():
            raise RunEnded
        try:
            requests = self._scorer.requests(context)
            answers, counts = self._answers(context, requests, stop)
            read = self._scorer.read(context, requests, answers)
            counts[ledger.RESPONSES_WRAPPED] = getattr(read, "wrapped_responses", 0)
            counts.update(getattr(read, "canary", {}))
            failed_pairs = getattr(read, "failed_pairs", 0)
            if failed_pairs and not all(answer.cached for answer in answers):
                self._ledger.add({ledger.PAIRS_FAILED: failed_pairs})
                self._check_rate()
            return read, counts
        except LlmError as error:
            # The other workers stop, and the driver tells the reason, whichever error reaches it first.
            if not isinstance(error, CacheError):
                self._ledger.end(str(error))
            stop.set()
            raise
        except BaseException:
            stop.set()
            raise

    def _answers(
        self, context: Context, requests: Sequence[LlmRequest], stop: threading.Event
    ) -> tuple[list[Answer], Counter[str]]:
        answers: list[Answer] = []
        counts: Counter[str] = Counter()
        pairs, counted = len(context.candidates), 0
        for request in requests:
            if stop.is_set():
                raise RunEnded
            answers.append(self._ask(request, counts, stop))
            done = pairs * len(answers) // len(requests)
            # At once, for the line of progress. What the cache answers comes fast and is counted with the rest.
            if not answers[-1].cached and done > counted:
                self._ledger.add({ledger.PAIRS_DONE: done - counted})
                counted = done
        counts[ledger.PAIRS_DONE] = pairs - counted
        if all(answer.cached for answer in answers):
            counts[ledger.PAIRS_CACHED] = pairs
        counts[ledger.CORRUPT_ENTRIES] = self._cache.take_corrupt()
        return answers, counts

    def _ask(self, request: LlmRequest, counts: Counter[str], stop: threading.Event) -> Answer:
        answer = self._look_up(request)
        if answer is None:
            # A request that recurs between contexts may be in flight already: then the handler waits for its response.
            answer = self._claim_and_send(request, stop)
        counts[ledger.REQUESTS_CACHED] += answer.cached
        counts[ledger.REQUESTS_REFUSED_BY_BUDGET] += answer.reason == messages.BUDGET_EXHAUSTED
        return answer

    def _claim_and_send(self, request: LlmRequest, stop: threading.Event) -> Answer:
        while True:
            with self._in_flight.claim(request.key, stop) as claim, contextlib.suppress(ClaimLost):
                return self._look_up(request) or self._send(request, claim, stop)

    def _look_up(self, request: LlmRequest) -> Answer | None:
        """The cached response in place of a call; None if there is none, or if it has no score and is to be retried."""
        known = self._cache.get(request.key)
        if known is None:
            return None
        response, answered_at = known
        is_ours = messages.run_of_failure(response) == self._ledger.run_id
        if self._retry_failed and not is_ours and self._scorer.failure(request, response) is not None:
            return None
        return Answer(response=response, answered_at=answered_at, cached=True)

    def _send(self, request: LlmRequest, claim: Held, stop: threading.Event) -> Answer:
        """Sends a request, with retries, until it has a response or failed for good."""
        repeats = 0
        while True:
            self._waiter.check(stop)
            reserved = self._reserve(request, stop)
            if reserved is None:
                return Answer(
                    reason=messages.BUDGET_EXHAUSTED,
                    detail="the next call could pass max_cost_usd or max_tokens; raise it in llm.budget and run again",
                )
            try:
                return self._send_once(request, reserved, claim, stop)
            except CallFailed as failure:
                if Usage.of(failure.response or {}) != Usage():
                    self._cache.add_receipts([(request.key, failure.response or {})], int(time.time()))
                    usage = billed_usage(request, failure.response or {})
                    self._ledger.settle(request.key, reserved, self._bill(usage))
                elif failure.may_be_billed:
                    # The amount stays reserved, so that the cap holds.
                    self._ledger.leave_unsettled(reserved)
                else:
                    self._ledger.settle(request.key, reserved, {})
                if not failure.passing or repeats == self._config.max_retries:
                    self._ledger.add({ledger.REQUESTS_FAILED: 1, ledger.FAILED_IN_A_ROW: 1})
                    self._check_hope(f"{failure.reason}: {failure.detail}", failure.reason, failure.response)
                    return Answer(reason=failure.reason, detail=failure.detail)
                repeats += 1
                self._ledger.add({ledger.REQUESTS_RETRIED: 1})
                asked_for_s = failure.retry_after_s
                pause_s = back_off_s(repeats, request.key) if asked_for_s is None else asked_for_s
                self._waiter.until(self._waiter.clock() + pause_s, stop)

    def _send_once(self, request: LlmRequest, reserved: dict[str, int], claim: Held, stop: threading.Event) -> Answer:
        expected_tokens = 0
        if self._config.limits.tokens_per_minute is not None:
            expected = expected_usage(request, self._config)
            expected_tokens = expected.prompt + expected.completion
        try:
            response, seconds = self._response(request, expected_tokens, claim, stop)
        except (ClaimLost, RunEnded, LlmError):
            # Not sent, or refused as a whole: nothing was billed.
            self._ledger.settle(request.key, reserved, {})
            raise
        failure_in_form = self._scorer.failure(request, response)
        if failure_in_form is not None:
            response = messages.mark_as_failed(response, self._ledger.run_id)
        answered_at = self._cache.put(request.key, response)
        told, usage = Usage.of(response), billed_usage(request, response)
        self._limiter.correct(expected_tokens, usage.prompt + usage.completion)
        self._ledger.settle(
            request.key,
            reserved,
            {
                **self._bill(usage),
                ledger.REQUESTS_SENT: 1,
                ledger.RESPONSES_WITHOUT_USAGE: usage != told,
                ledger.RESPONSES_WITHOUT_SCORE: failure_in_form is not None,
                ledger.latency_counter(seconds): 1,
                **self._window.growth(),
            },
        )
        if self._ledger.signal(ledger.FAILED_IN_A_ROW):
            self._ledger.change((ledger.FAILED_IN_A_ROW,), lambda _: {ledger.FAILED_IN_A_ROW: 0})
        if failure_in_form is not None:
            words = f"{failure_in_form.reason}: {failure_in_form.detail}"
            self._check_hope(words, failure_in_form.reason, response)
        return Answer(response=response, answered_at=answered_at)

    def _response(
        self, request: LlmRequest, expected_tokens: int, claim: Held, stop: threading.Event
    ) -> tuple[dict[str, Any], float]:
        """Sends a request once when there is room for it; returns the response and the seconds that it took."""
        with self._window.place(stop):
            self._limiter.acquire(expected_tokens, stop)
            self._window.wait_while_held(stop)
            self._waiter.check(stop)
            if not claim.is_held():
                raise ClaimLost
            sent_at, started = self._waiter.clock(), time.monotonic()
            try:
                response = self._client.send(request)
            except CallFailed as failure:
                if failure.pushed_back:
                    self._window.push_back(sent_at, failure.retry_after_s)
                raise
            return response, time.monotonic() - started

    def _bill(self, usage: Usage) -> dict[str, int]:
        """What a billed response changes in the ledger."""
        price = self._config.price
        return {
            ledger.NANO_USD: 0 if price is None else cost_nano_usd(usage, price),
            ledger.PROMPT_TOKENS: usage.prompt,
            ledger.CACHED_PROMPT_TOKENS: usage.cached_prompt,
            ledger.COMPLETION_TOKENS: usage.completion,
        }

    def _reserve(self, request: LlmRequest, stop: threading.Event) -> dict[str, int] | None:
        """Reserves the most that a request can cost; None if a cap leaves no room for it. It reserves even without a
        cap: if the run is killed, later runs count what may be on the bill. A model on this machine bills nothing.

        Waits while requests in flight hold the missing amount, as most of them cost less than is reserved for them.
        """
        if not self._caps and self._config.uses_local_server:
            return {}
        dearest = dearest_usage(request)
        amounts = {ledger.RESERVED_TOKENS: dearest.prompt + dearest.completion}
        if self._config.price is not None:
            amounts[ledger.RESERVED_NANO_USD] = cost_nano_usd(dearest, self._config.price)
        # A worker that died with requests in flight never settles them.
        longest_s = self._config.timeout_s + LONGEST_RETRY_AFTER_S + _SETTLING_S
        in_flight, changed_at = None, time.monotonic()
        while (found := self._ledger.reserve(request.key, amounts, self._caps)) == ledger.NO_ROOM_YET:
            now = time.monotonic()
            latest = self._ledger.in_flight()
            if latest != in_flight:
                in_flight, changed_at = latest, now
            elif now - changed_at > longest_s:
                return None
            self._waiter.pause(_ROOM_POLL_S, stop)
        return amounts if found == ledger.ROOM else None

    def _check_hope(self, words: str, reason: str, response: dict[str, Any] | None) -> None:
        """Ends the job if none of the first HOPELESS_AFTER requests got a score, or as many calls in a row failed."""
        if response is not None:
            self._ledger.note_first(_FIRST_RAW, self._client.redacted(_raw(response)))
        totals = self._ledger.totals()
        failed, without = totals.get(ledger.REQUESTS_FAILED, 0), totals.get(ledger.RESPONSES_WITHOUT_SCORE, 0)
        scored = totals.get(ledger.REQUESTS_SENT, 0) - without
        if not scored and failed + without >= HOPELESS_AFTER:
            if without:
                what = f"none of the first {failed + without} requests to the LLM got a score"
            else:
                what = f"the first {HOPELESS_AFTER} calls to the LLM all failed"
            raise LlmError(f"{what}, the last with {words}{self._first_raw()}; {_fix(reason)}, then run again")
        if totals.get(ledger.FAILED_IN_A_ROW, 0) >= HOPELESS_AFTER:
            raise LlmError(
                f"{HOPELESS_AFTER} calls in a row failed after the LLM had answered, the last with {words}"
                f"{self._first_raw()}; {_fix(reason)}, then run again (answers are cached)"
            )

    def _check_rate(self) -> None:
        """Ends the job where the rate of failed pairs can no longer come under the limit."""
        totals = self._ledger.totals()
        planned, failed = totals.get(ledger.PAIRS_PLANNED, 0), totals.get(ledger.PAIRS_FAILED, 0)
        ended = totals.get(ledger.REQUESTS_SENT, 0) + totals.get(ledger.REQUESTS_FAILED, 0)
        limit = self._config.max_failure_rate
        if planned and ended >= HOPELESS_AFTER and failed > limit * planned:
            raise LlmError(
                f"the fraction of failed pairs can no longer come under max_failure_rate={limit:g}: {failed} of "
                f"{planned} have failed already{self._first_raw()}; mend the cause or raise llm.max_failure_rate, and "
                "run again (answers are cached)"
            )

    def _first_raw(self) -> str:
        raw = self._ledger.note(_FIRST_RAW)
        return f"; the first response without a score: {raw}" if raw else ""


def _raw(response: dict[str, Any]) -> str:
    """What the model said, as the endpoint wrote it."""
    choices = response.get("choices")
    return json.dumps(choices[0] if isinstance(choices, list) and choices else response, ensure_ascii=False)


def _fix(reason: str) -> str:
    fixes = {
        messages.TRUNCATED: "raise llm.max_output_tokens (a reasoning model spends tokens before it answers)",
        messages.REFUSED: "set another llm.model or llm.prompt_file",
        messages.INVALID_JSON: "set an llm.model and endpoint that answer in the JSON that is asked for",
        messages.MISSING_ITEM: "set a stronger llm.model, or fewer llm.candidates.per_context",
        messages.NO_VERDICT: "set another llm.model or llm.strategy",
    }
    return fixes.get(reason, "check llm.base_url and the endpoint")


def _threads(config: LlmConfig) -> int:
    """One thread for each call that may be in flight, and spare ones that make requests and read answers meanwhile, so
    that no call waits for that. There are no spare ones if a context's requests share a prefix: on a server with one
    slot per call, one more context would evict the prefix of another.
    """
    calls = config.concurrency or 1
    return calls if config.strategy in (YES_NO, TITLE_LIKELIHOOD) else calls + calls // CALLS_A_SPARE_THREAD

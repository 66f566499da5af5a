"""Beam's RunInference over contexts: cache, budget and accounting around each single call.

RunInference hands on the outcomes of a batch when all of them are there, and takes up the next batch after that. So
that calls are under way meanwhile, AskAhead, the step before it, begins to ask; the handler takes up what was begun.
"""

import gc
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

from components.catalog import read_catalog
from components.llm_scorer import exchange, ledger
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.client import CallFailed, LlmClient
from components.llm_scorer.config import TITLE_LIKELIHOOD, YES_NO, LlmConfig, LlmError
from components.llm_scorer.congestion import CongestionWindow
from components.llm_scorer.exchange import Answer, Context, LlmRequest, Usage
from components.llm_scorer.in_flight import InFlight
from components.llm_scorer.ledger import RunEnded, RunLedger, budget_caps, cost_nano_usd
from components.llm_scorer.outcome import ContextScorer, Outcome
from components.llm_scorer.rate_limit import RateLimiter
from components.llm_scorer.retry import back_off_s
from components.llm_scorer.tokens import dearest_usage, expected_usage
from components.llm_scorer.waiting import Waiter

Read = TypeVar("Read", covariant=True)

CONTEXTS_AHEAD = 128
"""Contexts begun and not yet handed on for each call that may be under way: while a batch waits for its slowest
context, there are so many others to ask about."""

CONTEXTS_A_BATCH = 8
"""Contexts in a batch of RunInference for each call that may be under way; where nobody is asked, CONTEXTS_AHEAD."""

CALLS_A_SPARE_THREAD = 8
"""For each so many calls that may be under way, a thread more than these take up: see _threads."""

HOPELESS_AFTER = 20
"""An endpoint that failed so many calls in a run and answered none ends the job."""


class Scorer(Protocol[Read]):
    """What is asked about a context, and what becomes of its answers; both in the thread that asks."""

    def requests(self, context: Context) -> Sequence[LlmRequest]:
        """Sent in order."""
        ...

    def read(self, context: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> Read:
        """One answer for each request, in order."""
        ...


def _never(error: Exception) -> bool:
    return False


class LlmHandler(RemoteModelHandler[Context, Outcome, "Session[Outcome]"]):
    """Asks about contexts, up to `concurrency` side by side in a worker, each in one thread, which makes its requests,
    sends them in order, and reads the answers: so the others' calls go on meanwhile.

    What fails for a request becomes its Answer: the dead letters of this job are candidates with a reason,
    finer than the batches that `with_exception_handling` would put aside. Only LlmError, the end of the job,
    is raised. Repeats are the Session's, call by call; so the handler asks Beam for none.
    """

    def __init__(
        self,
        config: LlmConfig,
        base_url: str,
        cache_directory: str,
        run_id: str,
        catalog_directory: str,
        *,
        not_before: int = 0,
    ):
        """
        Args:
            config: resolved.
            base_url: of the endpoint.
            cache_directory: of the response cache and the run's counters.
            run_id: names the run's counters.
            catalog_directory: of the items.
            not_before: answers from before this Unix second are asked for again.
        """
        super().__init__(namespace="LlmHandler", num_retries=0, retry_filter=_never)
        self._config = config
        self._base_url = base_url
        self._cache_directory = cache_directory
        self._run_id = run_id
        self._catalog_directory = catalog_directory
        self._not_before = not_before
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
            self._cache_directory,
            self._run_id,
            ContextScorer(read_catalog(self._catalog_directory), self._config),
            not_before=self._not_before,
        )
        # Calls make garbage in cycles, and each full collection would walk all that Beam, TensorFlow and the client
        # have imported by now, with all threads at a stand.
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
        """For Beam's metrics, which would else pickle every batch to measure it, while no call is under way: the ids
        alone, as the requests are never there all at once.
        """
        return sum(len(item_id) for context in batch for item_id in context.history_item_ids)

    def share_model_across_processes(self) -> bool:
        return False


class AskAhead(beam.DoFn):
    """Context -> the same, in order, once asking about it and a good many after it has begun.

    On a runner that puts RunInference into another process nothing is lost: it then asks by itself, waits for the calls
    that are under way here, and finds the answers of the others in the cache.
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
        config, base_url, cache_directory, run_id, not_before: as of LlmHandler.
        scorer: what is asked, and what the answers come to.
    """

    def __init__(
        self,
        config: LlmConfig,
        base_url: str,
        cache_directory: str,
        run_id: str,
        scorer: Scorer[Read],
        *,
        not_before: int = 0,
    ):
        self._config = config
        self._scorer = scorer
        self._client = LlmClient(config, base_url)
        self._cache = ResponseCache(cache_directory, not_before=not_before)
        self._ledger = RunLedger(cache_directory, run_id)
        self._waiter = Waiter(self._ledger)
        self._limiter = RateLimiter(config.limits, self._ledger, self._waiter)
        self._window = CongestionWindow(self._ledger, config.concurrency or 1, self._waiter)
        self._in_flight = InFlight(cache_directory, self._waiter)
        self._caps = budget_caps(config)
        # Each thread has connections of its own, to cache, ledger and endpoint, as long as it lives.
        self._threads = ThreadPoolExecutor(_threads(config), thread_name_prefix="llm")
        self._lock = threading.Lock()
        self._begun: dict[str, Future[tuple[Read, Counter[str]]]] = {}
        self._stop = threading.Event()

    def begin(self, context: Context) -> None:
        """Begins to ask about a context, in a thread; score_all takes it up."""
        if not self._config.asks_nobody:
            with self._lock:
                self._begun[context.context_id] = self._submit(context)

    def score_all(self, contexts: Sequence[Context]) -> list[Read]:
        """Asks about contexts side by side, where that was not begun yet, and reads the answers on each.

        Raises:
            LlmError: the job must end; what was answered is in the cache, and nothing that was begun goes on.
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
                # It only says that another context's thread has stopped the others.
                raise errors[0] from None
            raise
        self._ledger.add(sum((counts for _, counts in outcomes), Counter()))
        return [read for read, _ in outcomes]

    def _submit(self, context: Context) -> "Future[tuple[Read, Counter[str]]]":
        return self._threads.submit(self._score_or_stop, context, self._stop)

    def _stop_all(self, futures: Sequence[Future]) -> list[BaseException]:
        """Ends what was begun; what begins after that is another try. Returns the errors that are no RunEnded."""
        with self._lock:
            self._stop.set()
            self._stop = threading.Event()
            ended = [*futures, *self._begun.values()]
            self._begun.clear()
        errors = (future.exception() for future in ended)
        return [error for error in errors if error is not None and not isinstance(error, RunEnded)]

    def _score_or_stop(self, context: Context, stop: threading.Event) -> tuple[Read, Counter[str]]:
        """What became of the answers, and what to count once somebody takes it up."""
        if stop.is_set():
            raise RunEnded
        try:
            requests = self._scorer.requests(context)
            answers, counts = self._answers(context, requests, stop)
            return self._scorer.read(context, requests, answers), counts
        except BaseException:
            stop.set()
            raise

    def _answers(
        self, context: Context, requests: Sequence[LlmRequest], stop: threading.Event
    ) -> tuple[list[Answer], Counter[str]]:
        answers = []
        counts: Counter[str] = Counter()
        for request in requests:
            if stop.is_set():
                raise RunEnded
            answers.append(self._ask(request, counts, stop))
        pairs = len(context.candidates)
        counts[ledger.PAIRS_DONE] = pairs
        if all(answer.cached for answer in answers):
            counts[ledger.PAIRS_CACHED] = pairs
        counts[ledger.CORRUPT_ENTRIES] = self._cache.take_corrupt()
        return answers, counts

    def _ask(self, request: LlmRequest, counts: Counter[str], stop: threading.Event) -> Answer:
        answer = self._look_up(request)
        if answer is None:
            # A request that recurs between contexts may be under way already: then its answer is waited for.
            with self._in_flight.claim(request.key, stop):
                answer = self._look_up(request) or self._send(request, stop)
        counts[ledger.CALLS_CACHED] += answer.cached
        counts[ledger.CALLS_REFUSED_BY_BUDGET] += answer.reason == exchange.BUDGET_EXHAUSTED
        return answer

    def _look_up(self, request: LlmRequest) -> Answer | None:
        known = self._cache.get(request.key)
        return None if known is None else Answer(response=known[0], answered_at=known[1], cached=True)

    def _send(self, request: LlmRequest, stop: threading.Event) -> Answer:
        """Sends until there is an answer, or no hope of one."""
        repeats = 0
        while True:
            if self._ledger.is_ended():
                raise RunEnded
            reserved = self._reserve(request)
            if reserved is None:
                return Answer(
                    reason=exchange.BUDGET_EXHAUSTED,
                    detail="the next call could pass max_cost_usd or max_tokens; raise it in llm.budget and run again",
                )
            try:
                return self._send_once(request, reserved, stop)
            except CallFailed as failure:
                # Money for what may have been billed without an answer stays set aside, so that the cap holds.
                if not failure.may_be_billed:
                    self._ledger.add(_negative(reserved))
                if not failure.passing or repeats == self._config.max_retries:
                    self._ledger.add({ledger.CALLS_FAILED: 1})
                    self._check_hope(failure)
                    return Answer(reason=failure.reason, detail=failure.detail)
                repeats += 1
                self._ledger.add({ledger.CALLS_REPEATED: 1})
                asked_for_s = failure.retry_after_s
                pause_s = back_off_s(repeats, request.key) if asked_for_s is None else asked_for_s
                self._waiter.until(self._waiter.clock() + pause_s, stop)

    def _send_once(self, request: LlmRequest, reserved: dict[str, int], stop: threading.Event) -> Answer:
        expected = expected_usage(request, self._config)
        with self._window.place(stop):
            self._limiter.acquire(expected.prompt + expected.completion, stop)
            self._window.wait_while_held(stop)
            sent_at, started = self._waiter.clock(), time.monotonic()
            try:
                response = self._client.send(request)
            except CallFailed as failure:
                if failure.pushed_back:
                    self._window.push_back(sent_at, failure.retry_after_s)
                raise
            seconds = time.monotonic() - started
        answered_at = self._cache.put(request.key, response)
        usage = Usage.of(response)
        price = self._config.price
        self._limiter.correct(expected.prompt + expected.completion, usage.prompt + usage.completion)
        self._ledger.add(
            {
                **_negative(reserved),
                ledger.NANO_USD: 0 if price is None else cost_nano_usd(usage, price),
                ledger.CALLS_SENT: 1,
                ledger.PROMPT_TOKENS: usage.prompt,
                ledger.CACHED_PROMPT_TOKENS: usage.cached_prompt,
                ledger.COMPLETION_TOKENS: usage.completion,
                ledger.latency_counter(seconds): 1,
                **self._window.growth(),
            }
        )
        return Answer(response=response, answered_at=answered_at)

    def _reserve(self, request: LlmRequest) -> dict[str, int] | None:
        """What is set aside for the dearest outcome of a call; None where a cap leaves no room for it."""
        if not self._caps:
            return {}
        dearest = dearest_usage(request)
        amounts = {ledger.RESERVED_TOKENS: dearest.prompt + dearest.completion}
        if self._config.price is not None:
            amounts[ledger.RESERVED_NANO_USD] = cost_nano_usd(dearest, self._config.price)
        return amounts if self._ledger.reserve(amounts, self._caps) else None

    def _check_hope(self, failure: CallFailed) -> None:
        totals = self._ledger.totals()
        if totals.get(ledger.CALLS_FAILED, 0) >= HOPELESS_AFTER and not totals.get(ledger.CALLS_SENT):
            raise LlmError(
                f"the first {HOPELESS_AFTER} calls to the LLM all failed, the last with {failure.reason}: "
                f"{failure.detail}; check llm.base_url and the endpoint, then run again"
            )


def _threads(config: LlmConfig) -> int:
    """As many as calls may be under way, and some that make requests and read answers meanwhile, so that no call waits
    for that. None of these where a context's requests share their prefix: on a server with so many slots, one context
    more drives another's prefix out.
    """
    calls = config.concurrency or 1
    return calls if config.strategy in (YES_NO, TITLE_LIKELIHOOD) else calls + calls // CALLS_A_SPARE_THREAD


def _negative(reserved: dict[str, int]) -> dict[str, int]:
    return {name: -amount for name, amount in reserved.items()}

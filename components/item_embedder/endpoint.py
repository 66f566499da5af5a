"""Texts -> vectors by /v1/embeddings, through the scorer's client, response cache, budget and ledger.

One request for each distinct text. Every response is kept in the store (a database if `store` names one, else files in
cache_dir) before it is used, so a stopped run resumes where it was, and a catalog that has grown sends only its new
texts.
"""

import base64
import binascii
import contextlib
import dataclasses
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sllmr.components.catalog import Item
from sllmr.components.item_embedder.config import EmbeddingEndpoint, in_terms_of_the_endpoint
from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.config import LlmConfig
from sllmr.components.llm_scorer.cost.estimate import Estimate, Estimator
from sllmr.components.llm_scorer.endpoint.local_model import fetch_local_model
from sllmr.components.llm_scorer.endpoint.local_server import local_server
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.jobs.import_local import import_local
from sllmr.components.llm_scorer.messages import Answer, Candidate, Context, Failure, LlmRequest
from sllmr.components.llm_scorer.needs import check_needs
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import ResponseCache
from sllmr.components.llm_scorer.requests.handler import Session
from sllmr.components.llm_scorer.requests.ledger import RunLedger
from sllmr.components.llm_scorer.requests.progress import ProgressReporter
from sllmr.components.llm_scorer.requests.sharing import share_run
from sllmr.models import artifact_files
from sllmr.models.item_vectors import unit

TEXT_VERSION = "item_text.v1"
"""Version of item_text, part of a request's address in the response cache."""

_TEXTS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """The vectors that came back, and what they cost.

    Attributes:
        vectors: float32 [dimensions] of length 1, by text; without the texts that got none.
        sent: requests that were sent.
        cached: requests whose responses were in the cache.
        corrupt_cache_entries: responses in the cache that were damaged, and were requested again.
        cost_usd: of this run; None where the price is unknown.
    """

    vectors: dict[str, np.ndarray]
    sent: int
    cached: int
    corrupt_cache_entries: int
    cost_usd: float | None


class EndpointEmbedder:
    """Embeds texts by an endpoint, and keeps its responses.

    Args:
        config: the endpoint.
        cache_directory: also holds the bundled LLM's weights, if that is the model.
        store_url: of the database that keeps the responses; None: cache_directory does.
        work_directory: for a local server's log.
    """

    def __init__(self, config: EmbeddingEndpoint, cache_directory: str, store_url: str | None, work_directory: str):
        self._config: LlmConfig = config.client_config()
        self._max_failure_rate = config.max_failure_rate
        self._cache_directory = cache_directory
        self._store = store_url or cache_directory
        self._work_directory = work_directory

    def estimate(self, texts: Sequence[str]) -> Estimate:
        """Estimates what `embed` would send and cost, without sending a request."""
        import_local(self._cache_directory, self._store)
        cache = ResponseCache(self._store)
        try:
            requests = _TextRequests(self._config, texts)
            estimator = Estimator({}, requests, self._config, cache)
            for context in requests.contexts:
                estimator.add(context)
            return estimator.total()
        finally:
            cache.close()

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Requests the vectors of the texts that are not in the cache.

        Raises:
            LlmError: the endpoint refuses, the budget runs out, or too many texts got no vector; responses that were
                paid for stay in the cache.
        """
        try:
            return self._embed(texts)
        except LlmError as error:
            raise LlmError(in_terms_of_the_endpoint(str(error))) from None

    def _embed(self, texts: Sequence[str]) -> Embedded:
        requests = _TextRequests(self._config, texts)
        answers: list[np.ndarray | Answer] = []
        with contextlib.closing(RunLedger(self._store, uuid.uuid4().hex)) as run:
            with run.driven(), contextlib.ExitStack() as endpoint:
                share_run(run, self._config, TEXT_VERSION, texts)
                expected = self.estimate(texts)
                run.spent_before(expected.prior_nano_usd, expected.prior_tokens)
                base_url = endpoint.enter_context(self._endpoint(expected))
                session: Session[np.ndarray | Answer] = Session(
                    self._config, base_url, self._store, run.run_id, requests
                )
                with ProgressReporter(
                    run,
                    pairs=len(requests.contexts),
                    to_send=expected.to_send,
                    concurrency=self._config.concurrency or 1,
                ):
                    for first in range(0, len(requests.contexts), _TEXTS_AT_ONCE):
                        answers += session.score_all(requests.contexts[first : first + _TEXTS_AT_ONCE])
            totals = run.totals()
            run.forget()
        self._check(answers)
        return Embedded(
            vectors={
                text: answer for text, answer in zip(texts, answers, strict=True) if isinstance(answer, np.ndarray)
            },
            sent=totals.get(ledger.REQUESTS_SENT, 0),
            cached=totals.get(ledger.REQUESTS_CACHED, 0),
            corrupt_cache_entries=totals.get(ledger.CORRUPT_ENTRIES, 0),
            cost_usd=None if self._config.price is None else totals.get(ledger.NANO_USD, 0) / 1e9,
        )

    @contextlib.contextmanager
    def _endpoint(self, expected: Estimate) -> Iterator[str]:
        if not expected.to_send or self._config.base_url is not None:
            if expected.to_send:
                check_needs(self._config)
            yield self._config.base_url or "http://127.0.0.1:9/v1"
            return
        check_needs(self._config)
        settings = self._config.local_server
        with (
            artifact_files.local_folder(self._work_directory) as folder,
            local_server(
                fetch_local_model(os.path.join(self._cache_directory, "models"), self._config.model),
                threads=settings.threads,
                slots=self._config.slots,
                context=settings.context,
                embeddings=True,
                log_path=os.path.join(folder, "local_server.log"),
            ) as base_url,
        ):
            yield base_url

    def _check(self, answers: Sequence[np.ndarray | Answer]) -> None:
        failures = Counter(answer.reason for answer in answers if isinstance(answer, Answer))
        if unasked := failures[messages.BUDGET_EXHAUSTED]:
            raise LlmError(
                f"{unasked} of {len(answers)} texts were not embedded, as llm.budget would have been passed; raise "
                "max_cost_usd or max_tokens there and run again, what was paid for is cached"
            )
        if failures.total() > self._max_failure_rate * len(answers):
            raise LlmError(
                f"at most llm.max_failure_rate={self._max_failure_rate:g} of the texts may get no vector, got "
                f"{failures.total()} of {len(answers)}: {dict(failures)}; mend the cause, and run again (responses are "
                "cached)"
            )


class _TextRequests:
    """Texts as the scorer's Session and Estimator take them: a context for each, with one request."""

    prompt_version = TEXT_VERSION

    def __init__(self, config: LlmConfig, texts: Sequence[str]):
        self._config = config
        self._text = {f"text-{number}": text for number, text in enumerate(texts)}
        self.contexts = [
            Context(
                context_id=name,
                history_item_ids=(),
                history_length=0,
                candidates=(Candidate(item_id=name, role=""),),
            )
            for name in self._text
        ]

    def requests(self, context: Context, catalog: Mapping[str, Item] | None = None) -> tuple[LlmRequest, ...]:
        return (
            LlmRequest(
                kind=messages.EMBEDDING,
                model=self._config.model,
                endpoint=self._config.endpoint_identity,
                prompt_version=TEXT_VERSION,
                body={"input": self._text[context.context_id], **self._config.extra_body},
                max_tokens=0,
                expected_tokens=0,
            ),
        )

    def read(self, context: Context, requests: Sequence[LlmRequest], answers: Sequence[Answer]) -> np.ndarray | Answer:
        return _vector_or_answer(answers[0])

    def results(self, context: Context, answers: Sequence[Answer]) -> list[Any]:
        """A text has a vector and no score."""
        raise NotImplementedError

    def failure(self, request: LlmRequest, response: dict[str, Any]) -> Failure | None:
        vector = _vector_or_answer(Answer(response=response))
        return Failure(reason=vector.reason, detail=vector.detail) if isinstance(vector, Answer) else None


def _vector_or_answer(answer: Answer) -> np.ndarray | Answer:
    """float32 [dimensions] of unit length; or the failed answer."""
    if answer.response is None:
        return answer
    try:
        vector = np.frombuffer(base64.b64decode(answer.response["vector"], validate=True), "<f4")
    except (KeyError, TypeError, ValueError, binascii.Error):
        return Answer(reason=messages.INVALID_RESPONSE, detail="the stored response holds no vector")
    if not vector.size or not np.isfinite(vector).all() or not vector.any():
        return Answer(reason=messages.NO_VECTOR, detail="the endpoint's vector is zero or not finite")
    return unit(vector)

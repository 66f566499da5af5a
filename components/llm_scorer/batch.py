"""Asking by the Batch API: the answers come within a day, at a discount, and fill the same cache as the live path's.

A run surveys the plan, hands over what is neither answered nor under way, waits, and fetches, until nothing is left to
hand over. It can be killed at any moment and run again (batch_state.py). What no batch answered is left to the live
path, at its price.
"""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from components.llm_scorer import exchange, ledger
from components.llm_scorer.batch_state import (
    ANSWERED,
    CREATED,
    CREATING,
    DROPPED,
    REFUSED,
    UNDER_WAY,
    Batch,
    BatchState,
)
from components.llm_scorer.cache import ResponseCache
from components.llm_scorer.client import CallFailed, LlmClient, UnknownToEndpoint, read_response
from components.llm_scorer.config import EMBEDDING, LISTWISE, TITLE_LIKELIHOOD, YES_NO, LlmConfig, LlmError
from components.llm_scorer.exchange import LlmRequest, Usage
from components.llm_scorer.ledger import budget_caps, cost_nano_usd, cost_of_answer_nano_usd
from components.llm_scorer.retry import back_off_s
from components.llm_scorer.tokens import dearest_usage, expected_usage

NAME_IN_METADATA = "sllmr_plan"
"""Under it a batch carries our name for it at the endpoint."""

NOT_ANSWERED = "not_answered"
"""The batch expired, was cancelled or ended without a word about the request."""

_TRIED_AGAIN = (NOT_ANSWERED, exchange.RATE_LIMITED, exchange.SERVER_ERROR, exchange.TIMEOUT)
_ENDED = ("completed", "expired", "cancelled")
_LOCK_FILE = "batches.lock"
_FILES = "batches"
_STORED_AT_ONCE = 1000
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


def check_batch(config: LlmConfig) -> None:
    """Raises LlmError where the Batch API cannot ask what is configured.

    Args:
        config: resolved.
    """
    if config.asks_nobody:
        raise LlmError("the scores come from a file, so there is nothing to ask by the Batch API; run sllmr score")
    if config.strategy == TITLE_LIKELIHOOD:
        raise LlmError(
            f"strategy {TITLE_LIKELIHOOD} forces given tokens, which the Batch API cannot; set llm.strategy to "
            f"{LISTWISE}, {YES_NO} or {EMBEDDING}, or run sllmr score"
        )
    if config.uses_local_server:
        raise LlmError(
            "the bundled model runs on this machine, where there is no Batch API; set llm.model (and llm.base_url), or "
            "run sllmr score"
        )


@dataclasses.dataclass
class _Survey:
    """Where the plan's requests stand.

    Attributes:
        answered: by the cache; by_batch of them came by batch, with `usage`.
        batches: names of those under way that hold requests of the plan.
        under_way: requests in them that are not answered yet.
        left: by the reason why they are not tried again.
        waiting: the first 16 bytes of the keys of all others.
        live_nano_usd, batch_nano_usd: what answers did cost, unusable ones included.
        committed: money and tokens spent, and set aside for what is under way, as ledger.reserve names them.
    """

    requests: int = 0
    answered: int = 0
    by_batch: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)
    batches: set[str] = dataclasses.field(default_factory=set)
    under_way: int = 0
    left: Counter[str] = dataclasses.field(default_factory=Counter)
    waiting: set[bytes] = dataclasses.field(default_factory=set)
    live_nano_usd: int = 0
    batch_nano_usd: int = 0
    committed: Counter[str] = dataclasses.field(default_factory=Counter)


class BatchJob:
    """Brings the answers to a plan's requests into the cache by the Batch API."""

    def __init__(self, config: LlmConfig, cache_directory: str, requests: Callable[[], Iterable[LlmRequest]]):
        """
        Args:
            config: resolved, and one that `check_batch` lets pass.
            cache_directory: of the response cache; also holds the record of batches.
            requests: yields the plan's requests, anew at each call.
        """
        self._config = config
        self._base_url = str(config.base_url)
        self._directory = cache_directory
        self._requests = requests
        self._client = LlmClient(config, self._base_url)
        self._cache = ResponseCache(cache_directory)
        self._state = BatchState(cache_directory)
        self._refusal = ""
        self._progress = ""

    def run(self, *, wait: bool) -> dict[str, Any]:
        """Hands over what is neither answered nor under way, and fetches what is ready.

        Args:
            wait: for all batches; else only looks once.

        Returns:
            The report: counts of requests, tokens, money, and `refusal`, the endpoint's reason where it refused a file.

        Raises:
            LlmError: the endpoint cannot be used, or another process works on the same cache's batches. Run again, and
                it goes on.
        """
        with self._alone():
            self._settle_creations()
            while names := self._hand_over():
                while not self._fetch_ended(names):
                    if not wait:
                        return self._report()
                    time.sleep(self._config.batch.poll_s)
            return self._report()

    def cancel(self) -> dict[str, Any]:
        """Stops the plan's batches at the endpoint and fetches what they answered before.

        Returns, Raises:
            As `run`.
        """
        with self._alone():
            self._settle_creations()
            names = self._survey().batches
            for batch in self._created(names):
                self._cancel(batch)
            while self._created(names):
                if not self._fetch_ended(names):
                    time.sleep(self._config.batch.poll_s)
            return self._report()

    def close(self) -> None:
        self._client.close()
        self._cache.close()
        self._state.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other processes from the record of batches; the lock of a killed one is free."""
        with open(os.path.join(self._directory, _LOCK_FILE), "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LlmError(
                    f"one process at a time may work on the batches of {self._directory}, and another one does; wait "
                    "for it or stop it"
                ) from None
            os.makedirs(os.path.join(self._directory, _FILES), exist_ok=True)
            for name in os.listdir(os.path.join(self._directory, _FILES)):
                # Of a killed process; what it had not created is written anew.
                os.unlink(os.path.join(self._directory, _FILES, name))
            yield

    def _settle_creations(self) -> None:
        """Finds out what became of the creations that a killed process had begun."""
        for batch in self._here((CREATING,)):
            batch_id = self._find(batch)
            step = CREATED if batch_id else DROPPED
            self._state.update(dataclasses.replace(batch, batch_id=batch_id, step=step))

    def _survey(self) -> _Survey:
        survey = _Survey()
        price = self._config.price
        seen: set[bytes] = set()
        for request in self._requests():
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in seen:
                continue
            seen.add(digest)
            survey.requests += 1
            known = self._cache.get(key)
            handing = self._state.handing(key)
            lost = self._amounts(handing.lost)
            survey.batch_nano_usd += lost[ledger.RESERVED_NANO_USD]
            survey.committed += Counter(lost)
            if handing.batch:
                survey.batches.add(handing.batch)
            if known is not None:
                response = known[0]
                usage = Usage.of(response)
                cost = 0 if price is None else cost_of_answer_nano_usd(response, price)
                survey.answered += 1
                survey.committed[ledger.RESERVED_NANO_USD] += cost
                survey.committed[ledger.RESERVED_TOKENS] += usage.prompt + usage.completion
                if exchange.came_by_batch(response):
                    survey.by_batch += 1
                    survey.usage += usage
                    survey.batch_nano_usd += cost
                else:
                    survey.live_nano_usd += cost
            elif handing.batch:
                survey.under_way += 1
                survey.committed += Counter(self._amounts(dearest_usage(request)))
            elif handing.attempts and (
                handing.reason not in _TRIED_AGAIN or handing.attempts > self._config.max_retries
            ):
                survey.left[handing.reason] += 1
            else:
                survey.waiting.add(digest)
        return survey

    def _amounts(self, usage: Usage) -> dict[str, int]:
        """Money by batch and tokens, by the names that caps have."""
        price = self._config.price
        return {
            ledger.RESERVED_NANO_USD: 0 if price is None else cost_nano_usd(usage, price.by_batch),
            ledger.RESERVED_TOKENS: usage.prompt + usage.completion,
        }

    def _hand_over(self) -> set[str]:
        """Creates batches of what waits, as far as budget and the endpoint's queue have room.

        Returns:
            Names of the batches under way that hold requests of the plan.
        """
        survey = self._survey()
        names = survey.batches
        elsewhere = {b.base_url for b in self._state.batches(UNDER_WAY) if b.name in names} - {self._base_url}
        if elsewhere:
            raise LlmError(
                f"requests of this plan are with the Batch API at {', '.join(sorted(elsewhere))}; set llm.base_url to "
                "it and run again, to fetch or cancel them"
            )
        if self._refusal or not survey.waiting:
            return names
        caps = budget_caps(self._config)
        limits = self._config.batch
        room = limits.max_enqueued_tokens
        if room is not None:
            room -= sum(batch.tokens for batch in self._here(UNDER_WAY))
        pending = _PendingFile(os.path.join(self._directory, _FILES))
        for request in self._requests():
            digest = bytes.fromhex(request.key[:32])
            if digest not in survey.waiting:
                continue
            amounts = self._amounts(dearest_usage(request))
            if any(survey.committed[name] + amounts[name] > cap for name, cap in caps.items()):
                continue
            tokens = expected_usage(request, self._config).prompt
            if room is not None and tokens > room:
                if not names and not pending.keys:
                    raise LlmError(
                        f"max_enqueued_tokens must have room for a request, got {limits.max_enqueued_tokens} for about "
                        f"{tokens} tokens, other batches at this endpoint aside; raise llm.batch.max_enqueued_tokens"
                    )
                break
            room = None if room is None else room - tokens
            survey.waiting.remove(digest)
            survey.committed += Counter(amounts)
            path, body = self._client.wire(request)
            url = f"/v1{path}"
            entry = {"custom_id": request.key, "method": "POST", "url": url, "body": body}
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            full = len(pending.keys) == limits.requests_per_file or pending.size + len(line) > limits.bytes_per_file
            if full and pending.keys:
                names.add(self._create(pending))
                pending = _PendingFile(os.path.join(self._directory, _FILES))
            pending.add(line, request, url, tokens)
        if pending.keys:
            names.add(self._create(pending))
        return names

    def _create(self, pending: "_PendingFile") -> str:
        """Uploads a file and has the endpoint work on it; returns the batch's name."""
        try:
            uploaded = self._repeat(lambda: self._client.upload(pending.path))
        except UnknownToEndpoint as error:
            raise LlmError(f"{self._base_url} has no Batch API; run sllmr score instead ({error})") from None
        batch = Batch(
            name=pending.name,
            base_url=self._base_url,
            kind=pending.kind,
            requests=len(pending.keys),
            tokens=pending.tokens,
            creation_begun_at=time.time(),
        )
        wanted = {
            "input_file_id": _id_of(uploaded),
            "endpoint": pending.url,
            "completion_window": "24h",
            "metadata": {NAME_IN_METADATA: batch.name},
        }
        self._state.add(batch, pending.keys)
        for repeat in itertools.count(1):
            try:
                # Without a word of the endpoint, never simply once more: it may have created it all the same.
                batch_id = _id_of(self._client.post("/batches", wanted)) or self._find(batch)
                failed = "it tells no id"
            except CallFailed as failure:
                failed = f"{failure.reason}: {failure.detail}"
                if not failure.passing:
                    self._state.update(dataclasses.replace(batch, step=REFUSED))
                    raise LlmError(
                        f"the endpoint {self._base_url} creates no batch, {failed}; mend the cause and run again"
                    ) from None
                batch_id = self._find(batch)
            if batch_id:
                break
            if repeat > self._config.max_retries:
                raise LlmError(f"the endpoint {self._base_url} creates no batch, {failed}; run again, and it goes on")
            batch = dataclasses.replace(batch, creation_begun_at=time.time())
            self._state.update(batch)
        self._state.update(dataclasses.replace(batch, batch_id=batch_id, step=CREATED))
        os.unlink(pending.path)
        _logger.info("batch: %s created with %s requests", batch_id, f"{batch.requests:,}")
        return batch.name

    def _cancel(self, batch: Batch) -> None:
        try:
            self._retried(lambda: self._client.post(f"/batches/{batch.batch_id}/cancel", {}))
        except UnknownToEndpoint:
            # Given up on the person's word: the requests wait again.
            self._state.update(dataclasses.replace(batch, step=DROPPED))
            _logger.warning("batch: %s is unknown at the endpoint and given up", batch.batch_id)
        except CallFailed as failure:
            # One that has ended meanwhile cannot be cancelled, and is fetched.
            if failure.passing:
                raise self._stopped(failure) from None

    def _find(self, batch: Batch) -> str:
        """The endpoint's name for a batch whose creation was begun; empty where it was not created."""
        _logger.info("batch: looking for one whose creation was cut off")
        # It may take a moment to appear in the list.
        time.sleep(max(0.0, batch.creation_begun_at + self._config.batch.poll_s - time.time()))
        query: dict[str, str | int] = {"limit": 100}
        while True:
            page = self._repeat(lambda: self._client.get("/batches", **query))
            listed = [entry for entry in page.get("data") or () if isinstance(entry, dict)]
            for entry in listed:
                metadata = entry.get("metadata")
                if isinstance(metadata, dict) and metadata.get(NAME_IN_METADATA) == batch.name:
                    return _id_of(entry)
            last = _id_of(listed[-1]) if listed and page.get("has_more") else ""
            if last in ("", query.get("after")):
                return ""
            query["after"] = last

    def _fetch_ended(self, names: set[str]) -> bool:
        """Looks at the batches once; stores the answers of those that ended. Returns whether any did."""
        ended = False
        done = total = 0
        for batch in self._created(names):
            status = self._status(batch)
            done += _requests_done(status)
            total += batch.requests
            if status.get("status") == "failed":
                self._refusal = self._refusal_of(batch, status)
                self._state.update(dataclasses.replace(batch, step=REFUSED))
                ended = True
            elif status.get("status") in _ENDED:
                self._fetch(batch, status)
                ended = True
        progress = f"batch: {done:,} of {total:,} requests done at the endpoint"
        if progress != self._progress:
            _logger.info("%s", progress)
            self._progress = progress
        return ended

    def _refusal_of(self, batch: Batch, status: dict[str, Any]) -> str:
        errors = status.get("errors")
        entries = errors.get("data") if isinstance(errors, dict) else None
        first = next((entry for entry in entries or () if isinstance(entry, dict)), {})
        where = f" in line {first['line']}" if first.get("line") else ""
        fix = (
            "set llm.batch.max_enqueued_tokens below the account's limit"
            if first.get("code") == "token_limit_exceeded"
            else "mend the cause"
        )
        told = self._client.redacted(f"{first.get('code')}{where}: {first.get('message')}")
        return (
            f"the endpoint {self._base_url} refused the batch {batch.batch_id} as a whole, {batch.requests} requests, "
            f"{told}; {fix} and run again (nothing of it was billed)"
        )

    def _fetch(self, batch: Batch, status: dict[str, Any]) -> None:
        """Stores the answers of a batch that ended, then records it as done."""
        keys = self._state.keys(batch)
        outcomes: dict[str, str] = {}
        details: dict[str, str] = {}
        lost: dict[str, Usage] = {}
        answers: list[tuple[str, dict[str, Any]]] = []
        told = [status.get(f"{name}_at") for name in _ENDED]
        answered_at = next((at for at in told if isinstance(at, int)), int(time.time()))

        def take(line: dict[str, Any] | None) -> None:
            key = str((line or {}).get("custom_id"))
            if line is None or key not in keys or outcomes.get(key) == ANSWERED:
                return
            outcome, detail, response, lost[key] = _read_line(line, batch.kind)
            outcomes[key] = outcome
            details.setdefault(outcome, detail)
            # After a crash, and where it was asked live meanwhile, the answer is there.
            if response is not None and self._cache.get(key) is None:
                answers.append((key, exchange.mark_as_by_batch(response)))
            if len(answers) >= _STORED_AT_ONCE:
                self._cache.put_all(answers, answered_at)
                answers.clear()

        for file_id in (status.get("output_file_id"), status.get("error_file_id")):
            if file_id:
                try:
                    self._repeat(functools.partial(self._client.download, str(file_id), take))
                except UnknownToEndpoint:
                    _logger.warning("batch: the file %s of %s is gone at the endpoint", file_id, batch.batch_id)
        self._cache.put_all(answers, answered_at)
        for key in keys - outcomes.keys():
            outcomes[key] = NOT_ANSWERED
        self._state.finish(batch, outcomes, lost)
        counts = Counter(outcomes.values())
        counted = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in sorted(counts))
        _logger.info("batch: %s %s: %s", batch.batch_id, status.get("status"), counted)
        for outcome, detail in details.items():
            if detail:
                _logger.warning("batch: the first %s: %s", outcome, self._client.redacted(detail))

    def _report(self) -> dict[str, Any]:
        survey = self._survey()
        known = self._config.price is not None
        reserved = survey.committed[ledger.RESERVED_NANO_USD] - survey.live_nano_usd - survey.batch_nano_usd
        return {
            "model": self._config.model,
            "strategy": self._config.strategy,
            "requests": survey.requests,
            "answered": survey.answered,
            "answered_by_batch": survey.by_batch,
            "under_way": survey.under_way,
            "batches_under_way": [batch.batch_id for batch in self._created(survey.batches)],
            "left": dict(sorted(survey.left.items())),
            "not_handed_over": len(survey.waiting),
            "refusal": self._refusal,
            "tokens": dataclasses.asdict(survey.usage),
            "cost_usd": survey.batch_nano_usd / 1e9 if known else None,
            "cost_of_live_answers_usd": survey.live_nano_usd / 1e9 if known else None,
            "set_aside_usd": reserved / 1e9 if known else None,
        }

    def _here(self, steps: Iterable[str]) -> list[Batch]:
        return [batch for batch in self._state.batches(steps) if batch.base_url == self._base_url]

    def _created(self, names: set[str]) -> list[Batch]:
        return [batch for batch in self._here((CREATED,)) if batch.name in names]

    def _status(self, batch: Batch) -> dict[str, Any]:
        try:
            return self._repeat(lambda: self._client.get(f"/batches/{batch.batch_id}"))
        except UnknownToEndpoint:
            raise LlmError(
                f"the endpoint {self._base_url} does not know the batch {batch.batch_id}; set the key of the account "
                f"that created it in {self._config.api_key_env}, or give it up with sllmr batch --cancel"
            ) from None

    def _repeat(self, call: Callable[[], _Result]) -> _Result:
        """Calls, again where it failed in passing, and raises LlmError in the end; for what costs nothing twice."""
        try:
            return self._retried(call)
        except CallFailed as failure:
            raise self._stopped(failure) from None

    def _retried(self, call: Callable[[], _Result]) -> _Result:
        repeat = 0
        while True:
            try:
                return call()
            except CallFailed as failure:
                if not failure.passing or repeat == self._config.max_retries:
                    raise
                repeat += 1
                pause_s = back_off_s(repeat, self._base_url) if failure.retry_after_s is None else failure.retry_after_s
            time.sleep(pause_s)

    def _stopped(self, failure: CallFailed) -> LlmError:
        return LlmError(
            f"the endpoint {self._base_url} fails with {failure.reason}: {failure.detail}; run again, and it goes on"
        )


class _PendingFile:
    """A file of requests that is being written."""

    def __init__(self, directory: str):
        self.name = uuid.uuid4().hex
        self.path = os.path.join(directory, f"{self.name}.jsonl")
        self.keys: list[str] = []
        self.kind = self.url = ""
        self.tokens = self.size = 0

    def add(self, line: bytes, request: LlmRequest, url: str, tokens: int) -> None:
        with open(self.path, "ab") as file:
            file.write(line)
        self.keys.append(request.key)
        # A plan's requests are of one kind.
        self.kind, self.url = request.kind, url
        self.tokens += tokens
        self.size += len(line)


def _read_line(line: dict[str, Any], kind: str) -> tuple[str, str, dict[str, Any] | None, Usage]:
    """Outcome, its detail, the response, and tokens billed for one that cannot be used."""
    response = line.get("response")
    if not isinstance(response, dict):
        error = line.get("error")
        if isinstance(error, dict) and error.get("code") in ("batch_expired", "batch_cancelled"):
            return NOT_ANSWERED, "", None, Usage()
        return exchange.SERVER_ERROR, json.dumps(error, ensure_ascii=False), None, Usage()
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        body = body if isinstance(body, dict) else {}
        try:
            return ANSWERED, "", read_response(kind, body), Usage()
        except CallFailed as failure:
            return failure.reason, failure.detail, None, Usage.of(body)
    return _reason_of(status), f"HTTP {status}: {json.dumps(body, ensure_ascii=False)}", None, Usage()


def _reason_of(status: Any) -> str:
    """Why a request of a batch has no answer, by its HTTP status."""
    if status in (408, 409):
        return exchange.TIMEOUT
    if status == 429:
        return exchange.RATE_LIMITED
    return exchange.BAD_REQUEST if isinstance(status, int) and 400 <= status < 500 else exchange.SERVER_ERROR


def _requests_done(status: dict[str, Any]) -> int:
    counts = status.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return sum(value for value in (counts.get("completed"), counts.get("failed")) if isinstance(value, int))


def _id_of(described: dict[str, Any]) -> str:
    """The endpoint's name for a file or batch; empty where it tells none."""
    value = described.get("id")
    return value if isinstance(value, str) else ""

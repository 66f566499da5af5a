"""Queries by the Batch API: responses come within a day, at a discount, and fill the same cache as live requests.

A run surveys the plan, submits the requests that have no response and are not in flight, waits, and fetches, until
nothing is left to submit. You can kill it at any moment and run it again (state.py). The live path sends what no batch
answered, at its own price.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from sllmr.components.llm_scorer import messages
from sllmr.components.llm_scorer.batch.state import (
    ANSWERED,
    CREATED,
    CREATING,
    DROPPED,
    REFUSED,
    UNDER_WAY,
    Batch,
    BatchState,
)
from sllmr.components.llm_scorer.config import LISTWISE, TITLE_LIKELIHOOD, YES_NO, LlmConfig
from sllmr.components.llm_scorer.endpoint.client import CallFailed, LlmClient, UnknownToEndpoint, read_response
from sllmr.components.llm_scorer.endpoint.retry import back_off_s
from sllmr.components.llm_scorer.endpoint.tokens import dearest_usage, expected_usage
from sllmr.components.llm_scorer.errors import LlmError
from sllmr.components.llm_scorer.messages import LlmRequest, Usage
from sllmr.components.llm_scorer.requests import ledger
from sllmr.components.llm_scorer.requests.cache import (
    ResponseCache,
)
from sllmr.components.llm_scorer.requests.identity import check_endpoint_of_cached
from sllmr.components.llm_scorer.requests.ledger import (
    billed_usage,
    budget_caps,
    cost_nano_usd,
    cost_of_response_nano_usd,
    unsettled_reservations,
)
from sllmr.components.llm_scorer.results import BatchReport, TokenCounts
from sllmr.components.llm_scorer.store.interface import Held
from sllmr.components.llm_scorer.store.opening import open_locks
from sllmr.components.llm_scorer.store.sqlite import file_errors, make_directory
from sllmr.components.llm_scorer.strategies import create_strategy

NAME_IN_METADATA = "sllmr_plan"
"""Key of a batch's metadata at the endpoint that holds our name for the batch."""

NOT_ANSWERED = "not_answered"
"""The batch expired, was cancelled or ended without a word about the request."""

_TRIED_AGAIN = (NOT_ANSWERED, messages.RATE_LIMITED, messages.SERVER_ERROR, messages.TIMEOUT)
_ENDED = ("completed", "expired", "cancelled")
_FAILED = "failed"
_FILE_TRIES = 5
"""Times that a file just written is looked for, by GET, by the creation of its batch, or by its download."""
_FILE_POLLS = 60
_FILE_POLL_S = 5.0
"""Polls of an uploaded file and the longest pause between two. After them, its batch is created anyway."""
_FILE_NOT_FOUND = re.compile(
    r"(cannot|can't|could not|couldn't|unable to) (find|locate)\W.*\bfile|no such file|\bfile\b.*"
    r"(not found|not_found|does not exist|doesn't exist|not (yet )?(ready|processed))",
    re.IGNORECASE | re.DOTALL,
)
_QUEUE_FULL = re.compile(r"token_limit_exceeded|enqueued.token.limit", re.IGNORECASE)
_FILES = "batches"
_ALL = "0" * 15
"""Key of the lock that stands for all batches."""

_STORED_AT_ONCE = 1000
_Result = TypeVar("_Result")
_logger = logging.getLogger(__name__)


def check_batch(config: LlmConfig) -> None:
    """Raises LlmError if the Batch API cannot serve what is configured.

    Args:
        config: resolved.
    """
    if config.asks_nobody:
        raise LlmError(
            "the scores come from item vectors or a table, so there is nothing to ask by the Batch API; run sllmr score"
        )
    if config.strategy == TITLE_LIKELIHOOD:
        raise LlmError(
            f"strategy {TITLE_LIKELIHOOD} forces given tokens, which the Batch API cannot; set llm.strategy to "
            f"{LISTWISE} or {YES_NO}, or run sllmr score"
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
        answered: requests that the cache answers with a score; by_batch of them came by batch.
        usage: tokens of all stored responses that came by batch, receipts included.
        batches: names of the batches in flight that hold requests of the plan.
        in_flight: requests in these batches that are not answered yet.
        left: requests that are not retried, by reason.
        waiting: all other requests, by the first 16 bytes of their keys.
        live_nano_usd, batch_nano_usd: cost of live and batch responses, unusable ones and unsettled requests included.
        committed: money and tokens spent, and reserved for what is in flight, as ledger.reserve names them.
    """

    requests: int = 0
    answered: int = 0
    by_batch: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)
    batches: set[str] = dataclasses.field(default_factory=set)
    in_flight: int = 0
    left: Counter[str] = dataclasses.field(default_factory=Counter)
    waiting: set[bytes] = dataclasses.field(default_factory=set)
    live_nano_usd: int = 0
    batch_nano_usd: int = 0
    committed: Counter[str] = dataclasses.field(default_factory=Counter)


class BatchJob:
    """Brings the answers to a plan's requests into the cache by the Batch API."""

    def __init__(
        self, config: LlmConfig, cache_directory: str, store: str, requests: Callable[[], Iterable[LlmRequest]]
    ):
        """
        Args:
            config: resolved, and one that `check_batch` lets pass.
            cache_directory: holds the files that are uploaded.
            store: of the response cache and the record of batches.
            requests: yields the plan's requests, anew at each call.
        """
        self._config = config
        self._base_url = str(config.base_url)
        self._store = store
        self._files = os.path.join(cache_directory, _FILES)
        self._requests = requests
        self._client = LlmClient(config, self._base_url)
        self._cache = ResponseCache(store)
        self._state = BatchState(store)
        self._strategy = create_strategy(config)
        self._held: Held | None = None
        self._fetched: set[bytes] = set()
        self._refusal = ""
        self._progress = ""
        self._gives_up_lost = False
        self._files_not_found = 0
        # The endpoint's queue of tokens: whether it was ever full; batches that must end before the next one is
        # submitted; batches seen to have ended; and how many have ended in all, and had when each batch was created.
        self._queue_was_full = False
        self._awaited: set[str] = set()
        self._seen_ended: set[str] = set()
        self._ended_batches = 0
        self._ended_before: dict[str, int] = {}

    def run(self, *, wait: bool) -> BatchReport:
        """Submits what is neither answered nor in flight, and fetches what is ready.

        Args:
            wait: for all batches; else only looks once.

        Returns:
            Counts of requests, tokens, and money over all batches of the plan.

        Raises:
            LlmError: the endpoint cannot be used, a batch has ended without its output file, or another process works,
                or may work after this one was suspended, on the same cache's batches. Run again, and it resumes.
        """
        with self._alone():
            self._settle_creations()
            while (names := self._hand_over()) or self._awaited:
                while not self._fetch_ended(names):
                    if not wait:
                        if not names:
                            self._refusal = (
                                f"the queue of {self._base_url} is full with batches of other plans; run again once "
                                "one of them has ended (nothing was billed)"
                            )
                        return self._report()
                    time.sleep(self._config.batch.poll_s)
            return self._report()

    def cancel(self) -> BatchReport:
        """Stops the plan's batches at the endpoint and fetches what they answered before. Gives up the requests of a
        batch that has ended without its output file: the most that they can have cost stays booked, and the next run
        submits them.

        Returns, Raises:
            As `run`.
        """
        with self._alone():
            self._gives_up_lost = True
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
        """Locks the record of batches against other processes; the lock of a killed process is free."""
        with contextlib.closing(open_locks(self._store, "batches")) as self._locks:
            self._held = self._take()
            try:
                make_directory(self._files)
                with file_errors(self._files):
                    for name in os.listdir(self._files):
                        # Left by a killed process; files whose batches it had not created are written anew.
                        os.unlink(os.path.join(self._files, name))
                yield
            finally:
                if self._held is not None:
                    self._held.release()

    def _take(self) -> Held:
        held = self._locks.try_lock(_ALL)
        if held is None:
            raise LlmError(
                f"one process at a time may work on the batches of {self._store}, and another one does; wait for it or "
                "stop it"
            )
        return held

    def _check_alone(self) -> None:
        """Raises LlmError if another process may have taken the lock, and may have submitted the same requests."""
        if self._held is None or not self._held.is_held():
            raise LlmError(
                "this process was suspended, or without the database, for so long that another one may work on the "
                f"batches of {self._store} by now; run again, and it resumes"
            )

    def _take_again(self) -> bool:
        """Takes the lock again if it may be lost; returns whether it did: then all that is known may be outdated."""
        if self._held is None or self._held.is_held():
            return False
        self._held.release()
        self._held = None  # in case another process has it
        self._held = self._take()
        return True

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
        unsettled = unsettled_reservations(self._store)
        for request in self._requests():
            key = request.key
            digest = bytes.fromhex(key[:32])
            if digest in seen:
                continue
            seen.add(digest)
            survey.requests += 1
            survey.committed += Counter(unsettled.get(key, {}))
            survey.live_nano_usd += unsettled.get(key, {}).get(ledger.RESERVED_NANO_USD, 0)
            known = self._cache.get(key)
            if known is None:
                check_endpoint_of_cached(request, self._cache, self._config)
                self._check_no_earlier_batch(request)
            failure = None if known is None else self._strategy.failure(request, known[0])
            responses = self._cache.receipts(key)
            if known is not None:
                responses.append(known[0])
            handing = self._state.handing(key)
            lost = self._amounts(handing.lost)
            survey.batch_nano_usd += lost[ledger.RESERVED_NANO_USD]
            survey.committed += Counter(lost)
            if handing.batch:
                survey.batches.add(handing.batch)
            for response in responses:
                usage = billed_usage(request, response)
                cost = 0 if price is None else cost_of_response_nano_usd(request, response, price)
                survey.committed[ledger.RESERVED_NANO_USD] += cost
                survey.committed[ledger.RESERVED_TOKENS] += usage.prompt + usage.completion
                if messages.came_by_batch(response):
                    survey.usage += usage
                    survey.batch_nano_usd += cost
                else:
                    survey.live_nano_usd += cost
            if known is not None and failure is None:
                survey.answered += 1
                survey.by_batch += messages.came_by_batch(known[0])
            elif handing.batch:
                survey.in_flight += 1
                survey.committed += Counter(self._amounts(dearest_usage(request)))
            elif handing.attempts and (
                handing.reason not in _TRIED_AGAIN or handing.attempts > self._config.max_retries
            ):
                survey.left[handing.reason] += 1
            elif failure is not None and (
                # Once in a run, as the answer may well be the same again.
                digest in self._fetched or handing.attempts + len(responses) > max(1, self._config.max_retries)
            ):
                survey.left[failure.reason] += 1
            else:
                survey.waiting.add(digest)
        return survey

    def _check_no_earlier_batch(self, request: LlmRequest) -> None:
        """Raises LlmError if a batch in flight holds the request under the key of an earlier version."""
        if self._config.model_id is None and request.endpoint and self._state.handing(request.content_key).batch:
            raise LlmError(
                "requests of this plan are in a batch that an earlier version submitted, without the endpoint in their "
                f"keys; set llm.model_id: {self._config.model} to fetch its responses"
            )

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
            Names of the batches in flight that hold requests of the plan.
        """
        survey = self._survey()
        names = survey.batches
        elsewhere = {b.base_url for b in self._state.batches(UNDER_WAY) if b.name in names} - {self._base_url}
        if elsewhere:
            raise LlmError(
                f"requests of this plan are with the Batch API at {', '.join(sorted(elsewhere))}; set llm.base_url to "
                "it and run again, to fetch or cancel them"
            )
        if self._refusal or self._awaited or not survey.waiting:
            return names
        caps = budget_caps(self._config)
        limits = self._config.batch
        room = limits.max_enqueued_tokens
        if room is not None:
            room -= sum(batch.tokens for batch in self._here(UNDER_WAY))
        pending = _PendingFile(self._files)
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
                names |= self._create(pending)
                if self._queue_was_full:
                    # One new batch for each that ends: no file is uploaded in vain while the queue has no room for it.
                    return names
                pending = _PendingFile(self._files)
            pending.add(line, request, url, tokens)
        if pending.keys:
            names |= self._create(pending)
        return names

    def _create(self, pending: "_PendingFile") -> set[str]:
        """Uploads a file and has the endpoint work on it; returns the batch's name, none if the queue is full."""
        try:
            uploaded = self._repeat(lambda: self._client.upload(pending.path))
        except UnknownToEndpoint as error:
            raise LlmError(f"{self._base_url} has no Batch API; run sllmr score instead ({error})") from None
        file_id = _id_of(uploaded)
        self._await_file(file_id, uploaded)
        batch = Batch(
            name=pending.name,
            base_url=self._base_url,
            kind=pending.kind,
            requests=len(pending.keys),
            tokens=pending.tokens,
            creation_begun_at=time.time(),
        )
        wanted = {
            "input_file_id": file_id,
            "endpoint": pending.url,
            "completion_window": "24h",
            "metadata": {NAME_IN_METADATA: batch.name},
        }
        # The upload may have taken long.
        self._check_alone()
        self._state.add(batch, pending.keys)
        self._ended_before[batch.name] = self._ended_batches
        for repeat in itertools.count(1):
            self._check_alone()
            try:
                # If the endpoint returns no id, look for the batch before a retry: it may exist all the same.
                batch_id = _id_of(self._client.post("/batches", wanted)) or self._find(batch)
                failed = "it tells no id"
            except UnknownToEndpoint as error:
                if repeat < _FILE_TRIES:
                    self._pause(repeat)
                    continue
                self._state.update(dataclasses.replace(batch, step=REFUSED))
                raise LlmError(
                    f"the endpoint {self._base_url} creates no batch of the uploaded file {file_id} ({error}); run "
                    "again (nothing of it was billed)"
                ) from None
            except CallFailed as failure:
                failed = f"{failure.reason}: {failure.detail}"
                if _QUEUE_FULL.search(failure.detail):
                    self._state.update(dataclasses.replace(batch, step=REFUSED))
                    pending.remove()
                    self._refuse_or_await(batch, f"the endpoint {self._base_url} creates no batch, {failed}")
                    return set()
                if not failure.passing and repeat < _FILE_TRIES and _FILE_NOT_FOUND.search(failure.detail):
                    self._pause(repeat)
                    continue
                if not failure.passing:
                    self._state.update(dataclasses.replace(batch, step=REFUSED))
                    raise LlmError(
                        f"the endpoint {self._base_url} creates no batch, {failed}; mend the cause and run again"
                    ) from None
                batch_id = self._find(batch)
            if batch_id:
                break
            if repeat > self._config.max_retries:
                raise LlmError(f"the endpoint {self._base_url} creates no batch, {failed}; run again, and it resumes")
            batch = dataclasses.replace(batch, creation_begun_at=time.time())
            self._state.update(batch)
        self._state.update(dataclasses.replace(batch, batch_id=batch_id, step=CREATED))
        pending.remove()
        _logger.info("batch: %s created with %s requests", batch_id, f"{batch.requests:,}")
        return {batch.name}

    def _await_file(self, file_id: str, described: dict[str, Any]) -> None:
        """Waits until the endpoint has processed an uploaded file, or tells nothing of its state.

        Args:
            described: what the endpoint told of the file at its upload.

        Raises:
            LlmError: the endpoint refused the file.
        """
        unknown = 0
        for _ in range(_FILE_POLLS):
            status = described.get("status")
            if status == "processed":
                return
            if status in ("error", "failed", "deleted", "expired"):
                told = self._client.redacted(str(described.get("status_details")))
                raise LlmError(
                    f"the endpoint {self._base_url} refused the file {file_id} of a batch, status {status}: {told}; "
                    "mend the cause and run again (nothing of it was billed)"
                )
            try:
                described = self._retried(lambda: self._client.get(f"/files/{file_id}"))
            except UnknownToEndpoint:
                unknown += 1
                if unknown == _FILE_TRIES:
                    return
            except CallFailed as failure:
                if failure.passing:
                    raise self._stopped(failure) from None
                # An endpoint that describes no files: the creation of the batch tells whether it has this one.
                return
            else:
                if described.get("status") is None:
                    return
                if described["status"] == "processed":
                    return
            time.sleep(min(self._config.batch.poll_s, _FILE_POLL_S))
        _logger.warning("batch: the file %s is still %s; creating its batch", file_id, described.get("status"))

    def _pause(self, repeat: int) -> None:
        time.sleep(min(self._config.batch.poll_s, back_off_s(repeat, self._base_url)))

    def _refuse_or_await(self, batch: Batch, refusal: str) -> None:
        """Decides what to do about a batch for which the endpoint's queue of tokens has no room.

        If another batch of ours, of any plan, has ended since this one was created, this one is submitted again. If
        another is in flight, this one waits for its end. Else the endpoint's refusal stands.
        """
        self._queue_was_full = True
        if self._ended_batches > self._ended_before.get(batch.name, 0):
            return
        others = self._here((CREATED,))
        ended = {other.name for other in others if self._has_ended(other)}
        # A batch that is first seen to have ended now may have ended since the endpoint refused this one.
        self._awaited = (ended - self._seen_ended) or {other.name for other in others} - ended
        self._seen_ended |= ended
        if self._awaited:
            _logger.info("batch: the endpoint's queue is full; the next batch is submitted once one of ours has ended")
        else:
            self._refusal = (
                f"{refusal}; set llm.batch.max_enqueued_tokens below the account's limit and run again (nothing of it "
                "was billed)"
            )

    def _has_ended(self, batch: Batch) -> bool:
        """Whether a batch, of another plan maybe, takes no room in the queue any more."""
        try:
            status = self._repeat(lambda: self._client.get(f"/batches/{batch.batch_id}"))
        except UnknownToEndpoint:
            return True
        return status.get("status") in (*_ENDED, _FAILED)

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
        left_s = batch.creation_begun_at + self._config.batch.poll_s - time.time()
        # The clock may have been set back since.
        time.sleep(min(max(0.0, left_s), self._config.batch.poll_s))
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
        """Looks at the batches once; stores the answers of those that ended. Returns whether any did, or may have."""
        if self._take_again():
            self._awaited.clear()
            return True
        ended = False
        done = total = 0
        no_room: list[tuple[Batch, str]] = []
        stops: list[str] = []
        for batch in self._created(names):
            status = self._status(batch)
            done += _requests_done(status)
            total += batch.requests
            if status.get("status") == _FAILED:
                self._state.update(dataclasses.replace(batch, step=REFUSED))
                self._awaited.discard(batch.name)
                ended = True
                told = self._told_of(status)
                refusal = (
                    f"the endpoint {self._base_url} refused the batch {batch.batch_id} as a whole, {batch.requests} "
                    f"requests, {told}"
                )
                if _QUEUE_FULL.search(told):
                    no_room.append((batch, refusal))
                elif _FILE_NOT_FOUND.search(told) and self._files_not_found < _FILE_TRIES:
                    self._files_not_found += 1
                    _logger.warning("batch: %s; its requests are uploaded again", refusal)
                    self._pause(self._files_not_found)
                else:
                    self._refusal = f"{refusal}; mend the cause and run again (nothing of it was billed)"
            elif status.get("status") in _ENDED:
                if stop := self._fetch(batch, status):
                    stops.append(stop)
                    continue
                self._ended_batches += 1
                self._awaited.clear()
                ended = True
        if stops:
            raise LlmError("; ".join(stops))
        for batch, refusal in no_room:
            self._refuse_or_await(batch, refusal)
        others = {batch.name for batch in self._created(self._awaited - names) if self._has_ended(batch)}
        if others:
            self._seen_ended |= others
            self._awaited.clear()
            ended = True
        progress = f"batch: {done:,} of {total:,} requests done at the endpoint"
        if progress != self._progress:
            _logger.info("%s", progress)
            self._progress = progress
        return ended

    def _told_of(self, status: dict[str, Any]) -> str:
        """What the endpoint says about a batch that it refused as a whole."""
        errors = status.get("errors")
        entries = errors.get("data") if isinstance(errors, dict) else None
        first = next((entry for entry in entries or () if isinstance(entry, dict)), {})
        where = f" in line {first['line']}" if first.get("line") else ""
        return self._client.redacted(f"{first.get('code')}{where}: {first.get('message')}")

    def _fetch(self, batch: Batch, status: dict[str, Any]) -> str:
        """Stores the answers of a batch that ended, then records it as done.

        Returns:
            Why it cannot be recorded as done: its output file is missing, and its requests are possibly billed. Else
            empty.
        """
        self._check_alone()
        keys = self._state.keys(batch)
        outcomes: dict[str, str] = {}
        details: dict[str, str] = {}
        lost: dict[str, Usage] = {}
        answers: list[tuple[str, dict[str, Any]]] = []
        rivals: dict[str, dict[str, Any]] = {}
        told = [status.get(f"{name}_at") for name in _ENDED]
        answered_at = next((at for at in told if isinstance(at, int)), int(time.time()))

        def take(line: dict[str, Any] | None) -> None:
            key = str((line or {}).get("custom_id"))
            if line is None or key not in keys or outcomes.get(key) == ANSWERED:
                return
            outcome, detail, response, lost[key] = _read_line(line, batch.kind)
            outcomes[key] = outcome
            details.setdefault(outcome, detail)
            if response is not None:
                response = messages.mark_as_by_batch(response)
                known = self._cache.get(key)
                if known is None:
                    answers.append((key, response))
                elif known[0] != response:
                    # Equal after a crash; else `known` is of an earlier run, or of a live request meanwhile.
                    rivals[key] = response
            if len(answers) >= _STORED_AT_ONCE:
                self._cache.put_all(answers, answered_at)
                answers.clear()

        for repeat in itertools.count(1):
            has_output = self._read_file(batch, status.get("output_file_id"), take)
            self._read_file(batch, status.get("error_file_id"), take)
            is_lost = not has_output and outcomes.keys() < keys and _may_have_output(status)
            if not is_lost or repeat == _FILE_TRIES:
                break
            # It may take a moment to appear.
            self._pause(repeat)
            status = self._status(batch)
        self._cache.put_all(answers, answered_at)
        self._store_rivals(rivals, answered_at)
        self._fetched.update(bytes.fromhex(key[:32]) for key in outcomes)
        if is_lost:
            missing = keys - outcomes.keys()
            dearest = {r.key: dearest_usage(r) for r in self._requests() if r.key in missing}
            stop = self._lost_output(batch, status, len(missing), sum(dearest.values(), Usage()))
            if not self._gives_up_lost:
                return stop
            _logger.warning("batch: given up: %s", stop)
            lost.update(dearest)
        for key in keys - outcomes.keys():
            outcomes[key] = NOT_ANSWERED
        self._state.finish(batch, outcomes, lost)
        counts = Counter(outcomes.values())
        counted = ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in sorted(counts))
        _logger.info("batch: %s %s: %s", batch.batch_id, status.get("status"), counted)
        for outcome, detail in details.items():
            if detail:
                _logger.warning("batch: the first %s: %s", outcome, self._client.redacted(detail))
        return ""

    def _read_file(self, batch: Batch, file_id: object, take: Callable[[dict[str, Any] | None], None]) -> bool:
        """Reads an output or error file of a batch; returns whether there is one."""
        if not file_id:
            return False
        try:
            self._repeat(functools.partial(self._client.download, str(file_id), take))
        except UnknownToEndpoint:
            _logger.warning("batch: the endpoint does not know the file %s of %s", file_id, batch.batch_id)
            return False
        return True

    def _lost_output(self, batch: Batch, status: dict[str, Any], requests: int, dearest: Usage) -> str:
        """The message about a batch without its output file: what is possibly billed and how to decide."""
        file_id = status.get("output_file_id")
        price = self._config.price
        at_most = "" if price is None else f", at most ${cost_nano_usd(dearest, price.by_batch) / 1e9:.4f}"
        return (
            f"the batch {batch.batch_id} at {self._base_url} ended as {status.get('status')} and "
            + (f"its output file {file_id} is missing" if file_id else "has no output file")
            + f": {requests} requests have no response and may be billed{at_most}; look the batch up at the endpoint. "
            "If its output comes back, run sllmr batch again and it is fetched; else run sllmr batch --cancel to give "
            "it up: that amount stays booked as spent, and the next run submits and pays the requests a second time"
        )

    def _store_rivals(self, rivals: dict[str, dict[str, Any]], answered_at: int) -> None:
        """Of two responses to a request one with a score counts; the other is a receipt."""
        better: list[tuple[str, dict[str, Any]]] = []
        for request in self._requests() if rivals else ():
            key = request.key
            known = self._cache.get(key) if key in rivals else None
            if known is not None and self._strategy.failure(request, known[0]) is not None:
                better.append((key, rivals.pop(key)))
        self._cache.put_all(better, answered_at)
        self._cache.add_receipts(rivals.items(), answered_at)

    def _report(self) -> BatchReport:
        survey = self._survey()
        known = self._config.price is not None
        reserved = survey.committed[ledger.RESERVED_NANO_USD] - survey.live_nano_usd - survey.batch_nano_usd
        return BatchReport(
            model=self._config.model,
            strategy=self._config.strategy,
            requests=survey.requests,
            answered=survey.answered,
            answered_by_batch=survey.by_batch,
            in_flight=survey.in_flight,
            batches_in_flight=tuple(batch.batch_id for batch in self._created(survey.batches)),
            left=dict(sorted(survey.left.items())),
            not_submitted=len(survey.waiting),
            refusal=self._refusal,
            tokens=TokenCounts(**dataclasses.asdict(survey.usage)),
            cost_usd=survey.batch_nano_usd / 1e9 if known else None,
            cost_of_live_responses_usd=survey.live_nano_usd / 1e9 if known else None,
            reserved_usd=reserved / 1e9 if known else None,
        )

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
        """Calls, with retries; raises LlmError if the last one fails. For calls that cost nothing when repeated."""
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
            f"the endpoint {self._base_url} fails with {failure.reason}: {failure.detail}; run again, and it resumes"
        )


class _PendingFile:
    """A file of requests that is being written."""

    def __init__(self, directory: str):
        self.name = uuid.uuid4().hex
        self.path = os.path.join(directory, f"{self.name}.jsonl")
        self.keys: list[str] = []
        self.kind = self.url = ""
        self.tokens = self.size = 0

    def remove(self) -> None:
        """Deletes the file."""
        with file_errors(self.path):
            os.unlink(self.path)

    def add(self, line: bytes, request: LlmRequest, url: str, tokens: int) -> None:
        with file_errors(self.path), open(self.path, "ab") as file:
            file.write(line)
        self.keys.append(request.key)
        # A plan's requests are of one kind.
        self.kind, self.url = request.kind, url
        self.tokens += tokens
        self.size += len(line)


def _read_line(line: dict[str, Any], kind: str) -> tuple[str, str, dict[str, Any] | None, Usage]:
    """Reads a line of a batch's files: outcome, its detail, the response, and tokens billed for an unusable one."""
    response = line.get("response")
    if not isinstance(response, dict):
        error = line.get("error")
        if isinstance(error, dict) and error.get("code") in ("batch_expired", "batch_cancelled"):
            return NOT_ANSWERED, "", None, Usage()
        return messages.SERVER_ERROR, json.dumps(error, ensure_ascii=False), None, Usage()
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
        return messages.TIMEOUT
    if status == 429:
        return messages.RATE_LIMITED
    return messages.BAD_REQUEST if isinstance(status, int) and 400 <= status < 500 else messages.SERVER_ERROR


def _may_have_output(status: dict[str, Any]) -> bool:
    """Whether a batch that ended has responses to some requests, or tells nothing about it."""
    counts = status.get("request_counts")
    completed = counts.get("completed") if isinstance(counts, dict) else None
    return bool(completed) if isinstance(completed, int) else True


def _requests_done(status: dict[str, Any]) -> int:
    counts = status.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    return sum(value for value in (counts.get("completed"), counts.get("failed")) if isinstance(value, int))


def _id_of(described: dict[str, Any]) -> str:
    """The endpoint's name for a file or batch; empty where it tells none."""
    value = described.get("id")
    return value if isinstance(value, str) else ""

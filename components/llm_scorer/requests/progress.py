"""A log line every few seconds, also when the work is done in other processes."""

import logging
import threading
import time

from sllmr.components.llm_scorer.requests import congestion, ledger
from sllmr.components.llm_scorer.requests.ledger import RunLedger

INTERVAL_S = 10.0
_logger = logging.getLogger(__name__)


class ProgressReporter:
    """Logs `run`'s counters while the block runs, and once more at its end."""

    def __init__(self, run: RunLedger, *, pairs: int, to_send: int, concurrency: int):
        """
        Args:
            run: the counters.
            pairs: all of the plan.
            to_send: calls that the cache cannot answer.
            concurrency: requests that a worker may have in flight at most.
        """
        self._run = run
        self._pairs = pairs
        self._to_send = to_send
        self._concurrency = concurrency
        self._started = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llm-progress", daemon=True)

    def __enter__(self) -> "ProgressReporter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(INTERVAL_S)
            seconds = time.monotonic() - self._started
            line = progress_line(
                self._run.totals(),
                pairs=self._pairs,
                to_send=self._to_send,
                concurrency=self._concurrency,
                seconds=seconds,
            )
            _logger.info("%s", line)
        if without := self._run.totals().get(ledger.RESPONSES_WITHOUT_USAGE, 0):
            _logger.warning(
                "llm: %d responses reported no token counts (usage); each is booked at the most that its request can "
                "have cost, so the bill may be lower than the ledger",
                without,
            )
        self._run.close()


def progress_line(totals: dict[str, int], *, pairs: int, to_send: int, concurrency: int, seconds: float) -> str:
    """`llm: 340/1300 pairs, 512/1890 requests, 8.1/s, 2 failed, $0.02, throttled 3 times: 8 of 16 in flight`.

    Rate and time left count requests with a response or a failure; the pairs of a context count in proportion to its
    requests that have one. The last part appears once the endpoint has throttled.
    """
    # If a runner begins contexts in one process and collects them in another, both count their pairs.
    pairs_done = min(totals.get(ledger.PAIRS_DONE, 0), pairs)
    if not to_send:
        return f"llm: {pairs_done}/{pairs} pairs, no requests to send"
    failed = totals.get(ledger.REQUESTS_FAILED, 0)
    done = totals.get(ledger.REQUESTS_SENT, 0) + failed
    rate = done / max(seconds, 1e-3)
    left = f"{max(0, to_send - done) / rate:.0f} s left" if rate else "time left unknown"
    line = (
        f"llm: {pairs_done}/{pairs} pairs, {done}/{to_send} requests, {rate:.1f}/s, "
        f"{left}, {failed} failed, ${totals.get(ledger.NANO_USD, 0) / 1e9:.4f}"
    )
    if throttled := totals.get(congestion.THROTTLED, 0):
        in_flight = congestion.places_now(totals, concurrency)
        line += f", throttled {throttled} times: {in_flight} of {concurrency} in flight"
    return line

"""A log line every few seconds, also when the work is done in other processes."""

import logging
import threading
import time

from components.llm_scorer import congestion, ledger
from components.llm_scorer.ledger import RunLedger

INTERVAL_S = 10.0
_logger = logging.getLogger(__name__)


class ProgressReporter:
    """Logs `run`'s counters while the block runs, and once more at its end."""

    def __init__(self, run: RunLedger, *, pairs: int, to_send: int, concurrency: int):
        """
        Args:
            run: the counters.
            pairs: all that are asked about.
            to_send: calls that the cache cannot answer.
            concurrency: calls that a worker may have under way at most.
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
        self._run.close()


def progress_line(totals: dict[str, int], *, pairs: int, to_send: int, concurrency: int, seconds: float) -> str:
    """`llm: 340/1300 pairs, 512/1890 calls, 8.1/s, 170 s left, 2 failed, $0.02, pushed back 3 times: 8 of 16 at once`.

    Rate and time left count calls that were answered or failed; pairs are counted when their whole context is done.
    The last part is there once the endpoint has pushed back.
    """
    if not to_send:
        return f"llm: {totals.get(ledger.PAIRS_DONE, 0)}/{pairs} pairs, no calls to send"
    failed = totals.get(ledger.CALLS_FAILED, 0)
    done = totals.get(ledger.CALLS_SENT, 0) + failed
    rate = done / max(seconds, 1e-3)
    left = f"{max(0, to_send - done) / rate:.0f} s left" if rate else "time left unknown"
    line = (
        f"llm: {totals.get(ledger.PAIRS_DONE, 0)}/{pairs} pairs, {done}/{to_send} calls, {rate:.1f}/s, "
        f"{left}, {failed} failed, ${totals.get(ledger.NANO_USD, 0) / 1e9:.4f}"
    )
    if pushed_back := totals.get(congestion.PUSHED_BACK, 0):
        at_once = congestion.places_now(totals, concurrency)
        line += f", pushed back {pushed_back} times: {at_once} of {concurrency} at once"
    return line

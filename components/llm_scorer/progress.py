"""A log line every few seconds, also when the work is done in other processes."""

import logging
import threading
import time

from components.llm_scorer import ledger
from components.llm_scorer.ledger import RunLedger

INTERVAL_S = 10.0
_logger = logging.getLogger(__name__)


class ProgressReporter:
    """Logs `run`'s counters while the block runs, and once more at its end."""

    def __init__(self, run: RunLedger, *, pairs: int, to_send: int):
        """
        Args:
            run: the counters.
            pairs: all that are asked about.
            to_send: calls that the cache cannot answer.
        """
        self._run = run
        self._pairs = pairs
        self._to_send = to_send
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
            line = progress_line(self._run.totals(), pairs=self._pairs, to_send=self._to_send, seconds=seconds)
            _logger.info("%s", line)
        self._run.close()


def progress_line(totals: dict[str, int], *, pairs: int, to_send: int, seconds: float) -> str:
    """`llm: 340/1300 pairs, 512/1890 calls, 8.1/s, 170 s left, 2 failed, $0.0214`.

    Rate and time left count calls that were sent; pairs are counted when their whole context is done.
    """
    if not to_send:
        return f"llm: {totals.get(ledger.PAIRS_DONE, 0)}/{pairs} pairs, no calls to send"
    failed = totals.get(ledger.CALLS_FAILED, 0)
    done = totals.get(ledger.CALLS_SENT, 0) + failed
    rate = done / max(seconds, 1e-3)
    left = f"{max(0, to_send - done) / rate:.0f} s left" if rate else "time left unknown"
    return (
        f"llm: {totals.get(ledger.PAIRS_DONE, 0)}/{pairs} pairs, {done}/{to_send} calls, {rate:.1f}/s, "
        f"{left}, {failed} failed, ${totals.get(ledger.NANO_USD, 0) / 1e9:.4f}"
    )

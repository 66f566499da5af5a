"""When a request is retried after a retryable failure."""

import datetime
import email.utils
import hashlib
import math
from collections.abc import Mapping

FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 30.0

LONGEST_RETRY_AFTER_S = 120.0
"""A server that asks for a longer wait has a daily limit: the call fails, and a later run sends it again."""


_LONGEST_BELIEVED_S = 31 * 86_400.0
"""Quotas are renewed by the month at the latest: a header that asks for more makes no sense."""


def back_off_s(repeat: int, key: str) -> float:
    """Seconds to wait before the given retry (1, 2, ...) if the server names no time: FIRST_BACK_OFF_S, doubled each
    time up to LONGEST_BACK_OFF_S, less a part of up to one half.

    The part is drawn by a hash of the call's `key` and the retry, so that calls that failed together are not retried
    together, and all runs wait alike.
    """
    digest = hashlib.sha256(f"back off\x1f{key}\x1f{repeat}".encode()).digest()
    fraction = int.from_bytes(digest[:8]) / 2**64
    return min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2 ** (repeat - 1)) * (1 - fraction / 2)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms` (OpenAI, Azure) or Retry-After in seconds or as a date.

    Args:
        headers: looked up by names in lower case.
        now: Unix seconds.

    Returns:
        None where there is no such header, or none that makes sense; 0 for a moment that has passed.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if not math.isnan(seconds):
            return _believable(seconds)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        # A date without a zone is in UTC, as HTTP dates are.
        moment = (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return _believable(moment - now)


def _believable(seconds: float) -> float | None:
    return max(0.0, seconds) if seconds <= _LONGEST_BELIEVED_S else None

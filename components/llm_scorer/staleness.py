"""How old the scores of a table are, told from its ledger."""

from collections.abc import Mapping
from typing import Any

_DAY_S = 86400


def staleness(book: Mapping[str, Any], now_s: float) -> dict[str, float] | None:
    """Age of the scores in days, and the share of contexts whose user has chosen more since; None without scores.

    A context counts as outdated where its scores are of an earlier table (`replay`) and its user has more positives in
    the train split now than then. An answer from the response cache does not tell what else the user had chosen when it
    was given: only its age shows.

    Args:
        book: ledger.json.
        now_s: Unix seconds.
    """
    if book["newest_score"] is None:
        return None
    oldest, median, newest = (max(0.0, now_s - book[f"{name}_score"]) for name in ("oldest", "median", "newest"))
    return {
        "oldest_days": oldest / _DAY_S,
        "median_days": median / _DAY_S,
        "newest_days": newest / _DAY_S,
        "outdated_share": book["contexts_outdated"] / book["contexts"],
    }


def staleness_line(age: Mapping[str, float]) -> str:
    """`scores: 0.1 to 12.5 days old, median 3.0; 8.0% of their users have chosen more since`."""
    return (
        f"scores: {age['newest_days']:.1f} to {age['oldest_days']:.1f} days old, median {age['median_days']:.1f}; "
        f"{age['outdated_share']:.1%} of their users have chosen more since"
    )


def staleness_warning(age: Mapping[str, float] | None, max_age_days: float | None) -> str | None:
    """One sentence where a score is older than it may be, else None."""
    if age is None or max_age_days is None or age["oldest_days"] <= max_age_days:
        return None
    return (
        f"the oldest score must be at most llm.max_age_days={max_age_days:g} days old, got {age['oldest_days']:.1f}; "
        "ask again for what is older with sllmr rescore"
    )

"""How old the scores of a table are, told from its ledger."""

from sllmr.components.llm_scorer.results import ScoreAge, ScoringLedger

_DAY_S = 86400


def staleness(book: ScoringLedger, now_s: float) -> ScoreAge | None:
    """Age of the scores in days, and the fraction of contexts whose user has new interactions; None without scores.

    A context is outdated if its scores come from an earlier table (`replay`) and its user has had later positives in
    the train split since. A response from the cache does not record what else the user had interacted with when it
    came: only its age is known.

    Args:
        book: of the table.
        now_s: Unix seconds.
    """
    if book.oldest_score is None or book.median_score is None or book.newest_score is None:
        return None
    oldest, median, newest = (
        max(0.0, now_s - second) / _DAY_S for second in (book.oldest_score, book.median_score, book.newest_score)
    )
    return ScoreAge(
        oldest_days=oldest,
        median_days=median,
        newest_days=newest,
        outdated_fraction=book.contexts_outdated / book.contexts,
    )


def staleness_line(age: ScoreAge) -> str:
    """`scores: 0.1 to 12.5 days old, median 3.0; 8.0% of their users have new interactions`."""
    return (
        f"scores: {age.newest_days:.1f} to {age.oldest_days:.1f} days old, median {age.median_days:.1f}; "
        f"{age.outdated_fraction:.1%} of their users have new interactions"
    )


def staleness_warning(age: ScoreAge | None, max_age_days: float | None) -> str | None:
    """One sentence if a score is older than it may be, else None."""
    if age is None or max_age_days is None or age.oldest_days <= max_age_days:
        return None
    return (
        f"the oldest score must be at most llm.max_age_days={max_age_days:g} days old, got {age.oldest_days:.1f}; "
        "score what is older again with sllmr rescore"
    )

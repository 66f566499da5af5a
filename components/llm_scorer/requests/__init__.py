"""Each paid request once: session, cache, ledger, in-flight locks, rate limit, congestion, progress."""

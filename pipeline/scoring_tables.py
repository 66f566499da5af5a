"""What the scoring commands print at their end: the plan, the ledger, the report of a batch."""

from rich.console import Console
from rich.table import Table

from sllmr.components.item_embedder.config import in_terms_of_the_endpoint
from sllmr.components.llm_scorer.config import LISTWISE, YES_NO
from sllmr.components.llm_scorer.cost.estimate import Estimate, expected_seconds
from sllmr.components.llm_scorer.cost.forecast import Forecast
from sllmr.components.llm_scorer.results import BatchReport, ScoringLedger
from sllmr.pipeline.config import Config
from sllmr.pipeline.durations import duration
from sllmr.pipeline.enough_pairs import of_plan


def print_batch_report(console: Console, book: BatchReport, options: str, *, cancelled: bool) -> None:
    """Prints what the batches hold, and the commands that come next.

    Args:
        console: to print to.
        book: of the batch job.
        options: of the command line, for the next commands.
        cancelled: whether the user stopped the batches.
    """
    table = Table(title=f"{book.model} by {book.strategy}, Batch API", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests", f"{book.requests:,}")
    table.add_row("answered", f"{book.answered:,}, {book.answered_by_batch:,} of them by batch")
    table.add_row("in flight", f"{book.in_flight:,} in {len(book.batches_in_flight)} batches")
    for reason, count in book.left.items():
        table.add_row(f"not retried: {reason}", f"{count:,}")
    table.add_row("prompt tokens by batch", f"{book.tokens.prompt:,}")
    table.add_row("completion tokens by batch", f"{book.tokens.completion:,}")
    table.add_row("cost by batch", _dollars(book.cost_usd))
    table.add_row("cost of other cached responses", _dollars(book.cost_of_live_responses_usd))
    if book.in_flight:
        table.add_row("in flight, at most", _dollars(book.reserved_usd))
    console.print(table)
    missing = book.requests - book.answered
    if book.in_flight:
        lines = [f"To fetch what is in flight: sllmr batch {options}"]
    else:
        lines = []
        if book.not_submitted and not book.refusal:
            why = (
                "as you stopped them"
                if cancelled
                else "as llm.budget has no room for them: raise it and run this again"
            )
            lines.append(f"{book.not_submitted:,} requests were not submitted, {why}")
        if missing:
            lines.append(
                f"sllmr score sends the {missing:,} missing requests live, at the price that sllmr plan prints"
            )
        lines.append(f"For the table: sllmr score {options}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def ledger_table(book: ScoringLedger) -> Table:
    """The ledger of a scoring job, as ledger.json holds it."""
    table = Table(title=f"{book.model} by {book.strategy} ({book.prompt_version})", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    what = "pairs of the table" if book.rescore else "pairs planned"
    table.add_row(what, f"{book.requested:,} in {book.contexts:,} contexts")
    if (part := book.rescore) is not None:
        reasons = ", ".join(f"{count:,} by {reason}" for reason, count in part.scored_again.items() if count)
        table.add_row("contexts kept", f"{part.kept:,} ({book.kept:,} pairs)")
        table.add_row("contexts scored again", f"{sum(part.scored_again.values()):,}{reasons and f' ({reasons})'}")
        table.add_row("contexts new, gone", f"{part.new:,}, {part.gone:,}")
    if (replayed := book.replay_table) is not None:
        table.add_row("rows of llm.replay_table used", f"{replayed.used:,} of {replayed.rows:,}")
        table.add_row("users of llm.replay_table used", f"{replayed.users_used:,} of {replayed.users:,}")
        for reason, count in replayed.dropped.items():
            table.add_row(f"rows dropped: {reason}", f"{count:,}")
    table.add_row("scored", f"{book.scored:,}")
    for reason, count in book.failures.items():
        table.add_row(f"failed: {reason}", f"{count:,}")
    if book.unknown_items_in_responses:
        table.add_row("in responses, but not in prompts", f"{book.unknown_items_in_responses:,}")
    sent, tokens = book.requests, book.tokens
    table.add_row("requests sent", f"{sent.sent:,}, {sent.failed:,} more failed")
    table.add_row("retries", f"{sent.retried:,}")
    if book.throttled.times:
        fewest, most = book.throttled.fewest_in_flight, book.throttled.concurrency
        table.add_row("throttled", f"{book.throttled.times:,} times, down to {fewest} of {most} requests in flight")
    table.add_row("answered by the cache", f"{sent.cached:,}")
    table.add_row("prompt tokens", f"{tokens.prompt:,}, {tokens.cached_prompt:,} cached by the server")
    table.add_row("completion tokens", f"{tokens.completion:,}")
    table.add_row("cost of this run", _dollars(book.cost_usd))
    table.add_row("cost of cached responses, earlier", _dollars(book.cost_of_cached_responses_usd))
    if book.latency_s:
        table.add_row("latency", ", ".join(f"{name} {value:.2f} s" for name, value in book.latency_s.items()))
    table.add_row("time", f"{book.seconds:.0f} s")
    return table


def print_embedding_plan(console: Console, config: Config, size: Estimate) -> None:
    """Prints size and cost of the item vectors that the endpoint has still to make."""
    endpoint = config.item_vectors.endpoint
    assert endpoint is not None
    seconds, bound = expected_seconds(size, endpoint.client_config())
    table = Table(title=f"Item vectors: {endpoint.model}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("texts", f"{size.requests:,}, {size.cached:,} of them in the cache")
    table.add_row("tokens to send", f"about {size.usage.prompt:,}")
    price = "price unknown; set item_vectors.endpoint.price_per_million_tokens"
    table.add_row("cost", price if size.cost_nano_usd is None else f"${size.cost_nano_usd / 1e9:.4f}")
    if size.to_send:
        table.add_row("time of the requests", f"about {duration(seconds)} ({in_terms_of_the_endpoint(bound)})")
    console.print(table)
    if size.to_send and config.scorer_reads_item_vectors:
        console.print(
            "The vectors are not there yet, so this plan draws candidates of the history's categories; a run "
            "draws them by the vectors",
            style="yellow",
            soft_wrap=True,
        )


def print_plan(console: Console, config: Config, curve: list[Forecast], train_positives: int) -> None:
    """Prints size, cost and reach of a plan; the last forecast is the whole of it."""
    llm = config.llm.resolve()
    whole = curve[-1].size
    seconds, bound = expected_seconds(whole, llm)
    summary = Table(title=f"Plan: {llm.model} by {llm.strategy}", show_header=False)
    summary.add_column()
    summary.add_column(justify="right")
    summary.add_row("pairs", f"{whole.pairs:,} in {whole.contexts:,} contexts")
    summary.add_row("requests", f"{whole.requests:,}, {whole.cached:,} of them answered by the cache")
    if whole.failed_earlier:
        summary.add_row(
            "failed earlier, to be queried again", f"{whole.failed_earlier:,} for {_cost(whole.retry_nano_usd)}"
        )
    if whole.in_flight:
        summary.add_row("with the Batch API now", f"{whole.in_flight:,} (sllmr batch fetches them)")
    cached = whole.usage.cached_prompt
    summary.add_row(
        "prompt tokens to send",
        f"about {whole.usage.prompt:,}" + (f", {cached:,} cached by the server" if cached else ""),
    )
    summary.add_row("completion tokens", f"about {whole.usage.completion:,}")
    summary.add_row("cost", _cost(whole.cost_nano_usd))
    if whole.by_batch_nano_usd is not None and llm.strategy in (LISTWISE, YES_NO) and not llm.uses_local_server:
        summary.add_row("cost by the Batch API (sllmr batch)", _cost(whole.by_batch_nano_usd))
    if whole.unsettled:
        summary.add_row(
            "earlier requests without a response", f"{whole.unsettled:,}, up to ${whole.unsettled_nano_usd / 1e9:.4f}"
        )
    if whole.prior_nano_usd:
        summary.add_row("cost of cached responses, earlier", _cost(whole.prior_nano_usd))
    if whole.to_send:
        summary.add_row("time of the requests", f"about {duration(seconds)} ({bound})")
    console.print(summary)

    reached = Table(title="What it reaches")
    for column in ("slice", "planned", "of", "fraction"):
        reached.add_column(column, justify="left" if column == "slice" else "right")
    for name, part in curve[-1].reached.items():
        reached.add_row(name, f"{part.planned:,}", f"{part.of:,}", f"{part.fraction:.1%}")
    console.print(reached)

    table = Table(title="Coverage against cost")
    for column in ("budget", "pairs", "requests to send", "cost", "users", "tail items"):
        table.add_column(column, justify="right")
    for step in curve:
        table.add_row(
            f"{step.fraction:.0%}",
            f"{step.size.pairs:,}",
            f"{step.size.to_send:,}",
            _cost(step.size.cost_nano_usd),
            f"{step.reached['users'].fraction:.1%}",
            f"{step.reached['tail items'].fraction:.1%}",
        )
    console.print(table)
    due_tokens = whole.usage.prompt + whole.usage.completion + whole.prior_tokens
    due_usd = None if whole.cost_nano_usd is None else (whole.cost_nano_usd + whole.prior_nano_usd) / 1e9
    for name, cap, due, told in (
        ("max_cost_usd", llm.budget.max_cost_usd, due_usd, _dollars(due_usd)),
        ("max_tokens", llm.budget.max_tokens, due_tokens, f"{due_tokens:,} tokens"),
    ):
        if cap is not None and due is not None and due > cap:
            console.print(
                f"llm.budget.{name}={cap:g} would stop this before its end at about {told}: raise it or lower "
                "llm.budget.pairs",
                style="yellow",
                soft_wrap=True,
            )
    if config.llm.replay_table is None and (few := of_plan(config, whole, train_positives).sentence()):
        console.print(few, style="yellow", markup=False, soft_wrap=True)
    console.print("No request was sent.")


def _cost(nano_usd: int | None) -> str:
    return "price unknown; set llm.price_per_million_tokens" if nano_usd is None else f"${nano_usd / 1e9:.4f}"


def _dollars(usd: float | None) -> str:
    return "price unknown" if usd is None else f"${usd:.4f}"

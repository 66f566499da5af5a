"""What requests of killed or failed runs may have cost, and how to free it: `sllmr reservations`."""

import pathlib
import shlex

from rich.console import Console

from sllmr.components.llm_scorer.jobs.import_local import import_local
from sllmr.components.llm_scorer.requests.ledger import Reservations, release_reservations, reservations_by_run
from sllmr.pipeline.config import load_config


def reservations(config_file: pathlib.Path, *, release: bool) -> None:
    """Prints what is reserved in the cache of a configuration.

    Args:
        config_file: YAML, see pipeline.config.
        release: whether to forget the reservations of runs that have ended. The user decides, because only the user
            can see the endpoint's bill.

    Raises:
        ConfigError: the configuration cannot be used.
        CacheError: the record of runs cannot be read or written.
        LlmError: what cache_dir keeps cannot be copied into the store.
    """
    console = Console(highlight=False)
    config = load_config(config_file)
    store = config.store or config.cache_dir
    import_local(config.cache_dir, store)
    found = release_reservations(store) if release else reservations_by_run(store)
    ended = [run for run in found if not run.is_running]
    running = [run for run in found if run.is_running]
    if not found:
        console.print(f"No request of an earlier run in {store} may be on the bill without a response.")
        return
    if running:
        console.print(f"Runs in progress: {_sum(running)}", soft_wrap=True)
    if ended and release:
        console.print(f"Released: {_sum(ended)}", soft_wrap=True)
    elif ended:
        again = shlex.join(["sllmr", "reservations", "--config", str(config_file), "--release"])
        console.print(
            f"Ended without a response, may be on the bill: {_sum(ended)}. Later runs count this as spent. Compare it"
            f" with the endpoint's bill; to free it: {again}",
            soft_wrap=True,
        )


def _sum(runs: list[Reservations]) -> str:
    usd = sum(run.nano_usd for run in runs) / 1e9
    requests, tokens = sum(run.requests for run in runs), sum(run.tokens for run in runs)
    return f"{requests:,} requests of {len(runs)} runs, at most ${usd:.4f} and {tokens:,} tokens"

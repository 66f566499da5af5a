"""The tables of a configuration that names a public data set, fetched where they are missing."""

import pathlib

from rich.console import Console

from sllmr.pipeline.config import Config
from sllmr.pipeline.datasets import movielens


def fetch_missing(config: Config, console: Console) -> None:
    """Prepares the data set of `config.fetch` at `config.data`, unless its interactions are there.

    Raises:
        FetchError: it could not be had.
    """
    interactions = pathlib.Path(config.data.interactions)
    if config.fetch is None or interactions.exists():
        return
    console.print("Fetching MovieLens-100K (2 MB)")
    movielens.prepare_movielens_100k(interactions.parent, config.cache_dir)

"""Where tests keep what they download: pinned weights and data, checked by hash, shared by all tests and runs."""

import pathlib

DOWNLOADS = pathlib.Path(__file__).resolve().parents[1] / "data" / "cache"


def link_models(cache_directory: pathlib.Path) -> None:
    """Makes the downloaded weights those of a cache folder, also where nothing is downloaded yet."""
    (DOWNLOADS / "models").mkdir(parents=True, exist_ok=True)
    (cache_directory / "models").symlink_to(DOWNLOADS / "models")

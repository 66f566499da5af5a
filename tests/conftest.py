"""Loaded before any test module: they may import TensorFlow in any order."""

import gc
import os
import pathlib
from collections.abc import Iterator

# Before NumPy and SciPy are loaded. Their matrices are small here, and threads of OpenBLAS that wait for each other
# make an optimization tens of times longer while other processes are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest  # isort: skip

import sllmr.pipeline  # noqa: F401  its import sets TF_USE_LEGACY_KERAS

from apache_beam.options.pipeline_options import StandardOptions  # isort: skip

# As the pipeline itself does (BeamConfig.pipeline_args): Beam's own default would download another runner.
StandardOptions.DEFAULT_RUNNER = "FnApiRunner"


TESTS = pathlib.Path(__file__).parent
LONGEST = ("end_to_end", "packaging", "pipeline/ablation/test_matrix.py", "pipeline/test_runners.py")
"""Files and folders below TESTS whose tests of one file take a minute or more together."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a transform graph is slow: Beam and Transform take many seconds to make one. The longest files come
    first, the others in the random order that they have, so that at the end no worker waits for one of them."""
    for item in items:
        if "transform_output" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not any(item.path.is_relative_to(TESTS / name) for name in LONGEST))


def pytest_collection_finish() -> None:
    """Garbage collection leaves out what is imported by now: each full collection would walk it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _the_users_own_cache_is_left_alone() -> Iterator[None]:
    """Fails the session if a test wrote to the default cache_dir, which may hold responses that somebody paid for."""
    cache = pathlib.Path("~/.cache/sllmr").expanduser()

    def files() -> dict[pathlib.Path, float]:
        return {file: file.stat().st_mtime for file in cache.rglob("*")} if cache.exists() else {}

    before = files()
    yield
    assert files() == before, f"a test wrote to {cache}; give it a cache_dir of its own"

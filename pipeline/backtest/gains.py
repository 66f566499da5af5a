"""Gains of windows and their means over windows, with intervals clustered by user."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sllmr.models.clustered_auc import UserParts, compare_parts, mean_parts, user_parts
from sllmr.pipeline.backtest.result import MeanDifference
from sllmr.pipeline.folder_lock import FolderError

WITH_PAIRS, WITHOUT_PAIRS = 0, 1
"""Order of the two models in the parts of a window."""

Parts = Mapping[str, UserParts]
"""By slice; one without both labels is absent."""


def parts_of(
    users: np.ndarray,
    labels: np.ndarray,
    with_pairs: np.ndarray,
    without_pairs: np.ndarray,
    inside: Mapping[str, np.ndarray],
) -> dict[str, UserParts]:
    """The user parts of one window's test rows, from which means over windows are computed.

    Args:
        users: [rows], ids.
        labels: [rows], 0 or 1.
        with_pairs, without_pairs: [rows], logits of the two models.
        inside: bool [rows] by slice.
    """
    scores = np.stack([with_pairs, without_pairs])
    names = np.asarray(users, np.bytes_)
    return {
        name: user_parts(names[rows], labels[rows], scores[:, rows])
        for name, rows in inside.items()
        if 0 < labels[rows].sum() < rows.sum()
    }


def mean_gain(windows: Sequence[UserParts], rows: Sequence[int]) -> MeanDifference:
    """The AUC of the first scorer minus that of the second, as the mean over windows weighted by their rows."""
    mean = mean_parts(windows, rows)
    found = compare_parts(mean)
    return MeanDifference(
        difference=found.difference,
        lower=found.lower,
        upper=found.upper,
        windows=len(windows),
        users=len(mean.users),
    )


def against(first: UserParts, second: UserParts) -> UserParts:
    """The models with pairs of two runs on the same test rows, as two scorers.

    Raises:
        ValueError: the rows are of other users.
    """
    if not np.array_equal(first.users, second.users):
        raise ValueError(
            f"both runs must have the same test rows, got {len(first.users)} and {len(second.users)} users that differ"
        )
    one, other = first.of_scorers(WITH_PAIRS), second.of_scorers(WITH_PAIRS)
    stacked = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("aucs", "of_positives", "of_negatives")
    }
    return one._replace(**stacked)


def save(parts: Parts, file: pathlib.Path) -> None:
    """Writes parts for a later mean; the file holds user ids, as the rows of the run do."""
    arrays = {f"{name}/{field}": value for name, part in parts.items() for field, value in part._asdict().items()}
    new = file.with_suffix(".new.npz")
    np.savez_compressed(new, **arrays)
    new.replace(file)


def load(file: pathlib.Path) -> dict[str, UserParts]:
    """What `save` wrote.

    Raises:
        FolderError: the file is gone.
    """
    if not file.exists():
        raise FolderError(
            f"{file}, from which means over windows are made, is gone; put it back, or name another --output and run "
            "all windows again"
        )
    with np.load(file) as arrays:
        names = dict.fromkeys(key.split("/")[0] for key in arrays.files)
        return {name: UserParts(*(arrays[f"{name}/{field}"] for field in UserParts._fields)) for name in names}

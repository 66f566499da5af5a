"""Counts what became of every two candidates of a context."""

import os

from pydantic import BaseModel, ConfigDict

from sllmr.models import artifact_files

FILE_NAME = "pair_counts.json"
"""Beside the pairs' split: a PairCounts."""


class PairCounts(BaseModel):
    """candidate_pairs = pairs + tied + inconsistent + narrow + beyond_cap.

    Attributes:
        contexts: scoring contexts with scores.
        contexts_without_pair: of them, contexts that yield no pair.
        candidate_pairs: possible pairs of two candidates of one context.
        pairs: preference pairs that train the model.
        calibration_pairs: of them, pairs of the target item and a sampled negative.
        tied: left out, as both scores are equal.
        inconsistent: left out, as the order differs between the two responses (pairs.drop_inconsistent).
        narrow: left out, as the scores differ by less than pairs.min_margin.
        beyond_cap: left out, as not among the pairs.max_per_context pairs that pairs.selection takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contexts: int = 0
    contexts_without_pair: int = 0
    candidate_pairs: int = 0
    pairs: int = 0
    calibration_pairs: int = 0
    tied: int = 0
    inconsistent: int = 0
    narrow: int = 0
    beyond_cap: int = 0


def read_counts(directory: str) -> PairCounts:
    """Reads what PairBuilder counted."""
    with artifact_files.open(os.path.join(directory, FILE_NAME)) as file:
        return PairCounts.model_validate_json(file.read())

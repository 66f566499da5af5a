"""Counts the preference pairs that scoring contexts yield, to derive a scoring budget from the data."""

import bisect
import dataclasses
import math
from typing import Literal

POSITIVES_PER_PAIR = 10
"""At most this many train positives for each preference pair: with fewer pairs, training hardly notices them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairYield:
    """Counts the preference pairs that scoring contexts yield if no two of their scores are equal.

    A context has `per_context` candidates. In the fraction `calibration_fraction` of contexts one of them is the target
    item. Its pairs with `negatives_per_target` sampled negatives are labeled, and all of them are kept. Of the other
    pairs of a context, at most `max_per_context` are kept, out of:

        selection widest    all C(per_context, 2) pairs less the labeled ones
        selection cover     those that match each candidate in no labeled pair once: half as many as these candidates

    Source: the rule in components/pair_builder/pairs.py.

    Attributes:
        per_context, calibration_fraction, negatives_per_target: of llm.candidates.
        max_per_context, selection: of pairs.
    """

    per_context: int
    calibration_fraction: float
    negatives_per_target: int
    max_per_context: int
    selection: Literal["widest", "cover"]

    def preference_pairs(self, contexts: int) -> int:
        """The number of preference pairs that so many contexts yield."""
        calibration = round(self.calibration_fraction * contexts)
        return calibration * self._of_context(self.negatives_per_target) + (contexts - calibration) * self._of_context(
            0
        )

    def contexts_for(self, preference_pairs: int) -> int:
        """The fewest contexts that yield at least so many preference pairs."""
        # Each context yields at least one pair, so no more contexts than pairs are needed.
        return bisect.bisect_left(range(preference_pairs), preference_pairs, key=self.preference_pairs)

    def enough_pairs(self, train_positives: int) -> int:
        """(user, candidate) pairs to score for one preference pair per POSITIVES_PER_PAIR train positives."""
        return self.per_context * max(1, self.contexts_for(wanted_preference_pairs(train_positives)))

    def _of_context(self, labeled: int) -> int:
        if self.selection == "cover":
            in_no_labeled_pair = self.per_context - (labeled + 1 if labeled else 0)
            others = in_no_labeled_pair // 2
        else:
            others = math.comb(self.per_context, 2) - labeled
        return labeled + min(self.max_per_context, others)


def wanted_preference_pairs(train_positives: int) -> int:
    """One per POSITIVES_PER_PAIR train positives, rounded up."""
    return math.ceil(train_positives / POSITIVES_PER_PAIR)

"""How many preference pairs scoring contexts make: the arithmetic of a budget that follows from the data."""

import bisect
import dataclasses
import math
from typing import Literal

POSITIVES_PER_PAIR = 10
"""Train positives for each preference pair at most: with fewer pairs, training hardly notices them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairYield:
    """Preference pairs of scoring contexts in which no two scores are equal.

    A context has `per_context` candidates. In the fraction `calibration_fraction` of contexts one of them is the target
    item, and its pairs with `negatives_per_target` sampled negatives, the labeled ones, are all kept. Of the other
    pairs of a context `max_per_context` are kept:

        selection widest    of all C(per_context, 2) pairs less the labeled ones
        selection cover     of those that hold each candidate in no labeled pair once: half as many as these candidates

    Source: components/pair_builder/pairs.py, whose rule this counts.

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
        """Of so many contexts."""
        calibration = round(self.calibration_fraction * contexts)
        return calibration * self._of_context(self.negatives_per_target) + (contexts - calibration) * self._of_context(
            0
        )

    def contexts_for(self, preference_pairs: int) -> int:
        """The fewest contexts that make so many preference pairs."""
        # Each context makes one at least.
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

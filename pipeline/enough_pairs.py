"""Whether the preference pairs are enough to move the ranking model, and what enough of them would cost."""

import math

from pydantic import BaseModel, ConfigDict

from sllmr.components.llm_scorer.cost.estimate import Estimate, expected_seconds
from sllmr.components.pair_yield import POSITIVES_PER_PAIR, wanted_preference_pairs
from sllmr.pipeline.config import Config
from sllmr.pipeline.durations import duration


class EnoughPairs(BaseModel):
    """Whether there is one preference pair per POSITIVES_PER_PAIR train positives; fewer may not move the model.

    Attributes:
        train_positives: of the train split.
        preference_pairs: that the scores make, or are expected to make.
        sufficient_pairs: (user, candidate) pairs that make enough preference pairs: the llm.budget.pairs to set.
        cost_usd: of all sufficient_pairs; None if the price is unknown.
        seconds: of the requests about all of them; None if unknown.
        replayed: whether the scores come from llm.replay_table, which llm.budget.pairs cannot extend.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_positives: int
    preference_pairs: int
    sufficient_pairs: int
    cost_usd: float | None
    seconds: float | None
    replayed: bool = False

    @property
    def enough(self) -> bool:
        """Whether no more are needed."""
        return self.preference_pairs >= wanted_preference_pairs(self.train_positives)

    def sentence(self) -> str:
        """What to change; empty if the pairs are enough."""
        if self.enough:
            return ""
        few = (
            f"{self.preference_pairs:,} preference pairs are fewer than one per {POSITIVES_PER_PAIR} of the "
            f"{self.train_positives:,} train positives and may be too few to move the model"
        )
        if self.replayed:
            return f"{few}; llm.replay_table would need about {self.sufficient_pairs:,} scores"
        price = "at a price that is not known" if self.cost_usd is None else f"for about ${self.cost_usd:.4f} in all"
        time = "" if self.seconds is None else f", in about {duration(self.seconds)}"
        return f"{few}; llm.budget.pairs: {self.sufficient_pairs} would suffice, {price}{time}"


def of_plan(config: Config, whole: Estimate, train_positives: int) -> EnoughPairs:
    """Assesses a plan, assuming that no two scores of a scoring context are equal."""
    sufficient = config.pair_yield.enough_pairs(train_positives)
    times = sufficient / whole.pairs
    usd = None if whole.cost_nano_usd is None else (whole.cost_nano_usd + whole.prior_nano_usd) / 1e9
    seconds = None
    if whole.to_send:
        seconds = expected_seconds(whole, config.llm.resolve())[0] * whole.requests / whole.to_send * times
    return EnoughPairs(
        train_positives=train_positives,
        preference_pairs=config.pair_yield.preference_pairs(whole.contexts),
        sufficient_pairs=sufficient,
        cost_usd=None if usd is None else usd * times,
        seconds=seconds,
    )


def of_run(
    config: Config,
    *,
    train_positives: int,
    preference_pairs: int,
    scored_pairs: int,
    cost_usd: float | None,
    seconds: float | None,
) -> EnoughPairs:
    """Assesses the pairs that a run made.

    Args:
        config: of the run.
        train_positives: of the train split.
        preference_pairs: that PairBuilder made.
        scored_pairs: (user, candidate) pairs that they were made of, failed ones included.
        cost_usd: of all scores, those of earlier runs included; None if the price is unknown.
        seconds: of all scores; None if some of them were cached.
    """
    wanted, size = wanted_preference_pairs(train_positives), config.llm.candidates.per_context
    sufficient = config.pair_yield.enough_pairs(train_positives)
    if preference_pairs:  # ties and failures count
        sufficient = math.ceil(scored_pairs * wanted / preference_pairs / size) * size
    times = sufficient / max(scored_pairs, 1)
    return EnoughPairs(
        train_positives=train_positives,
        preference_pairs=preference_pairs,
        sufficient_pairs=sufficient,
        cost_usd=None if cost_usd is None else cost_usd * times,
        seconds=None if seconds is None else seconds * times,
        replayed=config.llm.replay_table is not None,
    )

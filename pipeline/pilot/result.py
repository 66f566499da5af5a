"""What a pilot finds, as pilot.json holds it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

FILE_NAME = "pilot.json"

_STRICT = ConfigDict(frozen=True, extra="forbid")

Recommendation = Literal["full", "partial", "do_not_spend"]
COVERAGES = (0.1, 0.5, 1.0)


class Gain(BaseModel):
    """What the LLM adds to a stack with the base model, on users that neither has seen.

    Attributes:
        difference: AUC of the stack with the LLM scores minus AUC of the same stack without; None if the rows do not
            hold both labels.
        lower, upper: 95% interval of the difference, paired and clustered by user; None with fewer than two users.
        base_model, without_llm, with_llm: AUC of the base model's logit and of the two stacks; None as `difference`.
    """

    model_config = _STRICT

    difference: float | None
    lower: float | None
    upper: float | None
    base_model: float | None
    without_llm: float | None
    with_llm: float | None


class Prediction(BaseModel):
    """What a part of the configured plan would bring.

    Attributes:
        coverage: fraction of the contexts of the plan, one of COVERAGES.
        users_reached: fraction of the users of the train rows that this part scores.
        difference: predicted test AUC of the model with pairs minus that of the model without.
        lower, upper: 95% interval of what the run will measure: from the gain's interval, the least and the most that
            distillation kept, and the sampling error of the test users.
        cost_usd: estimated for what is not in the cache after the pilot; None if no price is known.
        seconds: estimated for the same requests.
    """

    model_config = _STRICT

    coverage: float
    users_reached: float
    difference: float
    lower: float
    upper: float
    cost_usd: float | None
    seconds: float


class SliceReliability(BaseModel):
    """Calibration pairs of one slice: how often the LLM and the base model score the target item higher.

    Attributes:
        short_history: whether the user has at most llm.candidates.short_history_max earlier positives.
        tail: whether the target item is a long-tail item, not counting the target interaction.
        pairs: number of calibration pairs.
        llm_right: fraction of them that the LLM orders right; equal scores count half. None without pairs.
        lower, upper: 95% interval of llm_right, clustered by user; None with fewer than two users.
        model_right: as llm_right, of the base model.
        gain: AUC difference as Gain.difference, on the contexts of the slice; None with too few users.
        gain_lower, gain_upper: its interval at 98.75%, so that the four intervals hold together at 95%.
    """

    model_config = _STRICT

    short_history: bool
    tail: bool
    pairs: int
    llm_right: float | None
    lower: float | None
    upper: float | None
    model_right: float | None
    gain: float | None
    gain_lower: float | None
    gain_upper: float | None

    @property
    def name(self) -> str:
        """`short_history/tail` and the like."""
        return f"{'short' if self.short_history else 'long'}_history/{'tail' if self.tail else 'head'}"


class Advice(BaseModel):
    """What to do.

    Attributes:
        recommendation: `full` scores the configured plan, `partial` the slices of slices_first alone.
        slices_first: names of slices, largest gain first.
        reason: one sentence.
    """

    model_config = _STRICT

    recommendation: Recommendation
    slices_first: list[str]
    reason: str


class PilotReport(Advice):
    """What pilot.json holds.

    Attributes:
        schema_version: of this layout.
        name, model, strategy: of the configuration.
        predicted: at each of COVERAGES.
        gain: of stacking on held-out users, before distillation.
        reliability: of the four slices.
        contexts, pairs, users: calibration contexts with scores, their calibration pairs, and their users.
        distillation_kept: fraction of the stack's gain that distillation kept on the reference domains.
        distillation_kept_range: least and most of one backbone on one domain.
        cost_usd: of the pilot's responses, earlier runs included; None if no price is known.
        seconds: wall time of the whole pilot.
    """

    schema_version: Literal[1] = 1
    name: str
    model: str
    strategy: str
    predicted: list[Prediction]
    gain: Gain
    reliability: list[SliceReliability]
    contexts: int
    pairs: int
    users: int
    distillation_kept: float
    distillation_kept_range: tuple[float, float]
    cost_usd: float | None
    seconds: float
